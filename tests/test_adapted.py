"""What is said of a model (--mean, --std, --input-size, --outputs, --classes, --dtype), and what is
recognised in it: wrapped answers, one logit, layouts."""

from __future__ import annotations

import copy
import json
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.errors import InputError
from holdfast.models.adapted import (
    Adaptation,
    Adapted,
    Preprocessing,
    adaptation_lines,
    adapted,
    in_classes,
)
from holdfast.models.answers import Form, recognised
from holdfast.models.class_map import class_map
from holdfast.models.wrapper import unwrapped, wrapped
from holdfast.runs.identity import settings_digest, weights_digest

LINF = hf.Threat("linf", 0.06)


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    net, x, _ = models.digits(12)
    return net, x, models.answers(net, x)


def evaluate(model: Any, x: Tensor, y: Tensor, **more: Any):
    options = {"batch_size": 6, "precision": "original", **more}
    return hf.evaluate(model, x, y, LINF, [hf.attacks.APGD(steps=6)], **options)


# -- answers -------------------------------------------------------------------------------------


@dataclass
class Output:
    hidden: Tensor
    logits: Tensor


class Slotted:
    __slots__ = ("scores",)

    def __init__(self, scores: Tensor):
        self.scores = scores


Pair = namedtuple("Pair", "first second")

FORMS: dict[str, Any] = {
    "an object with logits": lambda z: Output(z[:, :3] * 0, z),
    "an object with slots": Slotted,
    "a dictionary": lambda z: {"loss": z.sum(), "logits": z},
    "a dictionary without logits": lambda z: {"features": z[:, :, None, None] * 0, "out": z},
    "a dictionary with a decoy": lambda z: {"embedding": z * 0, "logits": z},
    "a tuple": lambda z: (z, z * 0),
    "a tuple whose first is no logits": lambda z: (z.sum(), z[:, :, None] * 0, z),
    "a named tuple": lambda z: Pair(z, None),
    "nested": lambda z: {"aux": (z.sum(),), "main": {"logits": z}},
    "a grid of one point": lambda z: z[:, :, None, None],
    "a grid of one point, channels last": lambda z: z[:, None, None, :],
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("precision", ["original", "auto"])
def test_wrapped_answers_get_the_verdicts_of_the_plain_model(problem, kind, precision, capsys):
    net, x, y = problem
    plain = evaluate(net, x, y, precision=precision)
    result = evaluate(models.Wrapped(net, after=FORMS[kind]), x, y, precision=precision)
    assert torch.equal(result.broken, plain.broken) and 0 < plain.robust_accuracy < 1
    if precision == "original":
        assert torch.equal(result.adversarial, plain.adversarial)
    said = capsys.readouterr().err
    assert ("is taken" in said or "is flattened" in said) and said.count("note") == 1


def test_a_plain_model_is_told_nothing_and_is_its_own_copy(problem, capsys):
    net, x, _ = problem
    model = wrapped(net)
    assert torch.equal(model(x), net(x)) and model.traits.form == Form()
    assert type(copy.deepcopy(model)) is type(net) and not capsys.readouterr().err


def test_a_copy_is_asked_in_the_models_own_form(problem):
    net, x, _ = problem
    model = wrapped(models.Wrapped(net, after=lambda z: {"logits": z}))
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)


def test_one_logit_is_a_binary_classifier(problem, capsys):
    net, x, _y = problem
    difference = lambda z: z[:, 1] - z[:, 0]  # noqa: E731
    two = models.Wrapped(net, after=lambda z: torch.stack([z[:, 0] * 0, difference(z)], 1))
    labels = models.answers(two, x)
    expected = evaluate(two, x, labels)
    for after in (difference, lambda z: difference(z)[:, None], lambda z: {"z": difference(z)}):
        result = evaluate(models.Wrapped(net, after=after), x, labels)
        assert torch.equal(result.broken, expected.broken)
        assert torch.equal(result.adversarial, expected.adversarial)
        assert "a binary classifier, (0, z)" in capsys.readouterr().err
    one = evaluate(models.Wrapped(net, after=difference), x[:1], labels[:1])
    assert one.n == 1


def test_one_probability_may_be_said_to_be_one(problem, capsys):
    net, x, _ = problem
    z = lambda z: z[:, 1] - z[:, 0]  # noqa: E731
    model = models.Wrapped(net, after=lambda answer: z(answer).sigmoid())
    wrapped(model)(x)
    assert "are they probabilities?" in capsys.readouterr().err
    logits = adapted(model, Adaptation.checked(outputs="probabilities"))(x)
    assert torch.allclose(logits[:, 1] - logits[:, 0], z(net(x)), atol=1e-3)


def test_labels_are_no_logit(problem):
    net, x, y = problem
    for kind in (torch.int64, torch.float32):
        with pytest.raises(InputError, match=r"shape \(12,\).*outputs=labels"):
            evaluate(models.Wrapped(net, after=lambda z, k=kind: z.argmax(1).to(k)), x, y)


def test_an_answer_that_changes_its_form_is_one_line(problem):
    net, x, _ = problem
    calls = []

    def model(images: Tensor) -> Any:
        calls.append(1)
        return {"logits": net(images)} if len(calls) == 1 else {"other": net(images)}

    model = wrapped(model)
    model(x)
    with pytest.raises(InputError, match="answered 'logits' before, and a dict without it now"):
        model(x)


def test_no_logits_at_all_are_one_line(problem):
    net, x, y = problem
    for after in (lambda z: {"loss": z.sum()}, lambda z: {}, lambda z: "no", lambda z: (z[:3],)):
        with pytest.raises(InputError, match=r"returned a \w+, not a tensor"):
            evaluate(models.Wrapped(net, after=after), x, y)


def test_the_first_that_can_be_read_is_taken():
    z = torch.zeros(4, 1)
    assert recognised({"one": z, "rows": torch.zeros(4, 3)}, 4).path == ("rows",)
    assert recognised({"one": z}, 4) == Form(path=("one",), single=True)
    assert recognised({"maps": torch.zeros(4, 3, 2, 2)}, 4) == Form()


# -- layouts -------------------------------------------------------------------------------------


class ChannelsLast(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("precision", ["original", "auto"])
def test_channels_last_are_recognised(problem, precision, capsys):
    net, x, y = problem
    result = evaluate(ChannelsLast(net), x, y, precision=precision)
    expected = evaluate(net, x, y, precision=precision)
    assert torch.equal(result.broken, expected.broken)
    assert "takes images as (N, H, W, C)" in capsys.readouterr().err


def test_channels_last_in_batches_of_one_size(problem):
    net, x, _ = problem

    class Fixed(ChannelsLast):
        def forward(self, x: Tensor) -> Tensor:
            assert len(x) == 5 and x.shape[-1] == 1, "batch size must be 5"
            return super().forward(x)

    assert torch.allclose(wrapped(Fixed(net))(x), net(x), atol=1e-5)


def test_a_model_that_fails_either_way_says_so_in_its_own_words(problem):
    _, x, _ = problem
    model = nn.Sequential(nn.Conv2d(5, 2, 3), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(InputError, match="not initialised"):
        wrapped(model)
    model = wrapped(nn.Sequential(nn.Conv2d(5, 2, 3), nn.Flatten()))
    with pytest.raises(
        InputError, match=r"cannot answer images of shape \(12, 1, 8, 8\).*5 channels"
    ):
        model(x)
    assert model.traits.form == Form()


# -- what is said of a model ---------------------------------------------------------------------


def ask(model: Any, classes: Any = None, **said: Any) -> Any:
    return in_classes(adapted(model, Adaptation.checked(**said)), classes, None)


def test_mean_and_std_are_part_of_the_model(problem):
    net, x, _ = problem
    expected = net((x - 0.4) / 0.2)
    for mean, std in ((0.4, 0.2), ("0.4", "1/5"), ([0.4], (0.2,)), (torch.tensor([0.4]), "0.2")):
        assert torch.allclose(ask(net, mean=mean, std=std)(x), expected, atol=1e-5)
    colour = torch.rand(2, 3, 4, 4)
    flat = nn.Flatten()
    model = ask(flat, mean="0.1,0.2,0.3", std="0.5, 0.5, 0.5")
    mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)
    assert torch.allclose(model(colour), flat((colour - mean) / 0.5))
    x = colour.requires_grad_()
    assert torch.autograd.grad(model(x).sum(), x)[0].eq(2).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"mean": "123.7,116.3,103.5"}, "not in units of .0, 1.*123.7/255"),
        ({"std": 0}, "above 0"),
        ({"std": "a"}, "std: 'a' is not a number"),
        ({"mean": ""}, "mean must be a number"),
        ({"mean": -0.5}, "at least 0"),
        ({"mean": float("nan")}, "must be a number"),
        ({"input_size": "0"}, "input size"),
        ({"input_size": "8x8x8"}, "input size"),
        ({"input_size": "large"}, "input size"),
        ({"outputs": "labels"}, "logits or probabilities, not 'labels'; what an attacker sees"),
        ({"outputs": "logit"}, "logits or probabilities"),
        ({"dtype": "float12"}, "dtype 'float12' is unknown; did you mean"),
    ],
)
def test_what_cannot_be_said_is_one_line(said, message):
    with pytest.raises(InputError, match=message) as error:
        Adaptation.checked(**said)
    assert "\n" not in str(error.value)


def test_as_many_means_as_channels(problem):
    net, x, _ = problem
    with pytest.raises(InputError, match="mean has 3 values, and the images have 1 channels"):
        ask(net, mean="0.1,0.2,0.3")(x)


@pytest.mark.parametrize("size", ["8", 8, "8x8", (8, 8)])
def test_images_are_resized_inside_the_model(problem, size):
    net, _, _ = problem
    x = torch.rand(3, 1, 20, 24, requires_grad=True)
    model = ask(net, input_size=size)
    expected = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True)
    assert torch.allclose(model(x), net(expected), atol=1e-5)
    assert torch.autograd.grad(model(x).sum(), x)[0].abs().sum() > 0
    small = torch.rand(3, 1, 8, 8)
    assert torch.equal(model(small), net(small))


def test_resizing_and_cropping_follow_the_usual_rules():
    steps = Preprocessing(resize=8, crop=(6, 6))
    x = torch.rand(1, 3, 16, 30)
    whole = torch.nn.functional.interpolate(x, (8, 15), mode="bilinear", antialias=True)
    found = Adapted(nn.Flatten(), steps).prepared(x)
    assert torch.allclose(found, whole[..., 1:7, 4:10])
    tiny = Adapted(nn.Flatten(), Preprocessing(crop=(5, 6))).prepared(x[..., :4, :4])
    assert tiny.shape == (1, 3, 5, 6) and torch.equal(tiny[..., :4, 1:5], x[..., :4, :4])
    grey = Adapted(nn.Flatten(), Preprocessing(colour=True, bgr=True, scale=255.0)).prepared
    assert torch.equal(grey(x[:, :1]), x[:, :1].expand(-1, 3, -1, -1) * 255)
    assert torch.equal(grey(x), x.flip(1) * 255)


def test_probabilities_become_logits_of_the_same_verdicts(problem):
    net, x, y = problem
    model = models.Wrapped(net, after=lambda z: z.softmax(1))
    plain = evaluate(net, x, y)
    for result in (
        evaluate(ask(model, outputs="probabilities"), x, y),
        evaluate(model, x, y, outputs="probabilities"),
    ):
        assert result.standard_accuracy == 1
        assert (result.broken == plain.broken).float().mean() > 0.9
        assert not any(f.fired for f in result.flags if "probabilities" in f.name)
    bare = evaluate(model, x, y)
    assert any(f.fired for f in bare.flags if "probabilities" in f.name)


def test_a_probability_of_0_is_a_finite_logit():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True)
    z = ask(lambda x: x.flatten(1), outputs="probabilities")(p[:, :, None, None])
    assert torch.isfinite(z).all() and z[0, 1] < -87 and z[0, 0] == 0
    (slope,) = torch.autograd.grad(z.sum(), p)
    assert torch.isfinite(slope).all()


def test_what_is_no_probability_is_one_line(problem):
    net, x, _ = problem
    with pytest.raises(InputError, match=r"said to be probabilities, and it answers .* logits"):
        ask(net, outputs="probabilities")(x * 3)


def test_both_kinds_of_outputs_may_be_said_at_once(problem):
    net, x, y = problem
    model = models.Wrapped(net, after=lambda z: z.softmax(1))
    result = hf.evaluate(model, x, y, LINF, "square", outputs="probabilities,scores", queries=20)
    assert result.outputs == "scores" and result.queries.budget == 20
    for wrong in ("scores,labels", "logits,probabilities", "score", "probabilities,", ""):
        with pytest.raises(InputError, match="outputs must be"):
            evaluate(net, x, y, outputs=wrong)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", torch.float64, "float32"])
@pytest.mark.parametrize("precision", ["original", "auto"])
def test_the_model_is_run_in_a_number_format(problem, dtype, precision):
    net, x, y = problem
    name = str(dtype).removeprefix("torch.")
    other = copy.deepcopy(net)
    model = ask(other, dtype=dtype, mean=0.0, std=1.0)
    kind = getattr(torch, name)
    assert {p.dtype for p in other.parameters()} == {kind}
    logits = model(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, other(x.to(kind)).float())
    assert evaluate(model, x, y, precision=precision).standard_accuracy >= 0.9


def test_a_number_format_needs_weights():
    with pytest.raises(InputError, match="float16 is for a model whose weights are here"):
        ask(lambda x: x.flatten(1), dtype="float16")


def test_what_is_said_makes_another_model_of_it(problem):
    net, _, _ = problem
    said = [{}, {"mean": 0.1}, {"input_size": 9}, {"outputs": "probabilities"},
            {"classes": [1, 0, 2]}, {"classes": [0, 1, 2]}]  # fmt: skip
    made = [unwrapped(ask(net, **each)) for each in said]
    assert len({(weights_digest(m), settings_digest(m)) for m in made}) == len(said)


# -- classes -------------------------------------------------------------------------------------

IMAGENET = {str(i): [f"n{i:08d}", f"thing_{i}"] for i in range(20)}
MODEL = [f"thing {i}, synonym {i}" for i in range(20)]


@pytest.mark.parametrize(
    ("held", "outputs"),
    [
        ("3\n5\n", ((3,), (5,))),
        ("# a comment\n3, 4\n\n5 6\n", ((3, 4), (5, 6))),
        ("bird: 3 4\nfish: 5\n", ((5,), (3, 4))),
        ("bird\t3\nfish\t5\n", ((5,), (3,))),
        ('["thing_3", "thing 5"]', ((3,), (5,))),
        ('{"fish": 5, "bird": [3, "thing_4"]}', ((5,), (3, 4))),
        ('{"other": 1, "bird": 3, "fish": 5}', ((5,), (3,))),
        ('{"0": 5, "1": [3, 4]}', ((5,), (3, 4))),
        ('{"0": "thing 5", "1": "synonym 3"}', ((5,), (3,))),
        ("whale\nfish\nbird\n", ((1,), (2,))),
        ('{"0": "whale", "1": ["n00000001", "bird"], "2": "fish"}', ((2,), (1,))),
    ],
)
def test_classes_are_read_in_every_form(tmp_path: Path, held, outputs):
    file = tmp_path / ("classes.json" if held[0] in "[{" else "classes.txt")
    file.write_text(held)
    assert class_map(file, ["fish", "bird"], MODEL).outputs == outputs


def test_imagenets_own_file_finds_a_subset_by_synsets(tmp_path: Path):
    file = tmp_path / "imagenet_class_index.json"
    file.write_text(json.dumps(IMAGENET))
    assert class_map(file, ["n00000012", "n00000003"]).outputs == ((12,), (3,))
    lines = tmp_path / "synset_words.txt"
    lines.write_text("".join(f"n{i:08d} thing {i}, synonym\n" for i in range(20)))
    assert class_map(lines, ["n00000012", "thing_3"]).outputs == ((12,), (3,))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("", "empty"),
        ("{", "no JSON"),
        ('{"fish": 5}', "no output stands for 'bird'"),
        ('{"fish": 5, "bird": []}', "no output stands for class 'bird'"),
        ('{"fish": 5, "bird": 5}', "output 5 stands for both 'fish' and 'bird'"),
        ('{"fish": 5, "bird": -1}', "is -1, no number"),
        ('{"fish": 5, "bird": 1.5}', "is 1.5, no number"),
        ('{"fish": 5, "bird": "thing 77"}', "no output of the model"),
        ("1\n2\n3\n", "of 3 classes, the data has 2"),
        ("whale\nfish\n", "no output of the model"),
        ('{"0": 1, "2": 3}', "its numbers are not 0 to 1"),
        ("true", "a list or a dictionary"),
        ("bird: 1\nbird: 2\n", "twice"),
        ("[[1, [2]], 3]", "no number of an output"),
    ],
)
def test_classes_that_say_something_else_are_one_line(tmp_path: Path, held, message):
    file = tmp_path / ("classes.txt" if "\n" in held or not held else "classes.json")
    file.write_text(held)
    with pytest.raises(InputError, match=message) as error:
        class_map(file, ["fish", "bird"], MODEL)
    assert "\n" not in str(error.value) and str(file) in str(error.value)


def test_no_such_file_of_classes(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        class_map(tmp_path / "gone.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        class_map(tmp_path / "bytes.txt")


def test_several_outputs_of_one_class_are_summed_as_probabilities(problem):
    net, x, _ = problem
    model = ask(net, classes=[[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]])
    p, whole = model(x).softmax(1), net(x).softmax(1)
    expected = torch.stack([whole[:, ::2].sum(1), whole[:, 1::2].sum(1)], 1)
    assert torch.allclose(p, expected, atol=1e-5)
    uneven = ask(net, classes=[[0], [1, 2, 3]])(x)
    assert torch.allclose(uneven[:, 0], net(x)[:, 0]) and torch.isfinite(uneven).all()
    subset = ask(net, classes=[7, 3])
    assert torch.equal(subset(x), net(x)[:, [7, 3]])


def test_an_output_that_is_not_there_is_one_line(problem):
    net, x, _ = problem
    with pytest.raises(InputError, match="output 12 is named, and the model has 10"):
        ask(net, classes=[0, 12])(x)


def test_the_verdicts_of_a_subset_are_those_of_the_rows(problem):
    net, x, y = problem
    kept = (y == 1) | (y == 7)
    x, y = x[kept], (y[kept] == 7).long()
    result = evaluate(ask(net, classes=[1, 7]), x, y)
    expected = evaluate(models.Wrapped(net, after=lambda z: z[:, [1, 7]]), x, y)
    assert torch.equal(result.broken, expected.broken) and len(y)


# -- on the command line -------------------------------------------------------------------------

CODE = """
import torch
from holdfast.models.zoo import zoo_folders
from holdfast.models.small_cnn import SmallCNN
from holdfast.models.registry import build

class Answer:
    def __init__(self, logits):
        self.logits = logits

class Net(torch.nn.Module):
    # Trained for images of 16 x 16 in [-1, 1], colour, channels last; 20 outputs, probabilities.
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(3 * 8 * 8, 20)

    def forward(self, x):
        assert x.shape[1:] == (16, 16, 1), "wrong shape"
        x = torch.nn.functional.avg_pool2d(x.permute(0, 3, 1, 2).expand(-1, 3, -1, -1), 2)
        return Answer(self.head(x.flatten(1)).softmax(1))
"""


@pytest.fixture
def command(tmp_path: Path):
    (tmp_path / "net.py").write_text(CODE)
    (tmp_path / "classes.txt").write_text("".join(f"{2 * i}, {2 * i + 1}\n" for i in range(10)))
    return {
        "model": f"{tmp_path / 'net.py'}:Net",
        "data": "digits",
        "limit": 6,
        "mean": "0.5",
        "std": "0.5",
        "input_size": "16",
        "outputs": "probabilities",
        "classes": str(tmp_path / "classes.txt"),
        "dtype": "float64",
        "quiet": True,
    }


def reference(tmp_path: Path, x: Tensor) -> Tensor:
    net = hf.load(f"{tmp_path / 'net.py'}:Net").inner
    x = torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    p = net.double()(((x - 0.5) / 0.5).double().permute(0, 2, 3, 1)).logits
    return p.unflatten(1, (10, 2)).sum(2)


def test_evaluate_takes_them_all(command, tmp_path: Path, capsys):
    from holdfast.cli.evaluate import Options, run

    result = run(Options(out=tmp_path / "run", suite="fgsm", curve=False, **command))
    said = capsys.readouterr().err
    digits = hf.data.load("digits").test
    x, y = torch.from_numpy(digits.images[:6]).float() / 255, torch.from_numpy(digits.labels[:6])
    right = reference(tmp_path, x).argmax(1) == y
    assert result.standard_accuracy == pytest.approx(float(right.float().mean()))
    lines = list(hf.read(tmp_path / "run").model.adaptation)
    for part in ("resized to 16×16", "mean 0.5, std 0.5", "log p", "log-sum-exp", "run in float64",
                 "'logits' is taken", "(N, H, W, C)"):  # fmt: skip
        assert any(part in line for line in lines), part
        assert part in said, part
    assert hf.read(tmp_path / "run").model.architecture == "Net"


@pytest.mark.parametrize("verb", ["judge", "certify"])
def test_judge_and_certify_take_them_all(command, tmp_path: Path, verb):
    import importlib

    from holdfast.cli.evaluate import Options as Searched
    from holdfast.cli.evaluate import run as search

    module = importlib.import_module(f"holdfast.cli.{verb}")
    if verb == "judge":
        search(Searched(out=tmp_path / "run", suite="fgsm", curve=False, **command))
        more = {"adversarial": tmp_path / "run"}
    else:
        more = {"sigma": 0.1, "n0": 5, "n": 20, "radius": ["0.1"]}
    module.run(module.Options(out=tmp_path / verb, **command, **more))
    lines = hf.read(tmp_path / verb).model.adaptation
    assert any("log-sum-exp" in line for line in lines) and len(lines) >= 6


def test_uncertainty_takes_them_all(command, tmp_path: Path, monkeypatch):
    from holdfast.cli import uncertainty as verb
    from holdfast.uncertainty.run import figures, measurements

    for module, name, value in (
        (measurements, "STEPS", 1), (measurements, "SET_STEPS", 1),
        (measurements, "CURVE_IMAGES", 2), (measurements, "CURVE_STEPS", 1),
        (measurements, "OOD_ATTACKED", 2), (measurements, "ROBUST_STEPS", 1),
        (verb, "OUT_OF_DISTRIBUTION", 4), (verb, "TRAINING", 40), (figures, "RESAMPLES", 5),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    options = {**command, "dtype": None, "attack": "fgsm", "calibration": 300, "eps": "0.1"}
    verb.run(verb.Options(out=tmp_path / "run", **options))
    lines = hf.read(tmp_path / "run").model.adaptation
    assert any("log-sum-exp" in line for line in lines)
    assert any("'logits' is taken" in line for line in lines)


def test_weights_that_normalise_themselves_take_no_mean(tmp_path: Path):
    with pytest.raises(InputError, match="normalises its images itself"):
        hf.load("cifar10-linf-slim", mean=0.5)
    model = hf.load("cifar10-linf-slim", classes=[3, 5], dtype="float64")
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 2)
    assert model.card["classes"] == ["cat", "dog"] and adaptation_lines(model)


def test_what_a_file_of_code_answers_is_unwrapped_by_load_too(command):
    model = hf.load(command["model"])
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 20)
