"""A run's identity is everything that can change its result; its folder holds that run alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.errors import InputError
from holdfast.runs import environment, lock
from holdfast.runs import identity as identity_of_runs
from holdfast.runs.environment import circumstances, git_revision
from holdfast.runs.files import PARTIAL
from holdfast.runs.folder import open_run, withdraw_run
from holdfast.runs.identity import (
    code_version,
    digest,
    identity,
    settings_digest,
    weights_digest,
)
from holdfast.runs.lock import claimed


def test_a_digest_is_the_hash_that_resuming_depends_on():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    expected = hashlib.sha256(b"uint8(2, 3)" + bytes(range(6)) + b"2:ab" + b"3:\0\1\2")
    assert digest(array, "ab", b"\0\1\2") == expected.hexdigest()


def test_a_digest_sees_contents_shapes_types_and_borders():
    array = np.arange(6, dtype=np.int32)
    different = [
        (array,),
        (array.reshape(2, 3),),
        (array.reshape(3, 2),),
        (array.astype(np.int64),),
        (array.astype(np.float32),),
        (array[::-1],),
        (np.arange(1, 7, dtype=np.int32),),
        (array[:3], array[3:]),
        (np.empty((0, 3)),),
        (np.empty((3, 0)),),
        (torch.arange(6).float(),),
        (torch.arange(6).bfloat16(),),
        (torch.arange(6).half(),),
        (torch.tensor(1.0),),
        ("ab", "c"),
        ("a", "bc"),
        ("abc",),
        ("", "abc"),
        (),
    ]
    found = [digest(*parts) for parts in different]
    # NumPy and torch agree on what float32 numbers are; all others differ.
    assert digest(torch.arange(6).float()) == digest(array.astype(np.float32))
    assert len(set(found)) == len(different) - 1


def test_a_digest_sees_contents_and_not_layout():
    array = np.arange(24).reshape(2, 3, 4)
    assert digest(array) == digest(np.asfortranarray(array))
    images = torch.rand(2, 3, 4, 4)
    assert digest(images) == digest(images.to(memory_format=torch.channels_last))
    assert digest(images.clone().requires_grad_()) == digest(images)


def test_weights_have_a_digest_and_functions_have_none():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    first = weights_digest(model)
    assert first == weights_digest(model.eval().train())
    model[1].num_batches_tracked += 1
    second = weights_digest(model)
    model[0].bias.data[0] += 1e-6
    third = weights_digest(model)
    half = weights_digest(model.bfloat16())
    again = weights_digest(model.float())
    assert len({first, second, third, half, again}) == 5
    assert weights_digest(lambda x: x) is None
    assert weights_digest(nn.ReLU()) != weights_digest(nn.ELU())


def test_an_identity_is_sensitive_to_every_part_and_to_no_order():
    parts = {"recipe": {"a": 1, "b": [1, 2]}, "seed": 0, "data": "digits"}
    same = {"data": "digits", "seed": 0, "recipe": {"b": [1, 2], "a": 1}}
    assert identity(**parts) == identity(**same)
    others = [
        {**parts, "seed": 1},
        {**parts, "seed": "0"},
        {**parts, "data": "digits "},
        {**parts, "recipe": {"a": 1, "b": [2, 1]}},
        {**parts, "recipe": {"a": 1.5, "b": [1, 2]}},
        {**parts, "recipe": {"a": 1}},
        {**parts, "more": None},
    ]
    assert len({identity(**other) for other in [parts, *others]}) == len(others) + 1
    with pytest.raises(ValueError):
        identity(a=float("nan"))


def test_the_code_version_follows_the_source(tmp_path, monkeypatch):
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "a.py").write_text("x = 1")
    (tmp_path / "b.py").write_text("y = 1")
    monkeypatch.setattr(identity_of_runs, "PACKAGE", tmp_path)
    seen = []
    for file, text in ((None, ""), ("attacks/a.py", "x = 2"), ("b.py", "y = 2"), ("c.py", "")):
        if file:
            (tmp_path / file).write_text(text)
        code_version.cache_clear()
        seen.append(code_version("attacks", "b.py"))
    code_version.cache_clear()
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]  # c.py was not asked for


# -- folders ------------------------------------------------------------------------------------

REQUEST = {"asked": {"seed": 0, "recipe": {"epochs": 3, "model": {"width": 8}}}}


def test_a_new_run_and_the_same_again(tmp_path):
    folder = tmp_path / "a" / "b"
    assert open_run(folder, "train", "k", REQUEST) == (folder, False)
    held = json.loads((folder / "request.json").read_text())
    assert held["kind"] == "train"
    assert held["identity"] == "k"
    assert held["asked"] == REQUEST["asked"]
    before = (folder / "request.json").read_bytes()
    (folder / "checkpoints").mkdir()
    leftover = folder / "checkpoints" / f".latest.x{PARTIAL}"
    for file in (leftover, folder / "checkpoints" / "latest", folder / "mine.partial"):
        file.write_text("x")
    assert open_run(folder, "train", "k", {"asked": "is not written again"}) == (folder, True)
    assert (folder / "request.json").read_bytes() == before
    assert not leftover.exists()
    assert (folder / "checkpoints" / "latest").exists()
    assert (folder / "mine.partial").exists()  # a user's own file, not a temporary of ours


@pytest.mark.parametrize(
    ("kind", "asked", "says"),
    [
        ("evaluate", REQUEST["asked"], "of train, not evaluate"),
        ("train", {"seed": 1, "recipe": REQUEST["asked"]["recipe"]}, "--seed 0, not 1"),
        (
            "train",
            {"seed": 0, "recipe": {"epochs": 3, "model": {"width": 9}}},
            "--set model.width 8, not 9",
        ),
        ("train", {"seed": 0, "recipe": {"epochs": 3}}, "--set model.width 8, not its default"),
        ("train", REQUEST["asked"], "another version of the code or on other data"),
    ],
)
def test_another_run_is_refused_with_what_differs(tmp_path, kind, asked, says):
    open_run(tmp_path, "train", "k", REQUEST)
    before = (tmp_path / "request.json").read_bytes()
    with pytest.raises(InputError, match="holds another run") as error:
        open_run(tmp_path, kind, "other", {"asked": asked})
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "request.json").read_bytes() == before


def test_what_only_follows_from_another_option_is_not_named_as_one(tmp_path):
    def asked(limit: int) -> dict:
        lacking = {"classes_without_images": ["cat"] * limit, "seen_in_training": limit > 4}
        return {"asked": {"n": limit, "data": {"first": limit, "overlaps": [limit], **lacking}}}

    open_run(tmp_path, "evaluate", "k", asked(4))
    with pytest.raises(InputError) as error:
        open_run(tmp_path, "evaluate", "other", asked(5))
    assert str(error.value).count("--") == 2  # in "choose another --out"
    assert "(--limit 4, not 5)" in str(error.value)


def test_folders_that_hold_something_else(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="other files"):
        open_run(tmp_path, "train", "k", REQUEST)
    with pytest.raises(InputError, match="is a file"):
        open_run(tmp_path / "photo.jpg", "train", "k", REQUEST)
    with pytest.raises(InputError, match="cannot write"):
        open_run("/proc/holdfast", "train", "k", REQUEST)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "request.json").write_text("{")
    with pytest.raises(InputError, match=r"request\.json"):
        open_run(tmp_path / "run", "train", "k", REQUEST)
    (tmp_path / "run" / "request.json").write_text('{"asked": [1]}')
    with pytest.raises(InputError, match="'asked' must be a JSON object"):
        open_run(tmp_path / "run", "train", "k", REQUEST)
    (tmp_path / "run" / "request.json").write_text('{"asked": {"seed": 1}}')
    with pytest.raises(InputError, match="another run"):
        open_run(tmp_path / "run", "train", "k", REQUEST)


def test_an_empty_folder_and_what_a_killed_process_left_are_free(tmp_path):
    (tmp_path / f".request.json.x{PARTIAL}").write_text("{")
    assert open_run(tmp_path, "train", "k", REQUEST)[1] is False


def test_a_run_that_wrote_nothing_can_be_withdrawn_and_no_other(tmp_path):
    open_run(tmp_path, "train", "k", REQUEST)
    withdraw_run(tmp_path)
    open_run(tmp_path, "train", "another", REQUEST)
    (tmp_path / "checkpoints").mkdir()
    withdraw_run(tmp_path)
    assert (tmp_path / "request.json").exists()


# -- one process at a time ------------------------------------------------------------------------


def test_a_run_has_one_process_at_a_time(tmp_path):
    folder = tmp_path / "run"
    with claimed(folder):
        open_run(folder, "train", "k", REQUEST)
        refusal = pytest.raises(InputError, match="being worked on by process")
        with refusal as refused, claimed(folder):
            raise AssertionError("both have it")
        assert f"process {os.getpid()} on" in str(refused.value)
        assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert [path.name for path in folder.iterdir()] == ["request.json"]
    with claimed(folder):  # and again, one after the other
        pass


def test_a_claim_on_nothing_leaves_nothing(tmp_path):
    with claimed(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with pytest.raises(RuntimeError), claimed(tmp_path / "run"):
        open_run(tmp_path / "run", "train", "k", REQUEST)
        withdraw_run(tmp_path / "run")
        raise RuntimeError
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="file"), claimed(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "in the way"


def holder(folder: Path) -> int:
    """A process that claims a run and waits to be killed; forked, for imports are slow."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        with claimed(folder):
            os.write(writer, b"1")
            time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    return pid


@pytest.mark.parametrize("locks", [True, False])
def test_death_lifts_a_claim(tmp_path, monkeypatch, locks):
    if not locks:  # a file system that knows none

        def none(handle, how):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(lock.fcntl, "flock", none)
    pid = holder(tmp_path / "run")
    refusal = pytest.raises(InputError, match=f"worked on by process {pid} on")
    with refusal, claimed(tmp_path / "run"):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / "run" / "lock").exists()  # nobody was left to remove it
    with claimed(tmp_path / "run"):
        assert open_run(tmp_path / "run", "train", "k", REQUEST)[1] is False
    assert not (tmp_path / "run" / "lock").exists()


def test_without_locks_a_claim_of_another_machine_holds(tmp_path, monkeypatch):
    def none(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    (tmp_path / "lock").write_text("1 on elsewhere")
    refusal = pytest.raises(InputError, match=r"process 1 on elsewhere; .* remove .*lock")
    with refusal, claimed(tmp_path):
        pass


def test_the_loser_of_a_race_for_a_lock_that_was_removed_tries_again(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text("")
    taken, calls = lock._taken, []

    def too_late(handle):
        calls.append(handle)
        if len(calls) == 1:  # its owner ends just now, and somebody else begins
            (tmp_path / "lock").unlink()
            (tmp_path / "lock").write_text("")
        return taken(handle)

    monkeypatch.setattr(lock, "_taken", too_late)
    with claimed(tmp_path):
        assert len(calls) == 2
        monkeypatch.undo()
        with pytest.raises(InputError, match="being worked on"), claimed(tmp_path):
            pass


# -- circumstances ------------------------------------------------------------------------------


def test_circumstances_are_json_and_say_what_matters():
    found = json.loads(json.dumps(circumstances("cpu")))
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert found["machine"]
    assert found["command"][0] == Path(sys.argv[0]).name


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_revision_is_that_of_holdfasts_own_checkout(tmp_path, monkeypatch):
    package = tmp_path / "holdfast"
    (package / "runs").mkdir(parents=True)
    (package / environment.OWN).write_text("x = 1")
    monkeypatch.setattr(environment, "PACKAGE", package)
    assert git_revision() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "theirs.txt").write_text("1")
    git(tmp_path, "add", "theirs.txt")
    git(tmp_path, "commit", "-qm", "theirs")
    assert git_revision() is None  # somebody else's checkout around an installed Holdfast
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "ours")
    assert git_revision() == git(tmp_path, "rev-parse", "HEAD")
    (package / environment.OWN).write_text("x = 2")
    assert git_revision() == git(tmp_path, "rev-parse", "HEAD") + "+changes"


def test_without_git_there_is_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_revision() is None


def test_models_of_equal_weights_and_other_settings_are_told_apart():
    def scaled(factor: float, hidden: float) -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        model.factor = factor
        model[0].register_buffer("hidden", torch.tensor(hidden), persistent=False)
        return model

    digests = {settings_digest(scaled(*pair)) for pair in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))}
    assert len(digests) == 3
    assert settings_digest(scaled(1.0, 1.0).train()) == settings_digest(scaled(1.0, 1.0).eval())
