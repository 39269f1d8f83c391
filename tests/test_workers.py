"""Several processes share a run: the same result as one alone, whoever dies, and one line of error.

The processes are forked from one that has imported everything (this file, run as a program), and
join each other as torchrun's do. One test goes the whole way through torchrun.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from teams import team

import holdfast as hf
from holdfast import distributed as workers
from holdfast.attacks import APGD, PGD, Square, Stage, Suite
from holdfast.evaluation import Evaluation
from holdfast.search import scheduler as search
from holdfast.threat import Threat

ROOT = Path(__file__).resolve().parents[1]
SUITE = Suite(
    "quick",
    (
        Stage(PGD(steps=2), restarts=2),
        Stage(APGD(steps=6, loss="dlr", targeted=True), targets=2),
        Stage(Square(queries=10)),
    ),
)
DEATHS = 6


def problem(n: int = 21):
    model, x = models.Net(classes=5, seed=2, scale=12.0), models.images(n, seed=2)
    labels = models.answers(model, x)
    labels[2] = (labels[2] + 1) % 5
    return model, x, labels, Threat("linf", 0.02)


# -- the program: forks workers, and writes down what each of them says -------------------------


def evaluated(out: Path | None, model: Any = None, suite: Any = SUITE) -> dict[str, Any]:
    own, x, labels, threat = problem()
    result = hf.evaluate(
        model or own, x, labels, threat, suite, batch_size=8, precision="original", run=out
    )
    rows = [asdict(verdict) for verdict in result.verdicts]
    summary = result.to_dict()
    told = {key: summary[key] for key in ("n", "robust_accuracy", "flags", "identity", "suite")}
    told["attacks"] = [(attack.name, attack.broken) for attack in result.attacks]
    told["points"] = result.adversarial.numpy().tobytes().hex()
    return {"rows": rows, **told}


def spoilt(x: torch.Tensor) -> torch.Tensor:
    """No number for image 5, which worker 1 of 2 looks at."""
    model, images, _, _ = problem()
    hit = (x == images[5]).flatten(1).all(1)[:, None]
    several = len(x) > 2  # a probe of all images goes well
    return torch.where(hit & (several & (len(x) < 20)), torch.nan, model(x))


def files(out: Path) -> dict[str, Any]:
    held = json.loads((out / "result.json").read_text())
    return {
        "names": sorted(path.name for path in out.iterdir()),
        "verdicts": (out / "verdicts.csv").read_text(),
        "robust_accuracy": held["robust_accuracy"],
    }


def exchanged(rank: int) -> dict[str, Any]:
    """What this worker holds after exchanges with the others, one of them large."""
    with workers.joined() as me:
        first = me.share((rank, {"a": [1.5, None]}))
        large = me.share(bytes(5_000_000) if rank == 0 else b"")
        return {"shared": repr(first), "large": len(large), "gathered": me.gather(rank * 10)}


def vanished(folder: Path, rank: int) -> None:
    """Worker 1 is gone in the middle, without a word; nobody kills the other one."""
    workers.SILENCE_SECONDS, workers.BEAT_SECONDS = 1.0, 0.1
    with workers.joined() as me:
        if rank == 1:
            (folder / "said-1").write_text("null")
            os._exit(0)
        me.meet()


def scenarios(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    told: dict[str, Any] = {}

    def begin(name: str, size: int) -> None:
        told[name] = team(folder, size, lambda rank: evaluated(folder / name))
        told[name + " files"] = files(folder / name)

    begin("alone", 1)
    begin("two", 2)
    told["three without a folder"] = team(folder, 3, lambda rank: evaluated(None))
    told["more than images"] = team(
        folder, 3, lambda rank: hf.evaluate(*few(), SUITE, batch_size=8, precision="original").n
    )
    told["two at once in a row"] = team(
        folder, 2, lambda rank: [evaluated(None)["points"] for _ in range(2)]
    )
    told["bad image"] = team(folder, 2, lambda rank: evaluated(folder / "bad", spoilt))
    told["other seeds"] = team(
        folder, 2, lambda rank: evaluated(None, suite=Suite("own", (Stage(PGD(steps=2 + rank)),)))
    )

    told["exchange"] = team(folder, 3, exchanged)
    told["vanished"] = team(folder, 2, lambda rank: vanished(folder, rank))

    # Killed again and again, every time with another number of workers, each keeping its items.
    chance, kills, sizes = random.Random(0), 0, []
    search.CHECKPOINT_SECONDS = 0.0
    search.CHECKPOINT_SHARE = 1e9
    while kills < DEATHS:
        size = 1 + kills % 3
        doomed = chance.randrange(size)
        last = chance.randrange(2, 8)
        done = team(
            folder, size, lambda rank: evaluated(folder / "killed"),
            lambda rank, d=doomed, k=last: k if rank == d else None,
        )  # fmt: skip
        if done is not None:
            break
        kills += 1
        sizes.append(size)
    told["kills"] = kills
    begin("killed", 2)
    return told


def few():
    model, x, labels, threat = problem()
    return model, x[:2], labels[:2], threat


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / "told.json").write_text(json.dumps(scenarios(out)))


# -- the tests --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("workers")
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=570,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


def test_the_problem_needs_every_stage(told):
    (alone,) = told["alone"]
    broken = {row["attack"] for row in alone["result"]["rows"]}
    assert {"", "clean", "pgd"} < broken and len(broken) >= 4


@pytest.mark.parametrize("name", ["two", "three without a folder", "killed"])
def test_every_worker_returns_what_one_alone_does(told, name):
    (alone,) = told["alone"]
    for said in told[name]:
        assert said.get("error") is None
        assert said["result"] == alone["result"]


@pytest.mark.parametrize("name", ["two", "killed"])
def test_the_run_folder_is_that_of_one_alone(told, name):
    assert told[f"{name} files"] == told["alone files"]
    assert "journal.sqlite" in told["alone files"]["names"]


def test_the_workers_were_killed_in_the_middle(told):
    assert told["kills"] >= 4


def test_more_workers_than_images(told):
    assert [said.get("result") for said in told["more than images"]] == [2, 2, 2]


def test_several_evaluations_in_one_program(told):
    (alone,) = told["alone"]
    for said in told["two at once in a row"]:
        assert said["result"] == [alone["result"]["points"]] * 2


def test_one_workers_error_ends_all_and_is_said_once(told):
    said = told["bad image"]
    assert sorted(worker["silent"] for worker in said) == [False, True]
    assert all("NaN or infinite logits for image 5" in worker["error"] for worker in said)
    assert all("InputError" in worker["error"] for worker in said)


def test_workers_that_were_asked_for_different_things_are_refused(told):
    said = told["other seeds"]
    assert all("worker" in worker["error"] for worker in said)
    assert sorted(worker["silent"] for worker in said) == [False, True]


def test_objects_reach_the_others_as_they_are(told):
    for rank, said in enumerate(told["exchange"]):
        held = said["result"]
        assert held["shared"] == repr((0, {"a": [1.5, None]})) and held["large"] == 5_000_000
        assert held["gathered"] == ([0, 10, 20] if rank == 0 else [])


def test_a_worker_that_vanishes_is_missed(told):
    assert "worker 1 fell silent" in told["vanished"][0]["error"]


def test_a_packed_result_is_the_same():
    model, x, labels, threat = problem(6)
    result = hf.evaluate(model, x, labels, threat, SUITE, precision="original", curve=True)
    again = Evaluation.from_bytes(result.to_bytes())
    assert again.to_dict() == result.to_dict() and again.verdicts == result.verdicts
    assert torch.equal(again.adversarial, result.adversarial)
    assert torch.equal(again.broken, result.broken)
    assert again.curve == result.curve and again.flags == result.flags


def test_alone_there_is_nobody_to_wait_for():
    with workers.joined() as me:
        assert (me.rank, me.size, me.leads) == (0, 1, True)
        assert me.share({"a": 1}) == {"a": 1}
        assert me.gather(b"x") == [b"x"] and me.share(b"y") == b"y"
        me.meet()
        me.check()


def test_a_worker_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr(workers, "ARRIVAL_SECONDS", 0.2)
    team = workers._Team(0, 2, torch.distributed.HashStore, None)
    with pytest.raises(hf.HoldfastError, match="only 1 of 2 workers began") as refused, team:
        pass
    assert "\n" not in str(refused.value)


def met(store: torch.distributed.Store, late: int) -> set[str]:
    """What three processes, one of them late, call their meeting at this store."""

    def meet(rank: int) -> str:
        time.sleep(0.4 if rank == late else 0.0)
        return workers._roll_call(store, rank, 3)

    with ThreadPoolExecutor(3) as pool:
        return set(pool.map(meet, range(3)))


@pytest.mark.parametrize("late", range(3))
def test_workers_do_not_take_their_predecessors_for_each_other(late):
    store = torch.distributed.HashStore()  # as torchrun's, which outlives the workers
    meetings = [met(store, late) for _ in range(3)]
    assert [len(meeting) for meeting in meetings] == [1, 1, 1]
    assert len(set.union(*meetings)) == 3


def test_a_predecessor_is_nobody_to_meet(monkeypatch):
    store = torch.distributed.HashStore()
    met(store, late=0)
    monkeypatch.setattr(workers, "ARRIVAL_SECONDS", 0.5)
    with pytest.raises(RuntimeError, match="only 1 of 3 began within"):
        workers._roll_call(store, 0, 3)


def test_a_worker_that_falls_silent_is_named(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(workers, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(workers, "BEAT_SECONDS", 0.05)
    team = workers._Team(0, 2, lambda: store, None)
    team.watcher.start()
    began = time.monotonic()
    while time.monotonic() - began < 20:
        try:
            team.check()
        except hf.HoldfastError as error:
            assert "worker 1 fell silent" in str(error)
            return
        time.sleep(0.05)
    raise AssertionError("nobody noticed")


@pytest.mark.slow
def test_torchrun_goes_the_whole_way(tmp_path):
    from holdfast.models import build, save_checkpoint

    torch.manual_seed(0)
    card = {
        "architecture": "small-cnn",
        "arguments": {"width": 4},
        "classes": [str(i) for i in range(10)],
        "threat": {"norm": "linf", "eps": 0.1},
    }
    model = save_checkpoint(tmp_path / "model", build("small-cnn", {"width": 4}), card)
    verb = ["evaluate", str(model), "--data", "digits", "--suite", "apgd", "--limit", "12",
            "--precision", "original", "--batch-size", "12", "--quiet"]  # fmt: skip
    whole = [sys.executable, "-m", "holdfast", *verb, "--out", str(tmp_path / "one")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                "-m", "holdfast", *verb]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def done(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500
        )

    one = done(whole)
    two = done([*torchrun, "--out", str(tmp_path / "two")])
    assert one.returncode == two.returncode == 0, two.stderr[-3000:]
    assert (tmp_path / "one" / "verdicts.csv").read_text() == (
        tmp_path / "two" / "verdicts.csv"
    ).read_text()
    assert two.stdout.count("robust accuracy") == 1
    request = json.loads((tmp_path / "two" / "request.json").read_text())
    assert request["workers"] == 2 and request["command"][0] == "holdfast"

    bad = done([*torchrun, "--split", "dev", "--out", str(tmp_path / "bad")])
    assert bad.returncode != 0 and not (tmp_path / "bad").exists()
    assert bad.stderr.count("holdfast: ") == 1 and "dev" in bad.stderr
    own = bad.stderr.split("torch/distributed")[0]  # what comes after is torchrun's own
    assert "Traceback" not in own
    assert "exitcode  : 2" in bad.stderr
