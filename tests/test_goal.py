"""Targeted success: the target class must be predicted, and no other mistake counts."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from command_line import command, small_checkpoint
from linear_classifiers import Linear, linear

import holdfast as hf
from holdfast import draws
from holdfast.attacks import Attack, Items, Oracle, attack_classes, library_attack, run
from holdfast.attacks.goal import KINDS, chosen_targets, nearest_of_class
from holdfast.attacks.losses import climbed, cross_entropy, margin
from holdfast.data.given import read_targets
from holdfast.errors import InputError
from holdfast.threat import Threat


def sharp() -> Linear:
    """Logits so far apart that the cross-entropy, too, knows which class is the rival."""
    model = linear(4, "free", count=6, seed=1)
    return replace(model, weights=100 * model.weights, bias=100 * model.bias)


def goals_for(model: Linear) -> torch.Tensor:
    """Wrong classes, other than the closest for most images."""
    rows = torch.arange(len(model.labels))
    return (model.labels + 1 + rows % (len(model.bias) - 1)) % len(model.bias)


# What lets an attack come so close, and how much larger than the smallest ball may be. (For one of
# the images the closest point lies on an edge, where the target ties with two classes.)
SETTINGS: dict[str, tuple[dict, float]] = {
    "apgd": ({}, 1.05),
    "carlini-wagner": ({"steps": 150, "length": 0.03}, 1.15),
    "ddn": ({"loss": "margin", "steps": 200}, 1.1),
    "deepfool": ({}, 1.25),
    "fab": ({}, 1.25),
    "fgsm": ({"loss": "margin"}, 2.5),
    "fmn": ({}, 1.25),
    "hop-skip-jump": ({"queries": 700}, 1.6),
    "pgd": ({"steps": 60, "loss": "margin"}, 1.15),
    "rays": ({"queries": 600, "tolerance": 1e-5}, 1.3),
    "spsa": ({"steps": 30, "samples": 16}, 1.6),
    "square": ({"queries": 500}, 1.3),
    "swift": ({}, 1.1),
}
CASES = [
    (name, norm)
    for name, kind in attack_classes().items()
    for norm in ("linf", "l2")
    # A square of 3 × 3 pixels is half of a small image: in L2 it does not come close.
    if norm in kind.norms and (name, norm) != ("square", "l2")
]


def searched(attack: Attack, model: Linear, goals: torch.Tensor, threat: Threat, eps):
    start = nearest_of_class(model.images, goals, model.images, model.labels, threat)
    seeds = draws.item_seeds(0, torch.arange(len(goals)))
    items = Items(model.images, model.labels, goals, eps, seeds, start, goals)
    return run(attack, Oracle(model), items, threat)


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_the_smallest_ball_that_holds_the_target_is_broken_and_no_smaller_one(name, norm):
    model = sharp()
    goals = goals_for(model)
    settings, factor = SETTINGS[name]
    attack, threat = attack_classes()[name](**settings), Threat(norm, 0.5)
    closest = torch.tensor(model.targeted_optimum(norm, goals)).float()
    larger = searched(attack, model, goals, threat, closest * factor)
    assert (larger.score < 0).all(), larger.score
    assert torch.equal(model(larger.best).argmax(1), goals)
    assert threat.contains(larger.best, model.images, closest * factor).all()
    assert not (searched(attack, model, goals, threat, closest * 0.98).score < 0).any()


def test_the_optimum_of_the_tests_is_one():
    """Two classes have one boundary, whose distance is known in closed form."""
    model = linear(2, "edges", count=4)
    for norm in ("linf", "l2", "l1"):
        ours = model.targeted_optimum(norm, 1 - model.labels)
        np.testing.assert_allclose(ours, model.optimum(norm), rtol=1e-3)


def suites() -> dict[str, str | hf.attacks.Suite]:
    """The stages of known suites with smaller budgets, and a whole one."""
    attacks = hf.attacks
    autoattack = (
        attacks.Stage(attacks.APGD(steps=20)),
        attacks.Stage(attacks.APGD(steps=20, loss="dlr", targeted=True), targets=3),
        attacks.Stage(attacks.FAB(steps=20, targeted=True), targets=3),
        attacks.Stage(attacks.Square(queries=100)),
    )
    minimum = (attacks.Stage(attacks.FMN(steps=100, stop_inside=False)),)
    return {
        "swift": "swift",
        "pgd": "pgd",
        "autoattack": attacks.Suite("autoattack", autoattack),
        "minimum": attacks.Suite("minimum", minimum, closest=True),
    }


@pytest.mark.parametrize("suite", suites())
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_is_the_share_whose_target_lies_outside_the_ball(suite, norm):
    model = sharp()
    goals = goals_for(model)
    optimum = np.sort(model.targeted_optimum(norm, goals))
    eps = float((optimum[2] + optimum[3]) / 2)  # three inside, three outside
    assert optimum[2] < 0.9 * eps and optimum[3] > 1.02 * eps
    threat = Threat(norm, eps)
    asked = model, model.images, model.labels, threat, suites()[suite]
    result = hf.evaluate(*asked, goal="target", targets=goals)
    assert result.standard_accuracy == 1 and result.robust_accuracy == 0.5
    assert result.goal == "target" and result.targets == "own"
    assert result.target_reached == 0.5 and "target reached" in repr(result)
    assert result.suite == f"{suite}, target own"
    assert [verdict.target for verdict in result.verdicts] == goals.tolist()
    reached = model(result.adversarial).argmax(1) == goals
    inside = threat.contains(result.adversarial, model.images)
    assert torch.equal(reached & inside, result.broken)
    # Any mistake is easier than the one that is wanted.
    assert hf.evaluate(*asked).robust_accuracy < 0.5


def test_losses_turn_towards_the_goal():
    logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 1.0, 0.0]])
    labels, goals = torch.tensor([0, 0]), torch.tensor([-1, 2])
    assert margin(logits, labels, goals).tolist() == [2.0, 3.0]
    nothing = torch.full((2, 3), torch.nan)
    assert margin(nothing, labels, goals).tolist() == [-torch.inf, torch.inf]
    climbs = climbed(cross_entropy, logits, labels, goals, goals)
    expected = logits.log_softmax(1)
    torch.testing.assert_close(climbs, torch.stack([-expected[0, 0], expected[1, 2]]))


def test_dlr_has_a_slope_where_the_goal_is_third():
    from holdfast.attacks.losses import difference_of_logits_ratio

    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]], requires_grad=True)
    one = torch.tensor([0])
    climbed(difference_of_logits_ratio, logits, one, one * 0 - 1, one + 2).sum().backward()
    assert logits.grad is not None and float(logits.grad[0, 2]) > 0.1


# -- images that are special ----------------------------------------------------------------------


def test_an_image_whose_answer_is_the_target_is_reached_without_an_attack():
    """And one that is misclassified as something else is not: it is attacked like any other."""
    model = sharp()
    labels = model.labels.clone()
    labels[:2] = (labels[:2] + 1) % 4  # clean mistakes
    goals = (labels + 1) % 4
    goals[0] = model.labels[0]  # predicted already
    goals[1] = (model.labels[1] + 1 + int((model.labels[1] + 1) % 4 == labels[1])) % 4
    tiny = Threat("linf", 1e-6)
    result = hf.evaluate(model, model.images, labels, tiny, "apgd", goal="target", targets=goals)
    assert result.standard_accuracy == pytest.approx(4 / 6)
    assert result.broken.tolist() == [True, *[False] * 5]
    assert result.verdicts[0].attack == "clean" and result.verdicts[1].attack == ""
    assert result.robust_accuracy == pytest.approx(5 / 6)  # above the standard accuracy
    alone = hf.attacks.APGD(steps=5)(
        model, model.images, labels, tiny, targets=goals, goal="target"
    )
    assert torch.equal(alone[0], model.images[0])


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_targets_are_wrong_classes_that_belong_to_the_image(kind):
    model = linear(5, "edges", count=8)
    threat = Threat("linf", 0.01)
    asked = {"goal": "target", "targets": kind, "suite": "fgsm"}
    result = hf.evaluate(model, model.images, model.labels, threat, batch_size=3, **asked)
    targets = torch.tensor([verdict.target for verdict in result.verdicts])
    assert (targets != model.labels).all() and (targets >= 0).all()
    logits = model(model.images).scatter(1, model.labels[:, None], torch.nan)
    if kind == "least-likely":
        assert torch.equal(targets, logits.nan_to_num(torch.inf).argmin(1))
    elif kind == "most-likely":
        assert torch.equal(targets, logits.nan_to_num(-torch.inf).argmax(1))
    else:
        assert len(targets.unique()) > 2
        other = hf.evaluate(model, model.images, model.labels, threat, seed=1, **asked)
        assert [verdict.target for verdict in other.verdicts] != targets.tolist()
    again = hf.evaluate(model, model.images[:4], model.labels[:4], threat, batch_size=1, **asked)
    assert [verdict.target for verdict in again.verdicts] == targets[:4].tolist()


def test_classes_that_a_model_masks_are_no_targets():
    logits = torch.tensor([[2.0, 1.0, 0.0, -2000.0]])
    zero = torch.tensor([0])
    assert int(chosen_targets("least-likely", logits, zero, zero)) == 2
    for seed in range(20):
        assert int(chosen_targets("random", logits, zero, zero + seed)) in (1, 2)


class Hazy(torch.nn.Module):
    """Noise on the logits: a model that draws random numbers."""

    def __init__(self, model: Linear, spread: float):
        super().__init__()
        self.model, self.spread = model, spread

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return logits + self.spread * torch.randn_like(logits)


def test_of_a_random_model_most_draws_must_answer_the_target():
    model = sharp()
    goals = goals_for(model)
    hazy = Hazy(model, 0.02)
    optimum = np.sort(model.targeted_optimum("linf", goals))
    eps = float(optimum[2] * 1.5)
    inside = int((optimum < eps).sum())
    result = hf.evaluate(
        hazy, model.images, model.labels, ("linf", eps), hf.attacks.APGD(steps=20, loss="margin"),
        goal="target", targets=goals,
    )  # fmt: skip
    assert result.draws and 3 <= int(result.broken.sum()) <= inside
    answers = torch.stack([hazy(result.adversarial).argmax(1) for _ in range(50)])
    share = (answers == goals).float().mean(0)
    assert (share[result.broken] > 0.5).all() and (share[~result.broken] < 0.6).all()


# -- attacks alone, of others, of one's own -------------------------------------------------------


def test_one_attack_alone_reaches_its_targets():
    model = sharp()
    goals = goals_for(model)
    for attack in (
        hf.attacks.APGD(),
        hf.attacks.PGD(loss="margin"),
        hf.attacks.Square(queries=300),
    ):
        found = attack(
            model, model.images, model.labels, ("linf", 0.3), goal="target", targets=goals
        )
        assert torch.equal(model(found).argmax(1), goals), attack
    chosen = hf.attacks.FAB()(
        model, model.images, model.labels, ("linf", 0.3), goal="target", targets="least-likely"
    )
    assert torch.equal(model(chosen).argmax(1), model(model.images).argmin(1))


def test_an_attack_of_torchattacks_reaches_its_targets():
    pytest.importorskip("torchattacks")
    model, x, y = models.digits(40)
    goals = (y + 1) % 10
    attack = library_attack("torchattacks:PGD:steps=20")
    assert attack.reaches
    found = attack(model, x, y, ("linf", 0.6), goal="target", targets=goals)
    reached = (model(found).argmax(1) == goals).float().mean()
    missed = attack(model, x, y, ("linf", 0.6))
    assert reached > 0.8 > (model(missed).argmax(1) == goals).float().mean()
    assert not library_attack("torchattacks:GN").reaches


class Blind(Attack):
    """An attack of somebody who thought of mistakes alone."""

    name = "blind"
    norms = frozenset({"linf"})
    needs_gradient = False

    def step(self, oracle, state, threat):
        state = state.observe(oracle.logits(state.point))
        return state.replace(
            iteration=state.iteration + 1, finished=torch.ones_like(state.finished)
        )


def test_an_attack_that_knows_no_target_is_left_out_or_refused():
    model = sharp()
    asked = model, model.images, model.labels, Threat("linf", 0.01)
    aim = {"goal": "target", "targets": goals_for(model)}
    with pytest.raises(InputError, match="blind has no form that reaches a given class"):
        Blind()(*asked, **aim)
    with pytest.raises(InputError, match="blind has no form that reaches a given class"):
        hf.evaluate(*asked, Blind(), **aim)
    result = hf.evaluate(*asked, [Blind(), hf.attacks.FGSM()], **aim)
    outcomes = {cost.name: cost.outcome for cost in result.attacks}
    assert outcomes["blind"] == "not run: has no form that reaches a given class"
    assert outcomes["fgsm"] == "ran"


@pytest.mark.parametrize(
    ("goal", "targets", "says"),
    [
        ("target", None, "goal 'target' needs targets"),
        ("targt", "random", "did you mean 'target'"),
        ("untargeted", "random", "say goal 'target' as well"),
        ("target", "randm", "did you mean 'random'"),
        ("target", [0, 1], r"targets must have shape \(6,\)"),
        ("target", [9] * 6, r"targets\[0\] is 9, out of range"),
        ("target", [-1] * 6, r"targets\[0\] is -1, out of range"),
        ("target", [0.5] * 6, "whole numbers"),
        ("target", "LABELS", r"targets\[0\] is the image's own label \(and so are 5 others\)"),
        ("target", {"a": 1}, "targets must be a tensor"),
    ],
)
def test_bad_goals_are_one_line(goal, targets, says):
    model = sharp()
    targets = model.labels if targets == "LABELS" else targets
    asked = model, model.images, model.labels, Threat("linf", 0.01)
    with pytest.raises(InputError, match=says) as error:
        hf.evaluate(*asked, "fgsm", goal=goal, targets=targets)
    assert "\n" not in str(error.value)
    if goal != "untargeted":
        with pytest.raises(InputError, match=says):
            hf.attacks.FGSM()(*asked, goal=goal, targets=targets)


# -- runs -----------------------------------------------------------------------------------------


def test_a_run_belongs_to_its_goal(tmp_path):
    model = sharp()
    asked = model, model.images, model.labels, Threat("linf", 0.01)
    options = {"suite": "fgsm", "goal": "target"}
    first = hf.evaluate(*asked, run=tmp_path / "run", targets="random", **options)
    again = hf.evaluate(*asked, run=tmp_path / "run", targets="random", **options)
    assert again.finished == first.finished and again.identity == first.identity
    for other in ({"targets": "least-likely"}, {"targets": goals_for(model)}):
        with pytest.raises(InputError, match="holds another run"):
            hf.evaluate(*asked, run=tmp_path / "run", **options, **other)
    with pytest.raises(InputError, match="holds another run"):
        hf.evaluate(*asked, run=tmp_path / "run", suite="fgsm")
    held = json.loads((tmp_path / "run/result.json").read_text())
    assert held["goal"] == "target" and held["targets"] == "random"
    rows = list(csv.DictReader((tmp_path / "run/verdicts.csv").open()))
    assert [int(row["target"]) for row in rows] == [v.target for v in first.verdicts]
    page = hf.write_report([tmp_path / "run"], tmp_path / "page.html").read_text()
    assert f"Target reached on {first.target_reached:.1%}".replace("%", "") in page.replace(
        " %", "%"
    ).replace("%", "")


def test_a_killed_run_goes_on_towards_the_same_targets(tmp_path, monkeypatch):
    model = sharp()
    goals = goals_for(model)
    eps = float(np.median(model.targeted_optimum("linf", goals)))
    asked = model, model.images, model.labels, Threat("linf", eps)
    options = {"suite": suites()["autoattack"], "goal": "target", "targets": goals, "batch_size": 2}
    whole = hf.evaluate(*asked, run=tmp_path / "whole", **options)

    from holdfast.search import Search

    steps = Search._steps

    def killed(self, number):
        yield from steps(self, number)
        if number == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_steps", killed)
        with pytest.raises(KeyboardInterrupt):
            hf.evaluate(*asked, run=tmp_path / "killed", **options)
    result = hf.evaluate(*asked, run=tmp_path / "killed", **options)
    assert result.identity == whole.identity
    assert torch.equal(result.broken, whole.broken)
    assert torch.equal(result.adversarial, whole.adversarial)


# -- files of targets, and the command line -------------------------------------------------------

NAMES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("t.txt", "1\n2\n0\n", [1, 2, 0]),
        ("t.txt", "dog\nowl\ncat\nowl\n", [1, 2, 0]),
        ("t.csv", "target\n1\n2\n0\n", [1, 2, 0]),
        ("t.csv", "index,label,target\n2,0,0\n0,0,1\n1,0,2\n7,0,1\n", [1, 2, 0]),
    ],
)
def test_targets_are_read_from_text(tmp_path, name, text, wanted):
    (tmp_path / name).write_text(text)
    assert read_targets(tmp_path / name, 3, NAMES).tolist() == wanted


def test_targets_are_read_from_arrays(tmp_path):
    np.save(tmp_path / "t.npy", np.array([1, 2, 0], np.uint8))
    np.savez(tmp_path / "t.npz", index=[2, 0, 1], targets=[0, 1, 2])
    for name in ("t.npy", "t.npz"):
        assert read_targets(tmp_path / name, 3, NAMES).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.txt", "1\n2\n", "2 targets for 3 images"),
        ("t.txt", "", "is empty"),
        ("t.csv", "target\nbird\n", "'bird' is no class"),
        ("t.txt", "doog\nowl\ncat\n", "line 1: 'doog' is no class; did you mean 'dog'"),
        ("t.csv", "a,b\n1,2\n", "no column 'target'"),
        ("t.csv", "index,target\n0,1\n1,2\n", "no target for image 2"),
        ("t.csv", "index,target\n0\n", "line 2 has 1 cells, not 2"),
        ("t.json", "[1, 2, 0]", "read from .csv, .txt, .npy and .npz"),
        ("t.npy", "no array", "damaged"),
        ("t.npz", "no archive", "damaged, or no .npz file"),
    ],
)
def test_bad_files_of_targets_are_one_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says) as error:
        read_targets(tmp_path / name, 3, NAMES)
    assert str(tmp_path / name) in str(error.value)


def test_targets_are_never_unpickled(tmp_path):
    np.save(tmp_path / "t.npy", np.array([{"a": 1}] * 3, object), allow_pickle=True)
    np.savez(tmp_path / "t.npz", targets=np.array([print] * 3, object))
    for name in ("t.npy", "t.npz"):
        with pytest.raises(InputError, match="pickled objects, which are never loaded"):
            read_targets(tmp_path / name, 3, NAMES)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "model")


def test_the_command_line_takes_a_goal(tmp_path, trained, monkeypatch, capsys):
    labels = hf.data.load("digits").test.labels[:20]
    (tmp_path / "t.csv").write_text("target\n" + "".join(f"{(y + 3) % 10}\n" for y in labels))
    for number, targets in enumerate(("least-likely", "random", tmp_path / "t.csv")):
        out = tmp_path / f"run-{number}"
        line = ("evaluate", trained, "--data", "digits", "--suite", "fgsm", "--limit", 20)
        line = (*line, "--goal", "target", "--targets", targets, "--no-curve", "--out", out)
        assert command(monkeypatch, *line) == 0
        record = hf.read(out)
        said = capsys.readouterr().out
        assert f"target reached on  {record.target_reached:7.2%}" in said
        assert record.targets == ("own" if number == 2 else targets)
    rows = csv.DictReader((tmp_path / "run-2/verdicts.csv").open())
    assert [int(row["target"]) for row in rows] == [(int(y) + 3) % 10 for y in labels]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--goal", "target"], "goal 'target' needs targets"),
        (["--targets", "random"], "say goal 'target' as well"),
        (["--goal", "targte", "--targets", "random"], "did you mean 'target'"),
        (["--goal", "target", "--targets", "no.csv"], "no.csv"),
        (["--goal", "target", "--targets", "ransom"], "neither least-likely"),
    ],
)
def test_a_bad_goal_on_the_command_line_is_one_line(
    tmp_path, trained, monkeypatch, capsys, options, says
):
    line = ("evaluate", trained, "--data", "digits", "--limit", 5, "--out", tmp_path / "out")
    assert command(monkeypatch, *line, *options) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
