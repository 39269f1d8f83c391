"""`judge`: ready-made adversarial images, whoever made them, checked and shown to a model."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from command_line import command, small_checkpoint
from linear_classifiers import linear
from PIL import Image
from run_folders import training_run
from safetensors.torch import save_file

import holdfast as hf
from holdfast.data.given import read_given, taken
from holdfast.errors import InputError
from holdfast.threat import Threat

SHAPE = (3, 6, 6)
THREAT = Threat("linf", 0.1)


def flags(result: hf.Evaluation) -> dict[str, bool]:
    return {flag.name: bool(flag.fired) for flag in result.flags}


def told(result: hf.Evaluation, name: str) -> str:
    return next(flag.detail for flag in result.flags if flag.name == f"given-{name}")


@pytest.fixture(scope="module")
def attacked():
    """A model, images that it gets right, and images inside the ball of which it gets 2 wrong."""
    model = linear(4, "edges", count=6)
    adversarial = model.images.clone()
    broken = hf.attacks.PGD(steps=20)(model, model.images, model.labels, THREAT)
    adversarial[:2] = broken[:2]
    assert (model(adversarial).argmax(1) != model.labels).tolist() == [True] * 2 + [False] * 4
    return model, model.images, model.labels, adversarial


# -- verdicts -------------------------------------------------------------------------------------


def test_images_inside_the_ball_are_judged_by_what_the_model_answers(attacked):
    model, x, y, adversarial = attacked
    result = hf.judge(model, x, y, adversarial, THREAT)
    assert result.n == 6 and result.standard_accuracy == 1
    assert result.broken.tolist() == [True, True, False, False, False, False]
    assert result.robust_accuracy == pytest.approx(4 / 6)
    assert result.suite == "given images" and result.attacks[0].broken == 2
    assert [v.attack for v in result.verdicts[:3]] == ["given images", "given images", ""]
    assert result.verdicts[0].distance == pytest.approx(0.1, abs=1e-6)
    assert torch.equal(result.adversarial, adversarial)
    assert result.given is not None and result.given.counted == 6
    assert not any(flags(result).values())


def test_what_lies_outside_does_not_count_unless_it_is_clipped(attacked):
    model, x, y, adversarial = attacked
    far = adversarial.clone()
    far[0] = (x[0] + 0.5 * (adversarial[0] - x[0]).sign()).clamp(0, 1)  # wrong, but far away
    result = hf.judge(model, x, y, far, THREAT)
    assert result.broken.tolist() == [False, True, *[False] * 4]
    assert torch.equal(result.adversarial[0], x[0])
    assert flags(result)["given-in-ball"] and "1 of 6 lie outside the ball" in told(
        result, "in-ball"
    )
    assert "by up to 0.4" in told(result, "in-ball")
    assert result.given.outside_ball == 1 and result.given.counted == 5
    clipped = hf.judge(model, x, y, far, THREAT, clip=True)
    assert clipped.broken[0] and clipped.given.clipped == 1 and clipped.given.counted == 6
    assert THREAT.contains(clipped.adversarial, x).all()
    assert not flags(clipped)["given-in-ball"]


def test_rounding_of_the_ball_is_forgiven_as_in_contains(attacked):
    model, x, y, _ = attacked
    edge = x + 0.1 * torch.where(x < 0.5, 1.0, -1.0)
    edge[0] = edge[0] * (1 + 1e-7)
    assert THREAT.contains(edge, x).all()
    assert hf.judge(model, x, y, edge, THREAT).given.counted == 6
    beyond = x + 0.1001 * torch.where(x < 0.5, 1.0, -1.0)
    assert hf.judge(model, x, y, beyond, THREAT).given.counted == 0


def test_the_box_and_finite_values_are_checked(attacked):
    model, x, y, adversarial = attacked
    bad = adversarial.clone()
    bad[0, 0, 0, 0] = torch.nan
    bad[1, 0, 0, 0] = torch.inf
    bad[2, 0, 0, 0] = -0.05
    result = hf.judge(model, x, y, bad, Threat("linf", 0.9))
    assert result.given.not_finite == 2 and result.given.outside_box == 1
    assert not result.broken[:2].any() and torch.isfinite(result.adversarial).all()
    fired = flags(result)
    assert fired["given-finite"] and fired["given-in-box"]
    assert "from -0.05" in told(result, "in-box")
    clipped = hf.judge(model, x, y, bad, Threat("linf", 0.9), clip=True)
    assert clipped.given.counted == 4 and clipped.adversarial.min() >= 0


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_every_norm_has_its_ball(attacked, norm):
    model, x, y, _ = attacked
    point = x.clone()
    point[:, 0, 0, :2] = 1 - point[:, 0, 0, :2]
    distance = Threat(norm, 1.0).distance(point, x)
    eps = float(distance.sort().values[2:4].mean()) if norm != "l0" else 2
    inside = int((distance <= eps).sum())
    result = hf.judge(model, x, y, point, Threat(norm, eps))
    assert result.given.counted == inside
    assert hf.judge(model, x, y, point, Threat(norm, eps), clip=True).given.counted == 6


def test_another_order_is_noticed_and_the_index_mends_it(attacked):
    model, x, y, adversarial = attacked
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    result = hf.judge(model, x, y, adversarial[order], THREAT)
    assert flags(result)["given-in-order"]
    said = told(result, "in-order")
    assert "number 0 to image 3" in said and "give `index`" in said and "6 lie in the ball" in said
    mended = hf.judge(model, x, y, adversarial[order], THREAT, index=order)
    assert not any(flags(mended).values())
    assert [v.index for v in mended.verdicts] == order.tolist()
    assert mended.broken.tolist() == [i < 2 for i in order.tolist()]
    some = hf.judge(model, x, y, adversarial[[1, 4]], THREAT, index=[1, 4])
    assert some.n == 2 and some.broken.tolist() == [True, False]
    first = hf.judge(model, x, y, adversarial[:3], THREAT)
    assert first.n == 3 and [v.index for v in first.verdicts] == [0, 1, 2]


@pytest.mark.parametrize(
    "changed",
    [lambda x: 1 - x, lambda x: (x - 0.5) / 0.5, lambda x: torch.rand(x.shape)],
    ids=["inverted", "normalised", "other images"],
)
def test_what_fits_no_image_is_not_called_another_order(attacked, changed):
    model, x, y, _ = attacked
    result = hf.judge(model, x, y, changed(x), THREAT)
    said = told(result, "in-order")
    assert flags(result)["given-in-ball"] and "another order" not in said.removesuffix(
        "too few for another order."
    )
    assert not flags(result)["given-in-order"] or "0 lie in the ball" in said


def test_a_large_perturbation_alone_is_no_other_order(attacked):
    model, x, y, _ = attacked
    result = hf.judge(model, x, y, (x + 0.15).clamp(0, 1), THREAT)
    assert flags(result)["given-in-ball"] and not flags(result)["given-in-order"]


def test_eight_bit_values_are_told(attacked):
    model, x, y, adversarial = attacked
    assert "6 of 6 have values that are no k/255" in told(
        hf.judge(model, x, y, adversarial, THREAT), "8-bit"
    )
    whole = (adversarial * 255).round().to(torch.uint8)
    assert "All values are k/255" in told(
        hf.judge(model, x, y, whole, Threat("linf", 0.2)), "8-bit"
    )


def test_clean_mistakes_and_goals_are_as_in_evaluate(attacked):
    model, x, y, adversarial = attacked
    wrong = y.clone()
    wrong[5] = (y[5] + 1) % 4
    result = hf.judge(model, x, wrong, adversarial, THREAT)
    assert result.verdicts[5].attack == "clean" and result.standard_accuracy == pytest.approx(5 / 6)
    reached = model(adversarial).argmax(1)
    targets = torch.where(reached == y, (y + 1) % 4, reached)
    targets[1] = next(k for k in range(4) if k not in (int(y[1]), int(reached[1])))
    result = hf.judge(model, x, y, adversarial, THREAT, goal="target", targets=targets)
    assert result.broken.tolist() == [True, *[False] * 5]
    assert result.target_reached == pytest.approx(1 / 6)


class Coin(torch.nn.Module):
    """Answers class 1 in a share of its draws that is the image's first value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = (torch.rand(len(x)) < x[:, 0, 0, 0]).float()
        return torch.stack([1 - heads, heads], 1)


def test_a_random_model_is_judged_by_the_majority_of_fresh_draws():
    x = torch.zeros(20, 1, 2, 2)
    adversarial = x.clone()
    adversarial[:10, 0, 0, 0], adversarial[10:, 0, 0, 0] = 0.9, 0.1
    result = hf.judge(Coin(), x, torch.zeros(20).long(), adversarial, Threat("linf", 0.95))
    assert result.broken.tolist() == [True] * 10 + [False] * 10
    assert {figure.kind for figure in result.draws} == {"average", "worst", "majority"}


# -- transfer -------------------------------------------------------------------------------------


def test_transfer_tells_how_the_source_fared_and_how_much_came_over(tmp_path):
    source, x, y = models.digits(60)
    torch.manual_seed(1)
    target = torch.nn.Sequential(source, torch.nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        target[1].weight.copy_(torch.eye(10) + 0.15 * torch.randn(10, 10))
    threat, suite = Threat("linf", 0.15), hf.attacks.PGD(steps=10)
    result = hf.judge(target, x, y, threat=threat, source=source, suite=suite, run=tmp_path / "run")
    alone = hf.evaluate(source, x, y, threat, suite)
    transfer = result.transfer
    assert transfer.robust_accuracy == alone.robust_accuracy
    assert transfer.standard_accuracy == alone.standard_accuracy
    right = target(x).argmax(1) == y
    broke = torch.tensor([v.broken and v.attack != "clean" for v in alone.verdicts]) & right
    both = broke & (target(alone.adversarial).argmax(1) != y)
    assert transfer.broke_source == int(broke.sum()) and transfer.broke_both == int(both.sum())
    assert 0 < transfer.rate == transfer.broke_both / transfer.broke_source <= 1
    assert torch.equal(result.broken, target(alone.adversarial).argmax(1) != y)
    assert result.suite == "transfer from SmallCNN, pgd"
    # Both runs are there, and the same call goes on with them.
    assert hf.read(tmp_path / "run/source").robust_accuracy == alone.robust_accuracy
    assert hf.read(tmp_path / "run").transfer == transfer
    again = hf.judge(target, x, y, threat=threat, source=source, suite=suite, run=tmp_path / "run")
    assert again.identity == result.identity and torch.equal(again.broken, result.broken)
    page = hf.write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert "Transfer rate" in page and "upper bound" in page
    with pytest.raises(InputError, match="holds another run"):
        hf.judge(target, x, y, threat=threat, source=target, suite=suite, run=tmp_path / "run")


def test_a_transfer_that_was_killed_goes_on(tmp_path, monkeypatch):
    source, x, y = models.digits(20)
    asked = {"threat": Threat("linf", 0.1), "source": source, "suite": "fgsm"}
    from holdfast.evaluation import given

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(given, "_judged", killed)
        with pytest.raises(KeyboardInterrupt):
            hf.judge(source, x, y, run=tmp_path / "run", **asked)
    finished = hf.read(tmp_path / "run/source").finished
    result = hf.judge(source, x, y, run=tmp_path / "run", **asked)
    assert hf.read(tmp_path / "run/source").finished == finished  # read, not run again
    assert result.transfer.rate in (None, 1.0)


def test_a_target_goes_over_with_the_image():
    source, x, y = models.digits(30)
    asked = {"threat": Threat("linf", 0.3), "suite": hf.attacks.PGD(steps=10, loss="margin")}
    result = hf.judge(source, x, y, source=source, goal="target", targets="random", **asked)
    alone = hf.evaluate(source, x, y, goal="target", targets="random", **asked)
    assert [v.target for v in result.verdicts] == [v.target for v in alone.verdicts]
    assert torch.equal(result.broken, alone.broken) and result.targets == "random"
    assert result.suite == "transfer from SmallCNN, pgd, target random"


# -- what may be handed over ----------------------------------------------------------------------


def saved(folder: Path, adversarial: torch.Tensor) -> dict[str, Path]:
    """The same images in every form that is read."""
    x = adversarial.numpy()
    by_rows = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    np.save(folder / "a.npy", x)
    np.save(folder / "rows.npy", by_rows)
    np.save(folder / "big-endian.npy", x.astype(">f8"))
    np.savez(folder / "adv.npz", adversarial=x)
    np.savez_compressed(folder / "small.npz", x_adv=by_rows, y=np.zeros(len(x)))
    np.savez(folder / "images.npz", images=x, note=np.array(["a"], object))
    np.savez(folder / "odd.npz", whatever=x, index=np.arange(len(x)))
    np.savez(folder / "one-hot.npz", adversarial=x, labels=np.eye(len(x)))
    save_file({"adversarial": adversarial, "images": adversarial * 0}, folder / "a.safetensors")
    return {path.name: path for path in sorted(folder.iterdir())}


def test_every_usual_form_is_read(tmp_path, attacked):
    model, x, y, adversarial = attacked
    for name, path in saved(tmp_path, adversarial).items():
        given = read_given(path, SHAPE, 6)
        assert torch.equal(given.images, adversarial), name
        assert path.name in given.told[0], name
        result = hf.judge(model, x, y, path, THREAT)
        assert result.broken.sum() == 2, name


def test_eight_bits_and_half_precision_are_read():
    levels = torch.randint(0, 256, (4, *SHAPE))
    for values in (levels.to(torch.uint8), levels.numpy(), levels.float(), levels.short()):
        assert torch.equal(taken(values, SHAPE).images, levels.float() / 255)
    half = taken(torch.rand(4, *SHAPE).half(), SHAPE)
    assert half.images.dtype == torch.float32 and "float16, as float32" in half.told
    assert "divided by 255" in taken(levels.float(), SHAPE).told[0]
    # One channel may be left out; where both layouts fit, it is told.
    assert taken(torch.rand(2, 8, 8), (1, 8, 8)).images.shape == (2, 1, 8, 8)
    assert "look alike" in taken(torch.rand(2, 3, 3, 3), (3, 3, 3)).told[0]


def png(path: Path, image: torch.Tensor) -> None:
    levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def test_a_folder_of_pictures_is_read_by_its_numbers(tmp_path):
    images = torch.randint(0, 256, (12, *SHAPE)) / 255
    for row in range(12):
        png(tmp_path / "all" / f"{row}.png", images[row])
        png(tmp_path / "from-one" / f"img_{row + 1}.png", images[row])
        png(tmp_path / "named" / f"{'abcdefghijkl'[row]}.png", images[row])
    for row in (7, 2, 11):
        png(tmp_path / "some" / "cats" / f"{row:04d}.png", images[row])
    for name in ("all", "from-one", "named"):
        given = read_given(tmp_path / name, SHAPE, 20)
        assert given.index is None and torch.equal(given.images, images), name
    given = read_given(tmp_path / "some", SHAPE, 20)
    assert given.index.tolist() == [2, 7, 11] and torch.equal(given.images, images[[2, 7, 11]])


def test_what_evaluate_and_export_write_can_be_judged(tmp_path):
    model, x, y = models.digits(40)
    threat = Threat("linf", 0.15)
    run = hf.evaluate(model, x, y, threat, "pgd", run=tmp_path / "run")
    again = hf.judge(model, x, y, tmp_path / "run", threat)
    held = [v.index for v in again.verdicts]
    assert again.broken.tolist() == [run.verdicts[index].broken for index in held]
    # Examples are chosen, broken ones first: no sample, and it is told where the rest is.
    said = told(again, "shape")
    assert f"{again.n} examples, which were chosen, of 40" in said and "holdfast export" in said
    whole = hf.judge(model, x, y, run, threat)
    assert torch.equal(whole.broken, run.broken)
    hf.export(tmp_path / "run", tmp_path / "pngs", model=model, data=(x, y))
    next((tmp_path / "pngs").rglob("*.png")).unlink()
    pngs = hf.judge(model, x, y, tmp_path / "pngs", threat)
    assert pngs.robust_accuracy == 0
    assert f"index.csv has {40 - pngs.n} more images, of which there is no picture" in told(
        pngs, "shape"
    )
    hf.export(tmp_path / "run", tmp_path / "adv.npz", data=(x, y))
    exact = hf.judge(model, x, y, tmp_path / "adv.npz", threat)
    assert exact.robust_accuracy == run.robust_accuracy and not any(flags(exact).values())


# -- hostile files --------------------------------------------------------------------------------


def test_the_folder_of_another_command_is_no_adversarial_images(tmp_path):
    run = training_run(tmp_path / "run")
    with pytest.raises(InputError, match=r"a run folder without examples\.safetensors"):
        read_given(run, SHAPE, 6)


def hostile(folder: Path) -> dict[str, str]:
    """Bad files → what is said of each."""
    x = np.random.default_rng(0).random((6, *SHAPE), np.float32)
    np.save(folder / "pickled.npy", np.array([{"a": 1}] * 6, object), allow_pickle=True)
    np.savez(folder / "pickled.npz", adversarial=np.array([print], object))
    np.save(folder / "shape.npy", x[:, :2])
    np.save(folder / "empty.npy", x[:0])
    np.save(folder / "many.npy", np.concatenate([x, x]))
    np.save(folder / "words.npy", np.array(["a", "b"]))
    np.save(folder / "flags.npy", x > 0.5)
    np.save(folder / "negative.npy", (x * 255).astype(np.int64) - 300)
    np.savez(folder / "two.npz", first=x, second=x)
    np.savez(folder / "none.npz", note=np.zeros(3))
    np.savez(folder / "range.npz", adversarial=x, index=np.array([0, 1, 2, 3, 4, 6]))
    np.savez(folder / "below.npz", adversarial=x, index=np.array([0, 1, 2, 3, 4, -1]))
    np.savez(folder / "twice.npz", adversarial=x, index=np.array([0, 1, 2, 3, 4, 4]))
    np.savez(folder / "short.npz", adversarial=x, index=np.array([0, 1]))
    np.savez(folder / "part.npz", adversarial=x, index=np.arange(6) + 0.5)
    (folder / "torn.npz").write_bytes((folder / "two.npz").read_bytes()[:500])
    (folder / "text.npz").write_text("not an archive")
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "adv.pt").write_bytes(b"\x80\x04.")
    (folder / "pictures").mkdir()
    (folder / "pictures/0.jpg").write_bytes(b"")
    # A header that promises far more than any memory holds, and a file that unpacks to it.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**9, *SHAPE)}
    )
    (folder / "promise.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(folder / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adversarial.npy", header.getvalue() + bytes(10**7))
    return {
        "pickled.npy": "pickled objects, which are never loaded",
        "pickled.npz": "pickled objects, which are never loaded",
        "shape.npy": "no array of shape N×3×6×6 or N×6×6×3",
        "empty.npy": "holds 0 images",
        "many.npy": "holds 12 images; the data has 6: an index says",
        "words.npy": "no array of shape",
        "flags.npy": "are no pixels",
        "negative.npy": "pixels are 0 to 255",
        "two.npz": "several arrays may be the images (first, second)",
        "none.npz": "it holds note 3",
        "range.npz": "index[5] is 6, out of range; the data has 6 images",
        "below.npz": "index[5] is -1, out of range",
        "twice.npz": "names image 4 2 times",
        "short.npz": "one number for each of the 6 images",
        "part.npz": "must be whole numbers",
        "torn.npz": "damaged, or no .npz file",
        "text.npz": "damaged, or no .npz file",
        "text.safetensors": "is damaged",
        "adv.pt": "give an .npz, .npy or .safetensors file",
        "pictures": "JPEG changes the pixels",
        "promise.npy": "not as long as its shape",
        "bomb.npz": "not as long as its shape",
        "missing.npz": "no such file",
        "missing": "no such file",
    }


def test_bad_files_are_one_line(tmp_path, attacked):
    model, x, y, _ = attacked
    for name, says in hostile(tmp_path).items():
        with pytest.raises(InputError) as error:
            hf.judge(model, x, y, tmp_path / name, THREAT, run=tmp_path / "run")
        said = str(error.value)
        assert says in said and str(tmp_path / name) in said and "\n" not in said, (name, said)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"adversarial": None}, "either adversarial images, or a source"),
        ({"source": torch.nn.Flatten()}, "either adversarial images, or a source"),
        ({"adversarial": torch.rand(6, 3, 5, 5)}, "shape 6×3×5×5 is not N×3×6×6"),
        ({"adversarial": torch.rand(7, *SHAPE)}, "7 adversarial images for 6 images"),
        ({"adversarial": "no.npz"}, "no.npz: no such file"),
        ({"adversarial": [["a"]]}, "no array of numbers"),
        ({"index": [0, 1]}, r"index must have shape \(6,\)"),
        ({"index": [0, 1, 2, 3, 4, 9]}, r"index\[5\] is 9, out of range"),
        ({"index": [0, 1, 2, 3, 3, 3]}, "names image 3 3 times"),
        ({"threat": None}, "threat model is missing"),
        ({"threat": Threat("spatial", 1)}, "only norms can be judged"),
        ({"threat": ("linf", 1.5)}, "did you mean 1.5/255"),
        ({"targets": "random"}, "say goal 'target' as well"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_bad_calls_are_one_line(attacked, change, says):
    model, x, y, adversarial = attacked
    call = {"adversarial": adversarial, "threat": THREAT} | change
    with pytest.raises(InputError, match=says) as error:
        hf.judge(model, x, y, **call)
    assert "\n" not in str(error.value)


def test_a_source_that_fails_leaves_no_run(tmp_path, attacked):
    model, x, y, _ = attacked
    with pytest.raises(InputError, match="the source: "):
        hf.judge(
            model, x, y, threat=THREAT, source=torch.nn.Linear(5, 5), suite="fgsm",
            run=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


# -- the command line -----------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "model")


def test_the_command_judges_and_writes_a_run_that_reports_read(
    tmp_path, trained, monkeypatch, capsys
):
    split = hf.data.load("digits").test
    x = hf.data.to_tensor(split.images[:20])
    np.savez(tmp_path / "adv.npz", x_adv=(x + 0.05).clamp(0, 1).numpy(), labels=split.labels[:20])
    line = ("judge", trained, "--adversarial", tmp_path / "adv.npz", "--data", "digits")
    line = (*line, "--norm", "linf", "--eps", "0.1")
    assert command(monkeypatch, *line, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    for part in ("'x_adv' of shape 20×1×8×8 taken", "labels are the data's", "an upper bound"):
        assert part in said
    for name in ("shape", "finite", "in box", "in ball", "in order", "8 bit"):
        assert f"{name}:" in said
    record = hf.read(tmp_path / "run")
    assert record.n == 20 and record.suite == "given images" and record.given.counted == 20
    rows = list(csv.DictReader((tmp_path / "run/given.csv").open()))
    assert len(rows) == 20 and {row["counts"] for row in rows} == {"1"}
    assert json.loads((tmp_path / "run/request.json").read_text())["kind"] == "judge"
    assert command(monkeypatch, "report", tmp_path / "run", "--out", tmp_path / "page.html") == 0
    assert "an upper bound here" in (tmp_path / "page.html").read_text()
    assert command(monkeypatch, "leaderboard", tmp_path / "run") == 0
    assert "given images" in capsys.readouterr().out
    # Without --out nothing is written, and it says so.
    before = sorted(tmp_path.iterdir())
    assert command(monkeypatch, *line) == 0
    assert "nothing was written" in capsys.readouterr().out and sorted(tmp_path.iterdir()) == before
    # Another file is another run.
    np.savez(tmp_path / "adv.npz", x_adv=x.numpy())
    assert command(monkeypatch, *line, "--out", tmp_path / "run") == 2
    assert "holds another run" in capsys.readouterr().err


def test_the_command_attacks_another_model(tmp_path, trained, monkeypatch, capsys):
    line = ("judge", trained, "--from", trained, "--suite", "fgsm", "--data", "digits")
    line = (*line, "--limit", 30, "--defence", "bit-depth:bits=3", "--out", tmp_path / "run")
    assert command(monkeypatch, *line) == 0
    said = capsys.readouterr().out
    assert "transfer rate: " in said and "attacked on model by fgsm" in said
    record = hf.read(tmp_path / "run")
    assert record.model.defences == ("bit-depth:bits=3",) and record.transfer.source == "model"
    assert hf.read(tmp_path / "run/source").model.defences == ()


def test_the_other_model_may_be_a_file_of_weights_with_options(
    tmp_path, trained, monkeypatch, capsys
):
    from safetensors.torch import load_file

    card = json.loads((trained / "card.json").read_text())
    arguments = ",".join(f"{key}={value}" for key, value in card["arguments"].items())
    state = load_file(trained / "model.safetensors")
    torch.save({key: value.float() for key, value in state.items()}, tmp_path / "w.pth")
    said = []
    for number, source in enumerate(
        (trained, f"{tmp_path / 'w.pth'} --architecture {card['architecture']}:{arguments}")
    ):
        line = ("judge", trained, "--from", source, "--suite", "fgsm", "--data", "digits")
        out = tmp_path / f"run-{number}"
        asked = ("--norm", "linf", "--eps", "0.1", "--limit", 20, "--out", out)
        assert command(monkeypatch, *line, *asked) == 0
        record = hf.read(out)
        transfer = record.transfer
        said.append(
            (record.standard_accuracy, transfer.standard_accuracy, transfer.robust_accuracy)
        )
    assert said[0] == said[1]
    assert record.transfer.source == "w.pth"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--from", "w.pth --mead 0.5"], "'--mead' is no option of a model; did you mean '--mean'"),
        ([], "give either --adversarial FILE or --from MODEL"),
        (["--adversarial", "a.npz", "--from", "cifar10-linf-slim"], "give either --adversarial"),
        (
            ["--adversarial", "a.npz", "--suite", "fgsm"],
            "--suite is of the attack on another model",
        ),
        (["--adversarial", "no.npz"], "no.npz: no such file"),
        (["--from", "no-model"], "no-model"),
        (["--from", "cifar10-linf-slim"], "classes"),
        (["--adversarial", "a.npz", "--limit", "0"], "--limit must be at least 1"),
        (["--adversarial", "a.npz", "--norm", "spatial", "--eps", "1"], "a.npz"),
    ],
)
def test_a_bad_command_is_one_line(tmp_path, trained, monkeypatch, capsys, options, says):
    line = ("judge", trained, "--data", "digits", "--out", tmp_path / "out", *options)
    assert command(monkeypatch, *line) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and error.startswith("holdfast: ")
    assert not (tmp_path / "out").exists()


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[1] / "docs/judge.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    source, _, _ = models.digits(10)
    names: dict[str, object] = {"source": source, "model": torch.nn.Sequential(source)}
    exec(code, names)
    result = names["result"]
    assert isinstance(result, hf.Evaluation) and result.transfer.rate == 1.0
