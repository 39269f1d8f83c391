"""The benchmarks of attacks and defences measure what they say, shown on digits."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import models
import pytest

import holdfast as hf

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import backward_passes
import certificates_page
import defences_page
import swift_choices
import swift_page


def measured(monkeypatch, tmp_path, module, *arguments) -> dict:
    """What a benchmark writes of the net of `models.digits`."""
    net, _, _ = models.digits(1)
    out = tmp_path / "out.json"
    monkeypatch.setattr(hf, "load", lambda source: net)
    arguments = (module.__name__, "net", "--data", "digits", "--out", out, *arguments)
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    module.main()
    return json.loads(out.read_text())


def test_swifts_choices_count_what_falls_and_when(tmp_path, monkeypatch):
    said = measured(monkeypatch, tmp_path, swift_choices, "--limit", 24, "--eps", "0.08")
    assert 0 < said["falls"] < said["right"] <= 24
    assert said["falls_to_four_looks"] <= said["falls_to_whole_runs"] <= said["falls"]
    assert said["falls_to_whole_runs"] + said["falls_to_the_longest_alone"] == said["falls"]
    assert len(said["broken_within"]) == 2 + 9
    for within in said["broken_within"].values():
        counts = [within[str(n)] for n in swift_choices.COUNTS]
        assert counts == sorted(counts) and counts[-1] <= said["falls_to_whole_runs"]
    assert max(within["21"] for within in said["broken_within"].values()) > 0
    table = "\n".join(swift_page.choices([said]))
    assert f"{said['falls']} of {said['right']} images" in table


def test_each_backward_pass_is_attacked_alone(tmp_path, monkeypatch):
    said = measured(
        monkeypatch,
        tmp_path,
        backward_passes,
        *("--defence", "bit-depth:bits=3", "--limit", 24, "--eps", "0.08", "--steps", 5),
    )
    rows = {row["backward"]: row for row in said["rows"]}
    assert rows.keys() == {"identity", "surrogate"}  # rounding has no gradient of its own
    assert said["attack"]["samples"] == 1
    for row in rows.values():
        # Rounding answers the same whoever differentiates it, and how.
        assert row["standard_accuracy"] == rows["identity"]["standard_accuracy"] > 0.5
        assert row["robust_accuracy"] < row["standard_accuracy"]
    table = "\n".join(defences_page.backward_tables([said]))
    assert "| identity |" in table and "which knowledge breaks it" in table


def test_a_page_of_certificates_says_what_was_certified(tmp_path):
    run = tmp_path / "runs" / "certified"
    run.mkdir(parents=True)
    result = {
        "schema": "holdfast/certification/1",
        "status": "complete",
        "model": {"name": "some-model"},
        "data": {"pixels": "drawn by hand", "split": "test"},
        "method": "smoothing",
        "settings": {"sigma": 0.25, "n0": 100, "n": 1000, "alpha": 0.001},
        "threat": {"norm": "l2", "eps": 0.5},
        "n": 200,
        "seed": 0,
        "seconds": 120,
        "attack": "an attack",
        "abstained": 0.05,
        "attacked_accuracy": 0.6,
        "attacked_accuracy_interval": [0.53, 0.67],
        "mean_radius": 0.2,
        "certified": [{"radius": 0.25, "certified_accuracy": 0.5, "interval": [0.43, 0.57]}],
        "flags": [{"name": "certificate-contradicted", "fired": True}],
    }
    (run / "result.json").write_text(json.dumps(result))
    (run / "request.json").write_text(json.dumps({"machine": "a desk", "command": ["holdfast"]}))
    text = "\n".join(certificates_page.tables(certificates_page.certifications(tmp_path)))
    for said in ("some-model", "N0 = 100", "N = 1,000", "50.0% (43.0% to 57.0%)", "drawn by hand"):
        assert said in text
    assert "health checks fired: certificate-contradicted" in text
    unfinished = result | {"status": "running"}
    (run / "result.json").write_text(json.dumps(unfinished))
    assert certificates_page.certifications(tmp_path) == []


@pytest.fixture(autouse=True)
def _nothing_is_written_beside_the_results(monkeypatch, tmp_path):
    for module in (backward_passes, swift_choices):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
