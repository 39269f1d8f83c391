"""Several machines: no shared file system, images in pieces, workers that die and are replaced.

Machines are forked processes, each in a folder of its own, as in `test_workers`. The verdicts are
those of one process on all the images, image by image.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from teams import free_port, team

import holdfast as hf
from holdfast import data as datasets
from holdfast import launchers
from holdfast.data import folder as class_folders
from holdfast.data import shards as pieces
from holdfast.runs.identity import digest
from holdfast.search import journal as journals
from holdfast.search import scheduler
from holdfast.search.shards import shares_of

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CLASSES, IMAGES = (3, 6, 6), 4, 26
SIDES = ("-wal", "-shm")  # of a journal, while somebody reads it
KINDS = ("folder", "parquet", "arrays")
MODEL = """
import models
def build():
    return models.Net(classes=4, shape=(3, 6, 6), seed=2, scale=9.0)
"""


# -- the data: two pieces of each kind, and all of it as one process has it ---------------------


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and the labels that the model gives them, but for a few."""
    pixels = (models.images(n, SHAPE, seed) * 255).round().to(torch.uint8)
    labels = models.answers(models.Net(CLASSES, SHAPE, 2, scale=9.0), pixels.float() / 255)
    labels[1] = (labels[1] + 1) % CLASSES
    return pixels.numpy(), labels.numpy()


def written(kind: str, path: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Images as a folder, a Parquet file or arrays have them."""
    from PIL import Image

    classes = np.array([f"class-{number}" for number in range(CLASSES)])
    rows = np.moveaxis(images, 1, -1)
    if kind == "arrays":
        path = path.with_suffix(".npz")
        np.savez(path, x_test=rows, y_test=labels, classes=classes)
        return path
    pictures = []
    for image in rows:
        Image.fromarray(image).save(held := io.BytesIO(), "PNG")
        pictures.append(held.getvalue())
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        path.mkdir()
        table = pyarrow.table({"image": [{"bytes": p, "path": None} for p in pictures],
                               "label": labels})  # fmt: skip
        pyarrow.parquet.write_table(table, path / "test-00000-of-00001.parquet")
        return path
    for name in classes:
        (path / "test" / name).mkdir(parents=True)
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        (path / "test" / classes[label] / f"{number:03}.png").write_bytes(picture)
    return path


def made(folder: Path, kind: str) -> dict[str, str]:
    """Paths: `pieces` with {rank} in it; `whole`, all of them in the order that pieces stand in."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    sizes, own = (IMAGES // 2 + 3, IMAGES // 2 - 3), []
    for rank, size in enumerate(sizes):
        path = written(kind, folder / f"{kind}-{rank}", *drawn(size, seed=7 + rank))
        own.append((str(path), datasets.load(path).test))
    by_checksum = sorted(own, key=lambda each: digest(each[1].images, each[1].labels))
    images, labels = [], []
    for row in range(max(sizes)):
        for _, split in by_checksum:
            if row < len(split):
                images.append(split.images[row])
                labels.append(split.labels[row])
    whole = written("arrays", folder / f"{kind}-whole", np.stack(images), np.array(labels))
    return {"pieces": own[0][0].replace(f"{kind}-0", f"{kind}-{{rank}}"), "whole": str(whole),
            "one": own[0][0]}  # fmt: skip


# -- the program: forks workers, each of which is a machine ---------------------------------------


def command(folder: Path, rank: int, out: str, data: str, *words: str) -> dict[str, Any]:
    """`holdfast evaluate`, in a folder of this machine's own."""
    from holdfast.cli.program import main

    here = folder / f"machine-{rank}"
    here.mkdir(exist_ok=True)
    os.chdir(here)
    torch.set_num_threads(1)
    asked = ["evaluate", f"{folder / 'own.py'}:build", "--data", data, "--suite", "pgd",
             "--eps", "0.01", "--precision", "original", "--batch-size", "8", "--quiet",
             "--device", "cpu", "--out", out, *words]  # fmt: skip
    sys.argv = ["holdfast", *asked]
    told, said = io.StringIO(), io.StringIO()
    with redirect_stdout(told), redirect_stderr(said), pytest.raises(SystemExit) as ended:
        main()
    return {"status": ended.value.code, "told": told.getvalue(), "said": said.getvalue()}


def seen(folder: Path, out: str, machine: int = 0) -> dict[str, Any]:
    """What a run folder holds, but for what no two runs have in common."""
    run = folder / f"machine-{machine}" / out
    result = json.loads((run / "result.json").read_text())
    with (run / "verdicts.csv").open() as file:
        rows = [*csv.DictReader(file)]
    told = {key: result[key] for key in ("n", "robust_accuracy", "standard_accuracy", "identity")}
    return {
        **told,
        "verdicts": rows,
        "files": sorted(path.name for path in run.iterdir() if path.suffix[-4:] not in SIDES),
    }


def noted(folder: Path) -> None:
    """From now on every verdict of an item is noted as it falls."""
    real, real_broken = journals.Journal.finished, journals.Journal.broken

    def note(what: str) -> None:
        with (folder / f"noted-{os.getpid()}").open("a") as file:
            file.write(f"{what}\n")

    def finished(self: Any, item: Any) -> None:
        real(self, item)
        note(f"item {item.stage} {item.level} {item.image} {item.item}")

    def broken(self: Any, ledger: Any, image: int) -> None:
        real_broken(self, ledger, image)
        note(f"broken {image}")

    journals.Journal.finished, journals.Journal.broken = finished, broken  # type: ignore[method-assign]


def on_disk(folder: Path) -> set[str]:
    """What the journals of all machines hold."""
    held = set()
    for path in folder.glob("machine-*/killed/journal*.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'item'").fetchone():
                continue  # killed before it had tables
            items = db.execute("SELECT stage, level, image, item FROM item")
            held |= {" ".join(map(str, ("item", *row))) for row in items}
            held |= {f"broken {i}" for (i,) in db.execute("SELECT image FROM broken")}
    return held


def killed_again_and_again(folder: Path, data: str, most: int, seed: int) -> dict[str, Any]:
    """Two machines without a shared folder, one of which dies, `most` times; then to the end."""
    chance, kills, twice, kept = random.Random(seed), 0, set(), []
    scheduler.CHECKPOINT_SECONDS, scheduler.CHECKPOINT_SHARE = 0.0, 1e9
    noted(folder)
    while True:
        before = on_disk(folder)
        for note in folder.glob("noted-*"):
            note.unlink()
        doomed, last = chance.randrange(2), chance.randrange(3, 20)
        done = team(
            folder, 2, lambda rank: command(folder, rank, "killed", data, "--suite", "apgd"),
            (lambda rank, d=doomed, k=last: k if rank == d else None) if kills < most else None,
        )  # fmt: skip
        now = {line for note in folder.glob("noted-*") for line in note.read_text().splitlines()}
        twice |= now & before
        if done is not None:
            return {"kills": kills, "twice": sorted(twice), "kept": kept, "done": done,
                    "seen": seen(folder, "killed")}  # fmt: skip
        kills += 1
        kept.append(len(on_disk(folder)))


def scenarios(folder: Path, deaths: int) -> dict[str, Any]:
    (folder / "own.py").write_text(MODEL)
    told: dict[str, Any] = {}

    def begin(name: str, size: int, data: str, *words: str) -> None:
        told[name] = team(folder, size, lambda rank: command(folder, rank, name, data, *words))
        if all(said.get("result", {}).get("status") == 0 for said in told[name]):
            told[f"{name} seen"] = seen(folder, name)
        told[f"{name} left"] = [path.name for path in folder.glob(f"machine-1/{name}/*")]

    paths = {kind: made(folder, kind) for kind in KINDS}
    for kind, path in paths.items():
        begin(f"{kind} alone", 1, path["one"])
        begin(f"{kind} two", 2, path["one"])
        begin(f"{kind} whole", 1, path["whole"])
        begin(f"{kind} pieces", 2, path["pieces"])
    begin("arrays few", 2, paths["arrays"]["pieces"], "--limit", "9")
    begin("arrays whole few", 1, paths["arrays"]["whole"], "--limit", "9")
    begin("copies", 2, paths["arrays"]["one"], "--pieces")
    begin("alone in pieces", 1, paths["arrays"]["pieces"])
    begin("indices", 2, paths["arrays"]["pieces"], "--indices", "FILE")
    for rank in range(2):  # each machine has its own behind the same path
        piece = Path(paths["arrays"]["pieces"].format(rank=rank))
        (folder / f"machine-{rank}" / "mine.npz").write_bytes(piece.read_bytes())
    begin("other images", 2, "mine.npz")
    begin("the same path", 2, "mine.npz", "--pieces")
    other = written("arrays", folder / "other-0", *drawn(5, seed=1))
    np.savez(folder / "other-1.npz", x_test=np.zeros((5, 8, 8, 3), np.uint8),
             y_test=np.arange(5) % CLASSES,
             classes=np.array([f"class-{number}" for number in range(CLASSES)]))  # fmt: skip
    begin("other shapes", 2, str(other).replace("-0", "-{rank}"))
    begin("alone by apgd", 1, paths["folder"]["one"], "--suite", "apgd")
    told["killed"] = killed_again_and_again(folder, paths["folder"]["one"], deaths, seed=3)

    # Images that are decoded when they are asked for, and asked of whoever has them.
    from holdfast import inputs, stored

    stored.IN_MEMORY = pieces.IN_MEMORY = class_folders.IN_MEMORY = 0
    assert inputs.is_large is stored.is_large
    begin("lazy pieces", 2, paths["folder"]["pieces"])
    return told


if __name__ == "__main__":
    out = Path(sys.argv[1])
    (out / "told.json").write_text(json.dumps(scenarios(out, int(sys.argv[2]))))


# -- the tests --------------------------------------------------------------------------------


def performed(folder: Path, deaths: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(deaths)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
             "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "told.json").read_text())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return performed(tmp_path_factory.mktemp("machines"), deaths=2)


def verdicts(told: dict[str, Any], name: str) -> Any:
    assert f"{name} seen" in told, told[name]
    return told[f"{name} seen"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_problem_has_verdicts_of_every_kind(told, kind):
    rows = verdicts(told, f"{kind} alone")["verdicts"]
    assert {(row["attack"] != "", row["broken"]) for row in rows} == {(True, "1"), (False, "0")}
    assert {row["attack"] for row in rows} == {"", "clean", "pgd"}


@pytest.mark.parametrize("kind", KINDS)
def test_two_machines_give_the_verdicts_of_one(told, kind):
    assert verdicts(told, f"{kind} two") == verdicts(told, f"{kind} alone")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_verdicts_of_all_images_in_one_place(told, kind):
    assert verdicts(told, f"{kind} pieces") == verdicts(told, f"{kind} whole")
    assert verdicts(told, f"{kind} pieces")["n"] == IMAGES


def test_pieces_that_are_asked_for_give_the_same_verdicts(told):
    assert verdicts(told, "lazy pieces") == verdicts(told, "folder whole")


def test_a_limit_takes_the_first_images_of_all_pieces(told):
    assert verdicts(told, "arrays few") == verdicts(told, "arrays whole few")
    assert verdicts(told, "arrays few")["n"] == 9


def test_workers_with_the_same_piece_share_it(told):
    assert verdicts(told, "copies")["verdicts"] == verdicts(told, "arrays alone")["verdicts"]


def test_where_pieces_lie_changes_nothing(told):
    assert verdicts(told, "the same path") == verdicts(told, "arrays pieces")


def test_only_worker_0_keeps_a_run_folder(told):
    assert [told[f"{kind} two left"] for kind in KINDS] == [[]] * 3
    assert "journal.sqlite" in verdicts(told, "folder two")["files"]
    assert not any("journal-" in name for name in verdicts(told, "folder two")["files"])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("alone in pieces", "start several processes with torchrun or srun"),
        ("indices", "--indices FILE counts the images of one folder"),
        ("other images", "--pieces where each has images of its own"),
        ("other shapes", "--image-size brings them to one"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(told, name, line):
    said = [worker["result"] for worker in told[name]]
    assert {worker["status"] for worker in said} == {2}
    lines = [each for worker in said for each in worker["said"].splitlines()]
    assert sum(line in each for each in lines) == 1, lines
    assert not any("Traceback" in each for each in lines)


def killed_well(outcome: dict[str, Any], deaths: int, alone: dict[str, Any]) -> None:
    assert outcome["kills"] == deaths
    assert outcome["kept"][-1] > 0  # something was there to lose
    assert outcome["twice"] == []
    assert outcome["seen"] == alone


def test_a_machine_that_dies_loses_nothing_that_was_on_its_disk(told):
    killed_well(told["killed"], 2, verdicts(told, "alone by apgd"))


@pytest.mark.slow
def test_ten_deaths(tmp_path):
    told = performed(tmp_path, deaths=10)
    killed_well(told["killed"], 10, verdicts(told, "alone by apgd"))


# -- torchrun starts a worker again that died -------------------------------------------------


def children(pid: int) -> list[int]:
    """The processes below one, from /proc."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = each.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(each.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_torchrun_replaces_workers_that_are_killed(tmp_path):
    (tmp_path / "own.py").write_text(MODEL)
    data = written("folder", tmp_path / "images", *drawn(60, seed=5))
    env = {**os.environ, "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}  # fmt: skip
    verb = ["evaluate", f"{tmp_path / 'own.py'}:build", "--data", str(data), "--suite",
            "apgd", "--eps", "0.01", "--precision", "original", "--batch-size", "8",
            "--quiet", "--device", "cpu"]  # fmt: skip
    one = [sys.executable, "-m", "holdfast", *verb, "--out", str(tmp_path / "one")]
    assert subprocess.run(one, env=env, cwd=ROOT, timeout=600, capture_output=True).returncode == 0
    agent = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts",
         "20", "--monitor-interval", "0.2", "--master-port", str(free_port()), "-m", "holdfast",
         *verb, "--out", str(tmp_path / "two")],
        env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    chance, kills, began = random.Random(0), 0, time.monotonic()
    journal = tmp_path / "two" / "journal-1.sqlite"
    since = 0.0
    while agent.poll() is None and kills < 10 and time.monotonic() - began < 900:
        time.sleep(0.2)
        workers = children(agent.pid)
        # At work: this worker's journal was written to since the last death.
        if len(workers) == 2 and journal.exists() and journal.stat().st_mtime > since:
            time.sleep(chance.uniform(0.0, 2.0))
            os.kill(chance.choice(workers), signal.SIGKILL)
            kills += 1
            while agent.poll() is None and set(workers) & set(children(agent.pid)):
                time.sleep(0.2)
            since = time.time()
    said, _ = agent.communicate(timeout=900)
    assert agent.returncode == 0, said[-3000:]
    assert kills >= 1
    assert (tmp_path / "one" / "verdicts.csv").read_text() == (
        tmp_path / "two" / "verdicts.csv"
    ).read_text()


# -- where a process stands -------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[03-04,09]",
}


def test_srun_says_where_a_task_stands():
    here = launchers.place(SLURM)
    assert (here.rank, here.size, here.local_rank, here.node) == (3, 4, 1, 1)
    assert here.host == "gpu03" and 15000 <= here.port < 30000
    assert launchers.place({**SLURM, "SLURM_PROCID": "0"}).port == here.port
    assert launchers.place({**SLURM, "SLURM_STEP_ID": "2"}).port != here.port
    told = launchers.place({**SLURM, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "2950"})
    assert (told.host, told.port) == ("10.0.0.7", 2950)


def test_a_batch_script_is_one_process_whatever_it_asked_for():
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODEID": "0"}
    assert launchers.place(batch) == launchers.Place()
    assert launchers.place({**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).size == 1


def test_torchrun_below_srun_goes_before_slurm():
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost",
                "MASTER_PORT": "1234"}  # fmt: skip
    assert launchers.place({**SLURM, **torchrun}).size == 2


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node[003-005,9]", "node003"),
        ("a[1,3]-ib,b[2-4]", "a1-ib"),
        ("rack[2-3]n[010-012]", "rack2n010"),
        ("head,node[1-2]", "head"),
        ("n-1.cluster.org", "n-1.cluster.org"),
    ],
)
def test_the_first_machine_of_slurms_list(nodes, first):
    assert launchers.first_host(nodes) == first


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "number 2 of 2"),
        ({**SLURM, "SLURM_STEP_NODELIST": ""}, "MASTER_ADDR and MASTER_PORT"),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "-3"}, "SLURM_STEP_NUM_TASKS is '-3'"),
    ],
)
def test_an_environment_that_makes_no_sense_is_one_line(environment, line):
    with pytest.raises(hf.InputError, match=line) as refused:
        launchers.check_meeting(launchers.place(environment))
    assert "\n" not in str(refused.value)


def test_images_go_to_workers_that_can_read_them():
    readers = torch.tensor([[0, 2], [1, -1]] * 3)
    shares = shares_of(torch.arange(6), 3, readers)
    assert [share.tolist() for share in shares] == [[0, 4], [1, 3, 5], [2]]
    assert torch.cat(shares_of(torch.arange(11), 4)).sort().values.tolist() == [*range(11)]


def test_slurms_tasks_come_together_as_slurm_says():
    """Two tasks meet at the first machine of the list, at the port of job and step."""
    script = (
        "from holdfast import distributed as d\n"
        "with d.joined() as me:\n"
        "    print(me.rank, me.size, me.share('from ' + str(me.rank)), d.leads())\n"
    )
    place = {**SLURM, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost",
             "SLURM_JOB_ID": str(os.getpid())}  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **place}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", script], env={**env, "SLURM_PROCID": each},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for each in "01"
    ]  # fmt: skip
    said = [task.communicate(timeout=300) for task in tasks]
    assert [out.strip() for out, _ in said] == ["0 2 from 0 True", "1 2 from 0 False"], said


# -- what it gains ----------------------------------------------------------------------------


def test_the_model_of_scaling_adds_up_to_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    costs = {"last word": 0.5, "clean predictions": 0.5, "health checks": 4.0}
    one = {"processes": 1, "seconds": 110.0, "attack_seconds": 100.0, "other_costs": costs,
           "n": 50, "verdicts": "a"}  # fmt: skip
    two = {**one, "processes": 2, "seconds": 62.0}
    told = scaling.outcome([one, two], images=5000)
    model = told["model"]
    assert model["measured_images"]["1"]["modelled_seconds"] == pytest.approx(110)
    assert model["measured_images"]["2"]["modelled_seconds"] == pytest.approx(9 + 50 + 1)
    assert model["not_measured"]["1"]["seconds"] == pytest.approx(9 + 10_000 + 100)
    # The last word is shared by nobody: never more than a hundred times as fast.
    assert 40 < model["not_measured"]["128"]["speed_up"] < 100
    assert told["same_verdicts"] and told["speed_up"]["2"] == pytest.approx(110 / 62)
    assert not scaling.outcome([one, {**two, "verdicts": "b"}], 10)["same_verdicts"]
