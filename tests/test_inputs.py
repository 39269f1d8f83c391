"""What callers hand over: taken where the meaning is plain, else one line with the right call."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import holdfast as hf
from holdfast.attacks import APGD, FGSM, PGD, Square, Stage, Suite
from holdfast.errors import InputError
from holdfast.inputs import checked_data, checked_device, checked_labels, checked_threat
from holdfast.parsing import parse_number

LINF = hf.Threat("linf", 0.06)


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that reads digits, images whose values are k/255, and labels."""
    net, x, _ = models.digits(6)
    x = (x * 255).round() / 255
    return net, x, models.answers(net, x)


def evaluate(model: Any, *given: Any, **more: Any):
    return hf.evaluate(model, *given, **{"suite": FGSM(), "precision": "original", **more})


# -- images and labels --------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, x: Tensor, y: Tensor):
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


class Stream(IterableDataset):
    def __init__(self, x: Tensor, y: Tensor):
        self.pairs = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self.pairs)


class Named(Pairs):
    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        return {"pixel_values": self.x[i], "label": int(self.y[i]), "path": "a.png"}


FORMS = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.numpy()),
    "arrays of another byte order": lambda x, y: (x.numpy().astype(">f4"), y.numpy().astype(">i8")),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "lists of tensors": lambda x, y: (list(x), list(y)),
    "tuples of arrays": lambda x, y: (tuple(x.numpy()), tuple(y.numpy())),
    "8-bit images": lambda x, y: ((x * 255).round().byte(), y),
    "8-bit arrays": lambda x, y: ((x * 255).round().byte().numpy(), y.numpy()),
    "float64": lambda x, y: (x.double(), y),
    "images that want gradients": lambda x, y: (x.clone().requires_grad_(), y),
    "int32 labels": lambda x, y: (x, y.int()),
    "8-bit labels": lambda x, y: (x, y.byte()),
    "uint16 labels": lambda x, y: (x, y.numpy().astype(np.uint16)),
    "labels that are whole floats": lambda x, y: (x, y.double()),
    "one-hot labels": lambda x, y: (x, nn.functional.one_hot(y, 10)),
    "one-hot floats": lambda x, y: (x, nn.functional.one_hot(y, 10).float().numpy()),
    "a column of labels": lambda x, y: (x, y[:, None]),
    "a loader": lambda x, y: (DataLoader(TensorDataset(x, y), batch_size=4), None),
    "a loader of dicts": lambda x, y: (DataLoader(Named(x, y), batch_size=4), None),
    "a data set": lambda x, y: (Pairs(x, y), None),
    "tensors in a data set": lambda x, y: (TensorDataset(x, y), None),
    "a stream": lambda x, y: (Stream(x, y), None),
    "a split": lambda x, y: (split(x, y), None),
}


def split(x: Tensor, y: Tensor) -> Any:
    names = np.array([f"{i}.png" for i in range(len(x))])
    return hf.data.Split((x * 255).round().byte().numpy(), names, y.numpy(), "digits")


@pytest.mark.parametrize("form", FORMS)
def test_images_and_labels_are_taken_in_the_forms_that_people_have_them_in(problem, form):
    net, x, y = problem
    images, labels = FORMS[form](x, y)
    found, classes = checked_data(images, labels)
    assert found.dtype == torch.float32 and classes.dtype == torch.int64
    assert torch.equal(found, x) and torch.equal(classes, y) and not found.requires_grad
    expected = evaluate(net, x, y, LINF)
    result = evaluate(net, images, labels, LINF)
    assert torch.equal(result.adversarial, expected.adversarial)
    assert result.verdicts == expected.verdicts
    assert torch.equal(FGSM()(net, images, labels, LINF), FGSM()(net, x, y, LINF))


def test_images_that_bring_their_labels_need_none(problem):
    net, x, y = problem
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    expected = evaluate(net, x, y, LINF).verdicts
    assert evaluate(net, loader, LINF).verdicts == expected
    assert evaluate(net, loader, threat=LINF).verdicts == expected


BAD = {
    "labels are missing": lambda x, y: (x, None),
    "brings its own labels": lambda x, y: (DataLoader(TensorDataset(x, y)), y),
    r"images must have shape \(N, C, H, W\)": lambda x, y: (x[0], y[:1]),
    r"look like \(N, H, W, C\): permute": lambda x, y: (torch.rand(6, 8, 8, 3), y),
    "images are int64: give floats": lambda x, y: ((255 * x).long(), y),
    "images are bool": lambda x, y: (x > 0.5, y),
    "images are complex64": lambda x, y: (x.to(torch.complex64), y),
    "has values outside .*: divide by 255": lambda x, y: (255 * x, y),
    "normalisation belongs inside the model": lambda x, y: ((x - 0.5) / 0.25, y),
    "images must be a tensor, an array or a list, not a str": lambda x, y: ("images/", y),
    "images must be a tensor, an array or a list, not a NoneType": lambda x, y: (None, y),
    "images must be a tensor, an array or a list, not an int": lambda x, y: (3, y),
    "images cannot be read as one array": lambda x, y: ([x[0], x[1][:, :4]], y[:2]),
    "images .*(unequal|inhomogeneous)": lambda x, y: ([[1.0], [1.0, 2.0]], y[:2]),
    "images is empty": lambda x, y: (x[:0], y[:0]),
    r"images must have shape .*not \(0,\)": lambda x, y: ([], []),
    "give one of its splits, as in data.test": lambda x, y: (hf.data.load("digits"), None),
    "labels must be whole numbers": lambda x, y: (x, y + 0.25),
    "labels must be whole numbers, ": lambda x, y: (x, y * math.nan),
    "labels hold": lambda x, y: (x, [str(k) for k in y.tolist()]),
    "labels must be a tensor.* not a str": lambda x, y: (x, "labels.csv"),
    "one-hot rows of one 1": lambda x, y: (x, torch.full((6, 10), 0.1).round()),
    r"labels have shape \(6, 10\)": lambda x, y: (x, torch.ones(6, 10, dtype=torch.int64)),
    r"labels must have shape \(6,\), not \(5,\)": lambda x, y: (x, y[:5]),
    r"labels\[0\] is -1": lambda x, y: (x, y * 0 - 1),
    r"labels\[2\] is 10, out of range; the model has 10": lambda x, y: (x, [1, 2, 10, 3, 4, 5]),
    "the DataLoader gives images without labels": lambda x, y: (DataLoader(x), None),
    "the TensorDataset gives images without labels": lambda x, y: (TensorDataset(x), None),
    "images and labels wanted": lambda x, y: (DataLoader([{"a": 1}]), None),
    "the DataLoader cannot be read: .*transform=ToTensor": lambda x, y: (
        DataLoader([(object(), 1)]),
        None,
    ),
    "the DataLoader is empty": lambda x, y: (DataLoader(TensorDataset(x[:0], y[:0])), None),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_images_or_labels_is_one_line(problem, message):
    net, x, y = problem
    images, labels = BAD[message](x, y)
    for call in (evaluate, FGSM()):
        with pytest.raises(InputError, match=message.strip()) as caught:
            call(net, images, labels, LINF)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# -- models -------------------------------------------------------------------------------------


class Forest:
    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        return x


NO_MODELS: dict[str, Any] = {
    r"holdfast.load\('cifar10-linf-slim'\)": "cifar10-linf-slim",
    r"holdfast.load\('runs/a'\)": Path("runs/a"),
    "a list: give one model a call": [nn.Identity(), nn.Identity()],
    "a tuple: give one model a call": (nn.Identity(),),
    "the class Linear, not one of its instances": nn.Linear,
    "an OrderedDict, as of weights": nn.Linear(2, 2).state_dict(),
    "a Forest, which cannot be called: wrap it: lambda x: .*predict_proba": Forest(),
    "a NoneType, which cannot be called": None,
    "a Tensor, which cannot be called": torch.ones(3),
}


@pytest.mark.parametrize("message", NO_MODELS)
def test_what_is_no_model_is_one_line_with_the_right_call(problem, message):
    _, x, y = problem
    for call in (evaluate, FGSM()):
        with pytest.raises(InputError, match=message):
            call(NO_MODELS[message], x, y, LINF)


# -- threat models ------------------------------------------------------------------------------


def test_a_threat_model_may_be_a_pair(problem):
    net, x, y = problem
    expected = evaluate(net, x, y, LINF).verdicts
    for threat in (("linf", 0.06), ["linf", "0.06"], LINF.describe(), ("L∞", 0.06)):
        assert evaluate(net, x, y, threat).verdicts == expected
        assert torch.equal(FGSM()(net, x, y, threat), FGSM()(net, x, y, LINF))
    assert checked_threat(LINF) is LINF


@pytest.mark.parametrize(
    "threat",
    ["linf", None, 8 / 255, ("linf",), ("linf", 1, 2), {"radius": 1}, (0.1, 0.2), object()],
)
def test_another_threat_model_is_one_line_with_the_right_call(problem, threat):
    net, x, y = problem
    for call in (evaluate, FGSM()):
        with pytest.raises(InputError, match=r'holdfast.Threat\("linf", 8 / 255\)'):
            call(net, x, y, threat)


@pytest.mark.parametrize(
    ("eps", "hint"),
    [(8, "did you mean 8/255"), (255, "did you mean 255/255"), (1.5, "0 to 1"), ("16", "16/255")],
)
def test_a_radius_in_256_steps_is_refused_with_a_hint(eps, hint):
    with pytest.raises(InputError, match=hint):
        hf.Threat("linf", eps)


@pytest.mark.parametrize(
    "eps",
    [True, False, math.nan, math.inf, -0.1, 0, "8/0", "8/255/2", "", "a", None, [], 1j, b"8",
     10**400, "9" * 5000, "nan", "-1/255", "1e999"],
    ids=lambda eps: repr(eps)[:20],
)  # fmt: skip
def test_a_radius_that_is_no_number_above_0_is_one_line(eps):
    with pytest.raises(InputError) as caught:
        hf.Threat("linf", eps)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_radii_may_be_written_in_many_ways():
    for eps in ("8/255", " 8 / 255 ", np.float32(8 / 255), torch.tensor(8 / 255), Fraction(8, 255)):
        assert hf.Threat("linf", eps).eps == pytest.approx(8 / 255)  # type: ignore[arg-type]
    assert parse_number("0.5/3") == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("spelt", "norm"),
    [("Linf", "linf"), ("L_inf", "linf"), ("inf", "linf"), ("L∞", "linf"), (" l2 ", "l2"),
     ("L-1", "l1"), ("2", "l2"), ("Spatial", "spatial"), (math.inf, "linf"), (2, "l2")],
)  # fmt: skip
def test_norms_may_be_spelt_in_many_ways(spelt, norm):
    assert hf.Threat(spelt, 1 if norm != "linf" else 0.1).norm == norm


def test_a_threat_model_the_wrong_way_round_is_put_right():
    with pytest.raises(InputError, match=r"Threat\('linf', 0.03\)"):
        hf.Threat(0.03, "linf")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the norms are linf"):
        hf.Threat("l3", 0.1)


WHOLE = {  # for images of 1 × 8 × 8: from where on the ball holds the whole box
    "linf": (1.0, 0.99),
    "l2": (8.0, 7.9),
    "l1": (64.0, 63.0),
    "l0": (64.0, 63.0),
    "spatial": (3.0, 2.5),
}


@pytest.mark.parametrize("norm", WHOLE)
def test_a_ball_that_holds_the_whole_box_is_refused(problem, norm):
    net, x, y = problem
    whole, less = WHOLE[norm]
    threat = hf.Threat(norm, whole, degrees=30)
    with pytest.raises(InputError, match=r"image there is|every image out of sight"):
        hf.evaluate(net, x, y, threat, [Square(queries=1)] if norm in Square.norms else "spatial"
                    if norm == "spatial" else "patch")  # fmt: skip
    hf.Threat(norm, less).check_reach(x)
    threat.times(1).check_reach(x)  # what checks and curves make for themselves is let through
    assert threat.times(3).eps == 3 * whole


def test_whole_turns_and_parts_of_a_component_are_refused():
    with pytest.raises(InputError, match="more than all there are"):
        hf.Threat("spatial", 8)
    assert hf.Threat("spatial", 1, degrees=180).degrees == 180
    with pytest.raises(InputError, match="a number of components, at least 1"):
        hf.Threat("l0", 8 / 255).check_reach(torch.rand(1, 1, 8, 8))
    with pytest.raises(InputError):
        hf.Threat("spatial", 1, degrees="thirty")  # type: ignore[arg-type]


def test_checks_and_curves_still_look_beyond_the_box(problem):
    net, x, y = problem
    result = evaluate(net, x, y, ("linf", 0.5), curve=True)
    (flag,) = (f for f in result.flags if f.name == "stands-at-huge-eps")
    assert flag.figures["eps"] == 8.0 and not flag.fired
    assert result.curve is not None


# -- suites and attacks -------------------------------------------------------------------------


def test_a_list_of_attacks_is_a_suite(problem):
    net, x, y = problem
    stages = (Stage(PGD(steps=2)), Stage(Square(queries=5), restarts=2))
    expected = evaluate(net, x, y, LINF, suite=Suite("both", stages))
    for suite in (stages, list(stages), [PGD(steps=2), stages[1]]):
        result = evaluate(net, x, y, LINF, suite=suite)
        assert result.verdicts == expected.verdicts and result.suite == "pgd, square"


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (APGD, r"APGD is an attack's class: write APGD\(…\)"),
        ([APGD()], None),
        ([APGD(), Square], r"Square in the list is an attack's class: write Square\(…\)"),
        (["swift", "autoattack"], "'swift' is a suite's name in a list: give one name"),
        ([], "has no attacks"),
        ([3], "holds a int|holds an int"),
        (None, "the suite is a NoneType"),
        (3, "the suite is a int|the suite is an int"),
        ({"swift"}, "the suite is a set"),
        ("swfit", "suite 'swfit' is unknown.*swift"),
    ],
)
def test_another_suite_is_one_line_with_the_right_call(problem, suite, message):
    net, x, y = problem
    if message is None:
        assert evaluate(net, x, y, LINF, suite=suite).suite == "apgd-ce"
        return
    with pytest.raises(InputError, match=message):
        evaluate(net, x, y, LINF, suite=suite)


def test_targets_are_for_targeted_attacks(problem):
    net, x, y = problem
    wrong = (y + 1) % 10
    for attack in (PGD(steps=1), APGD(steps=1), FGSM(), Square(queries=1)):
        with pytest.raises(InputError, match=f"{attack.name} .*takes no targets"):
            attack(net, x, y, LINF, targets=wrong)
    targeted = APGD(steps=2, loss="dlr", targeted=True)
    found = targeted(net, x, y, LINF, targets=wrong)
    assert torch.equal(targeted(net, x, y, LINF, targets=wrong.tolist()), found)  # type: ignore[arg-type]
    for targets, message in (
        (y, r"targets\[0\] is the image's own label"),
        (wrong[:3], r"targets must have shape \(6,\)"),
        (wrong * 0 - 1, r"targets\[0\] is -1"),
        (wrong * 0 + 10, r"targets\[0\] is 10, out of range"),
        (wrong + 0.5, "targets must be whole numbers"),
    ):
        with pytest.raises(InputError, match=message):
            targeted(net, x, y, LINF, targets=targets)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "8", None])
def test_a_batch_size_is_a_whole_number_of_at_least_1(problem, size):
    net, x, y = problem
    with pytest.raises(InputError, match="batch_size must be"):
        FGSM()(net, x, y, LINF, batch_size=size)
    if size is not None:
        with pytest.raises(InputError, match="batch_size must be"):
            evaluate(net, x, y, LINF, batch_size=size)


# -- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device",
    ["hpu", "xla", "mtia", "vulkan", "ipu", "fpga", "abacus", "cpu:x", ""],
)
def test_a_device_that_is_not_there_is_one_short_line(problem, device):
    net, x, y = problem
    for call in (lambda: checked_device(device), lambda: evaluate(net, x, y, LINF, device=device)):
        with pytest.raises(InputError, match="cannot be used") as caught:
            call()
        told = str(caught.value)
        assert "\n" not in told and len(told) < 200 and "this machine has cpu" in told


def test_labels_of_one_image_are_no_one_hot_row():
    assert checked_labels([[3]], 1).tolist() == [3]
    assert checked_labels([[0, 1]], 1).tolist() == [1]
