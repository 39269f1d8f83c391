"""Models as people have them: whatever they do, the verdict is that of the plain model, or one line
says why there is none."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
from torch import Tensor, nn

import holdfast as hf
from holdfast.attacks import APGD, FAB, FMN, PGD, SPSA, HopSkipJump, Square
from holdfast.certification.smoothing import Smoothed
from holdfast.defences import Jpeg
from holdfast.errors import InputError
from holdfast.models.mixture import Mixture
from holdfast.models.small_cnn import SmallCNN
from holdfast.models.wrapper import NO_PREDICTION, predicted, unwrapped, wrapped
from holdfast.uncertainty.scores import LogitScore

SUITE = [APGD(steps=8), Square(queries=20)]
LINF = hf.Threat("linf", 0.06)


@pytest.fixture(scope="module")
def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A net that reads digits, and images of which one is a clean mistake."""
    net, x, _ = models.digits(20)
    y = models.answers(net, x)
    y[3] = (y[3] + 1) % 10
    return net, x, y


@pytest.fixture(scope="module")
def plainly(problem):
    net, x, y = problem
    return hf.evaluate(net, x, y, LINF, SUITE, batch_size=8, precision="original")


def evaluate(model: Any, x: Tensor, y: Tensor, threat: Any = LINF, suite: Any = SUITE, **more: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"batch_size": 8, "precision": "original", **more}
        return hf.evaluate(model, x, y, threat, suite, **options)


def fired(result) -> set[str]:
    return {flag.name for flag in result.flags if flag.fired}


def rows(result) -> list[tuple[Any, ...]]:
    return [(v.broken, v.attack, v.clean_prediction, v.forwards) for v in result.verdicts]


# -- models that write to their images ----------------------------------------------------------


def in_place(net: nn.Module) -> nn.Module:
    return models.Wrapped(net, lambda x: x.mul_(2).div_(2))


def through_data(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        answer = net(x)
        x.data.fill_(0.5)
        return answer

    return model


def through_numpy(net: nn.Module) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        answer = net(x)
        x.detach().numpy()[...] = -7
        return answer

    return model


@pytest.mark.parametrize("writes", [in_place, through_data, through_numpy])
@pytest.mark.parametrize("precision", ["original", "auto"])
def test_a_model_that_writes_to_its_images_gets_the_same_verdict(
    problem, plainly, writes, precision
):
    net, x, y = problem
    before = x.clone()
    result = evaluate(writes(net), x, y, precision=precision, curve=True)
    assert torch.equal(x, before)
    assert torch.equal(result.broken, plainly.broken) and 0 < plainly.robust_accuracy < 0.95
    assert fired(result) == {"writes-to-its-input"}
    if precision == "original":
        assert rows(result) == rows(plainly)
        assert torch.equal(result.adversarial, plainly.adversarial)
    assert "writes-to-its-input" not in fired(plainly)


@pytest.mark.parametrize("writes", [in_place, through_data, through_numpy])
@pytest.mark.parametrize("attack", [PGD(steps=5), FAB(steps=5), Square(queries=5)])
def test_an_attack_alone_spares_the_images_too(problem, writes, attack):
    net, x, y = problem
    before, expected = x.clone(), attack(net, x, y, LINF)
    assert torch.equal(attack(writes(net), x, y, LINF), expected)
    assert torch.equal(x, before)


def test_parts_of_other_models_may_write_too(problem):
    net, x, y = problem
    before = x.clone()
    mixed = Mixture(in_place(net), net)
    assert torch.equal(mixed(x), Mixture(net, net)(x))
    assert torch.equal(
        Smoothed(in_place(net), 0.1).predict(x[:4], n=20), Smoothed(net, 0.1).predict(x[:4], n=20)
    )
    defended = evaluate(Jpeg(in_place(net), quality=90), x, y)
    assert rows(defended) == rows(evaluate(Jpeg(net, quality=90), x, y))
    assert "writes-to-its-input" in fired(defended)
    score = LogitScore(in_place(net))
    assert torch.equal(score(x), LogitScore(net)(x))
    assert torch.equal(x, before)


# -- models that answer nothing -----------------------------------------------------------------


def off_the_grid(x: Tensor) -> Tensor:
    """Which images were touched: those of the data have values k/255."""
    return ((x * 255 - (x * 255).round()).abs() > 1e-3).flatten(1).any(1)


SILENT: dict[str, Callable[[Tensor], Tensor]] = {
    "all NaN": lambda z: torch.full_like(z, torch.nan),
    "one NaN": lambda z: z.index_fill(1, torch.tensor([9]), torch.nan),
    "the answer infinite": lambda z: z.scatter(1, z.argmax(1, keepdim=True), torch.inf),
    "all infinite": lambda z: torch.full_like(z, torch.inf),
    "all minus infinite": lambda z: torch.full_like(z, -torch.inf),
}


def silent(net: nn.Module, kind: str) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        z = net(x)
        return torch.where(off_the_grid(x)[:, None], SILENT[kind](z), z)

    return model


@pytest.mark.parametrize("kind", SILENT)
def test_no_answer_inside_the_ball_is_a_success_of_the_attacker(problem, kind):
    net, x, y = problem
    result = evaluate(silent(net, kind), x, y)
    assert result.standard_accuracy == 19 / 20 and result.robust_accuracy == 0
    assert result.unanswered == 19 and fired(result) == {"answers-nothing"}
    (flag,) = (f for f in result.flags if f.name == "answers-nothing")
    assert flag.figures == {"images": 19, "n": 20} and "19 of 20" in flag.detail
    told = result.to_dict()
    assert told["unanswered"] == 19
    for row in result.verdicts:
        assert (row.adversarial_prediction == NO_PREDICTION) == (row.attack not in ("clean", ""))
        if row.adversarial_prediction == NO_PREDICTION:
            assert row.adversarial_confidence == 0 and row.distance <= LINF.eps + 1e-6


@pytest.mark.parametrize("kind", ["all NaN", "the answer infinite"])
@pytest.mark.parametrize(
    "attack", [PGD(steps=3), APGD(steps=3), Square(queries=5), FAB(steps=5), SPSA(steps=1)]
)
def test_an_attack_alone_hands_back_the_point_without_an_answer(problem, kind, attack):
    net, x, y = problem
    model = silent(net, kind)
    found = attack(model, x[:4], y[:4], LINF)
    with torch.no_grad():
        z = model(found)
    assert (~torch.isfinite(z).all(1))[:3].all() and LINF.contains(found, x[:4]).all()


@pytest.mark.parametrize("attack", [FAB, FMN, HopSkipJump])
def test_the_closest_point_is_sought_on_beyond_a_point_without_an_answer(problem, attack):
    net, x, y = problem

    def model(z: Tensor) -> Tensor:  # silent from 0.1 on, in L∞
        far = (z - x[: len(z)]).flatten(1).abs().amax(1) > 0.1
        return torch.where(far[:, None], torch.nan, net(z))

    steps = {"queries": 400} if attack is HopSkipJump else {"steps": 60}
    threat = hf.Threat("linf", 0.3)
    found = attack(stop_inside=False, **steps)(model, x[:1], y[:1], threat)
    assert torch.isfinite(found).all()
    plain = attack(stop_inside=False, **steps)(net, x[:1], y[:1], threat)
    distance, other = (float(threat.distance(p, x[:1])) for p in (found, plain))
    assert 0 < distance <= max(0.13, 1.2 * other)


def test_a_clean_image_without_an_answer_is_an_error_that_names_it(problem):
    net, x, y = problem

    def model(z: Tensor) -> Tensor:
        blank = (z == x[5]).flatten(1).all(1)
        return torch.where(blank[:, None], torch.nan, net(z))

    with pytest.raises(InputError, match="NaN or infinite logits for image 5"):
        evaluate(model, x, y)
    with pytest.raises(InputError, match="NaN or infinite logits for image 5"):
        PGD(steps=1)(model, x, y, LINF)


def test_a_smoothed_model_counts_no_vote_where_there_is_no_answer(problem):
    net, x, _ = problem
    smoothed = Smoothed(silent(net, "all NaN"), 0.1)
    assert (smoothed.counts(x[:2], 8, "test") == 0).all()
    assert (smoothed.predict(x[:2], n=8) == -1).all()
    assert (smoothed.certify(x[:2], n0=4, n=8).prediction == -1).all()


def test_answered_says_nothing_where_there_is_nothing():
    z = torch.tensor([[1.0, 2.0], [torch.nan, 0.0], [torch.nan, torch.nan]])
    assert predicted(z).tolist() == [1, NO_PREDICTION, NO_PREDICTION]
    assert predicted(z[:, None]).shape == (3, 1)


# -- logits of −∞ -------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [1, 8])
@pytest.mark.parametrize(
    "suite", [SUITE, [APGD(steps=8, loss="dlr", targeted=True)], [FAB(steps=8)]]
)
def test_masked_classes_get_the_verdict_of_very_small_logits(problem, masked, suite):
    net, x, y = problem
    mask = torch.zeros(10)
    mask[10 - masked :] = -torch.inf
    tiny = mask.clamp_min(-1e4)
    result = evaluate(models.Wrapped(net, after=lambda z: z + mask), x, y, suite=suite)
    expected = evaluate(models.Wrapped(net, after=lambda z: z + tiny), x, y, suite=suite)
    assert result.standard_accuracy == expected.standard_accuracy
    assert torch.equal(result.broken, expected.broken)
    assert result.unanswered == 0 and "answers-nothing" not in fired(result)


def test_masked_logits_are_finite_below_the_others_and_stop_no_gradient():
    def model(x: Tensor) -> Tensor:
        z = x.flatten(1)[:, :4] * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return z.masked_fill(torch.tensor([True, False, False, True]), -torch.inf)

    x = torch.rand(3, 1, 2, 2).requires_grad_()
    z = wrapped(model)(x)
    assert (
        torch.isfinite(z).all() and (z[:, [0, 3]] < z[:, [1, 2]].amin(1, keepdim=True) - 900).all()
    )
    (slope,) = torch.autograd.grad(z.sum(), x)
    assert slope.flatten(1).tolist() == [[0.0, 2.0, 3.0, 0.0]] * 3


# -- what models are made of --------------------------------------------------------------------


def trace(net: nn.Module) -> nn.Module:
    return torch.jit.trace(net, torch.rand(2, 1, 8, 8))


def in_inference_mode(net: nn.Module) -> nn.Module:
    with torch.inference_mode():
        made = SmallCNN(width=8).eval()
        made.load_state_dict(net.state_dict())
    assert next(made.parameters()).is_inference()
    return made


def one_size(size: int, message: str) -> Callable[[nn.Module], Callable[[Tensor], Tensor]]:
    def made(net: nn.Module) -> Callable[[Tensor], Tensor]:
        def model(x: Tensor) -> Tensor:
            assert len(x) == size, message
            return net(x)

        return model

    return made


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    "traced": trace,
    "frozen": lambda net: torch.jit.freeze(trace(net)),
    "scripted": lambda net: torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()),
    "exported, of one batch size": lambda net: torch.export.export(net, (torch.rand(6, 1, 8, 8),)),
    "an exported module": lambda net: torch.export.export(net, (torch.rand(6, 1, 8, 8),)).module(),
    "exported, of any batch size": lambda net: torch.export.export(
        net, (torch.rand(6, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    ),
    "made in inference mode": in_inference_mode,
    "of batches of 7": one_size(7, "batch size must be 7"),
    "of batches of 64": one_size(64, "expected 64 images"),
    "of batches of 1": one_size(1, "one at a time"),
    "of batches of 9, without a hint": one_size(9, "not today"),
    "of float64": lambda net: copy.deepcopy(net).double(),
    "frozen, of float64": lambda net: torch.jit.freeze(
        torch.jit.trace(copy.deepcopy(net).double(), torch.rand(2, 1, 8, 8).double())
    ),
    "squeezing": lambda net: models.Wrapped(net, after=lambda z: z.squeeze()),
    "of a reused buffer": lambda net: Reused(net),
}


class Reused(nn.Module):
    """Answers in one and the same tensor every time, as graphs on accelerators do."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.out = net, {}

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(x)
        if answer.requires_grad:
            return answer
        return self.out.setdefault(len(x), torch.empty_like(answer)).copy_(answer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["original", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gets_the_verdict_of_the_plain_one(problem, plainly, kind, precision):
    net, x, y = problem
    model = KINDS[kind](net)
    if kind == "scripted":
        x = x[:8]
        with torch.no_grad():
            y = model(x).argmax(1)
        expected = evaluate(lambda z: model(z), x, y)
    else:
        expected = plainly
    result = evaluate(model, x, y, precision=precision)
    assert torch.equal(result.broken, expected.broken)
    assert result.standard_accuracy == expected.standard_accuracy
    assert fired(result) <= {"more-logits-than-classes"}
    if precision == "original" and "float64" not in kind:
        assert rows(result) == rows(expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["original", "auto"])
def test_models_of_half_precision_are_cast_around(problem, dtype, precision):
    net, x, _ = problem
    half = copy.deepcopy(net).to(dtype)
    y = predicted(half(x.to(dtype)))
    result = evaluate(half, x, y, precision=precision)
    expected = evaluate(lambda z: half(z.to(dtype)).float(), x, y)
    assert result.standard_accuracy == 1 and not fired(result)
    assert torch.equal(result.broken, predicted(half(result.adversarial.to(dtype))) != y)
    if precision == "original":
        assert rows(result) == rows(expected)


@pytest.mark.parametrize("inside", [False, True])
def test_a_default_type_of_float64_changes_nothing(problem, plainly, inside):
    net, x, y = problem

    def model(z: Tensor) -> Tensor:
        assert torch.zeros(1).dtype == torch.float64  # its own surroundings
        return net(z)

    torch.set_default_dtype(torch.float64)
    try:
        result = evaluate(model if inside else net, x, y)
        alone = APGD(steps=8)(net, x, y, LINF)
        made = SmallCNN(width=8).eval()
        assert next(made.parameters()).dtype == torch.float64
        assert evaluate(made, x[:4], y[:4]).n == 4
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert rows(result) == rows(plainly) and torch.equal(result.adversarial, plainly.adversarial)
    assert torch.equal(alone, APGD(steps=8)(net, x, y, LINF)) and alone.dtype == torch.float32


def test_a_default_device_changes_nothing(problem, plainly):
    net, x, y = problem
    torch.set_default_device("meta")
    try:
        assert rows(evaluate(net, x, y)) == rows(plainly)
    finally:
        torch.set_default_device(None)


def test_a_model_that_fails_on_a_batch_of_one_is_asked_for_two(problem):
    net, x, y = problem
    model = models.Wrapped(net, after=lambda z: z.squeeze())
    for n in (1, 9):
        assert rows(evaluate(model, x[:n], y[:n])) == rows(evaluate(net, x[:n], y[:n]))


def test_healthy_models_are_asked_as_they_are():
    seen = []

    def model(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)[:, :3] * 1.0

    x = torch.rand(5, 1, 2, 2)
    z = wrapped(model)(x)
    assert torch.equal(z, x.flatten(1)[:, :3]) and len(seen) == 1
    assert torch.equal(seen[0], x) and seen[0].data_ptr() != x.data_ptr()
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    assert wrapped(wrapped(net)) is not None and unwrapped(wrapped(net)) is net
    defended = Jpeg(net, quality=50)
    assert str(unwrapped(wrapped(defended))) == str(defended)
    assert type(copy.deepcopy(wrapped(net))) is nn.Sequential


# -- answers that depend on the batch -----------------------------------------------------------


def batch_norm() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(1, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def in_train_mode() -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    return lambda x: net.train()(x)


def of_the_neighbour(net: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: net(0.9 * x + 0.1 * x.roll(1, 0))


DEPENDENT: dict[str, Callable[[nn.Module], Any]] = {
    "batch norm without statistics": lambda net: batch_norm(),
    "left in train mode": lambda net: in_train_mode(),
    "images normalised over the batch": lambda net: lambda x: net(x - x.mean() + 0.5),
    "the image before": of_the_neighbour,
    "the first of the batch": lambda net: lambda x: net(x + 0.05 * x[:1]),
    "its place in the batch": lambda net: (
        lambda x: net(x) + torch.linspace(0, 0.5, len(x))[:, None] * torch.eye(10)[0]
    ),
}


@pytest.mark.parametrize("kind", DEPENDENT)
def test_answers_that_depend_on_the_batch_are_flagged(problem, kind):
    net, x, y = problem
    model = DEPENDENT[kind](net)
    result = evaluate(model, x, y)
    (flag,) = (f for f in result.flags if f.name == "answers-depend-on-batch")
    assert flag.fired and "batch_size" in flag.detail and "order" in flag.detail
    assert max(flag.figures["alone"], flag.figures["reversed"]) > 0


def test_random_defences_do_not_depend_on_the_batch(problem):
    net, x, y = problem
    noisy = hf.defences.Noise(net, sigma=0.1)
    result = evaluate(noisy, x[:4], y[:4], suite=[PGD(steps=2)])
    (flag,) = (f for f in result.flags if f.name == "answers-depend-on-batch")
    assert not flag.fired and "alone" in flag.figures
    drawing = evaluate(lambda z: net(z + 0.1 * torch.randn_like(z)), x[:4], y[:4])
    (flag,) = (f for f in drawing.flags if f.name == "answers-depend-on-batch")
    assert not flag.fired and "cannot be told" in flag.detail


# -- models that fail ---------------------------------------------------------------------------

FAILURES = [
    AssertionError("Input height (8) doesn't match model (224)"),
    KeyError("pixel_values"),
    IndexError("Dimension out of range"),
    NotImplementedError("not on this device"),
    ZeroDivisionError("division by zero"),
    StopIteration("no more"),
    ValueError("two\nlines"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (20x64 and 128x10)"),
    OSError("weights are gone"),
    Exception("x" * 2000),
]


def failing(error: Exception) -> Callable[[Tensor], Tensor]:
    def model(x: Tensor) -> Tensor:
        raise error

    return model


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_whatever_a_model_raises_is_one_line_with_its_own_sentence(problem, error):
    _, x, y = problem
    calls = {
        "evaluate": lambda: evaluate(failing(error), x, y),
        "attack": lambda: PGD(steps=1)(failing(error), x, y, LINF),
        "smoothed": lambda: Smoothed(failing(error), 0.1).predict(x[:2], n=4),
        "score": lambda: LogitScore(failing(error))(x),
    }
    for call in calls.values():
        with pytest.raises(InputError) as caught:
            call()
        told = str(caught.value)
        assert "\n" not in told and len(told) < 500
        assert type(error).__name__ in told and "(N" not in told
        assert re.search(r"images of shape \(\d+, 1, 8, 8\) on cpu", told), told
        assert " ".join(str(error.args[0]).split())[:100] in told


def test_a_failure_in_the_middle_of_a_search_is_one_line_too(problem):
    net, x, y = problem
    calls = 0

    def model(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise KeyError("gone")
        return net(z)

    with pytest.raises(InputError, match=r"cannot answer .* KeyError: 'gone'"):
        evaluate(model, x, y)


def test_a_backward_pass_that_fails_is_no_gradient(problem):
    net, x, y = problem

    class NoBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise KeyError("no backward pass")

    result = evaluate(models.Wrapped(net, NoBackward.apply), x[:4], y[:4])
    assert "gradients-vanish" in fired(result)


def test_lazy_layers_are_named(problem):
    _, x, y = problem
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
    with pytest.raises(InputError, match=r"'1\.weight' is not initialised"):
        evaluate(lazy, x, y)


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "a list of rows": (lambda z: list(z), "returned a list, not a tensor"),
    "an array": (lambda z: z.detach().numpy(), "returned a ndarray, not a tensor"),
    "nothing": (lambda z: None, "returned a NoneType, not a tensor"),
    "one logit for ten classes": (lambda z: z[:, :1], "only 2 logits|2 classes"),
    "labels": (lambda z: z.argmax(1), r"shape \(20,\) for 20 images.*outputs=labels"),
    "maps": (lambda z: z[..., None, None].expand(-1, -1, 2, 2), r"shape \(20, 10, 2, 2\) for 20"),
    "half of the images": (lambda z: z[: len(z) // 2], r"shape \(10, 10\) for 20 images"),
    "complex numbers": (lambda z: z.to(torch.complex64), "logits must be"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_another_kind_are_one_line(problem, kind):
    net, x, y = problem
    after, message = ANSWERS[kind]
    with pytest.raises(InputError, match=message):
        evaluate(lambda z: after(net(z)), x, y)


# -- logits and classes -------------------------------------------------------------------------


def test_more_logits_than_classes_are_said(problem):
    net, x, y = problem
    two = evaluate(net, x, y % 2)
    (flag,) = (f for f in two.flags if f.name == "more-logits-than-classes")
    assert flag.fired and "10 classes, the labels name 2" in flag.detail
    named = evaluate(net, x[:3], y[:3] % 2, described={"classes": ["cat", "dog"]})
    assert "more-logits-than-classes" in fired(named)
    for few in (1, 5):  # by chance, some classes have no image
        assert "more-logits-than-classes" not in fired(evaluate(net, x[:few], y[:few]))


def test_it_is_said_at_the_start(problem, capsys):
    net, x, y = problem
    evaluate(net, x, y % 2, progress=True)
    told = capsys.readouterr().err
    assert "the labels name 2" in told.splitlines()[0]


def test_fewer_logits_than_classes_are_an_error(problem):
    net, x, y = problem
    with pytest.raises(InputError, match="the model has 5 classes"):
        evaluate(lambda z: net(z)[:, :5], x, y)
    with pytest.raises(InputError, match="answers 10 classes, the data has 12"):
        evaluate(net, x, y, described={"classes": [str(k) for k in range(12)]})
