"""Records: every committed file opens and means what it says; what is wrong is one line; results
show themselves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import models
import pytest
from run_folders import evaluation_run, training_run

import holdfast as hf
from holdfast.errors import InputError
from holdfast.runs.records import (
    RECORDS,
    Card,
    EvaluationRecord,
    Record,
    RequestRecord,
    TrainingRecord,
    json_schemas,
)
from holdfast.runs.records.base import Part

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = [
    file
    for file in sorted([*ROOT.glob("benchmarks/results/**/*.json"), *ROOT.glob("zoo/*/card.json")])
    if json.loads(file.read_text())["schema"] in RECORDS
]
NOT_COMMITTED = {f"holdfast/{kind}/1" for kind in ("mixture", "leaderboard", "progress")}
EVIL = "</td><script>alert(1)</script>\x1b[2J\n\u202e"


def held(file: Path) -> dict[str, Any]:
    """A file as it is, without its seal."""
    value = json.loads(file.read_text())
    value.pop("seal", None)
    return value


def same(found: Any, value: Any) -> bool:
    """Whether a record says all that a file says; what the file does not say is empty."""
    if isinstance(value, dict):
        return all(key in found and same(found[key], item) for key, item in value.items()) and all(
            found[key] in (None, "", [], {}, 0, "ran", "not needed") for key in found.keys() - value
        )
    if isinstance(value, list):
        return len(found) == len(value) and all(map(same, found, value))
    return bool(found == value)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: str(file.relative_to(ROOT)))
def test_committed_files_open_and_mean_the_same(file: Path, tmp_path: Path) -> None:
    record = hf.read(file)
    assert same(record.to_dict(), held(file))
    assert hf.read(record.save(tmp_path)) == record


def test_each_kind_is_committed_but_mixtures() -> None:
    kinds = {json.loads(file.read_text())["schema"] for file in COMMITTED}
    assert kinds == RECORDS.keys() - NOT_COMMITTED


# --- JSON schemas -------------------------------------------------------------------------------

TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": (int, float),
}


def faults(value: Any, schema: dict[str, Any], whole: dict[str, Any], at: str = "") -> list[str]:
    """Where a value is not what a JSON schema says: of the keywords that pydantic uses."""
    if "$ref" in schema:
        return faults(value, whole["$defs"][schema["$ref"].rpartition("/")[2]], whole, at)
    if "anyOf" in schema:
        each = [faults(value, one, whole, at) for one in schema["anyOf"]]
        return [] if [] in each else each[0]
    known = {
        "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minimum",
        "maximum", "exclusiveMaximum", "minItems", "maxItems", "const", "enum", "title", "default",
        "description", "$defs", "$schema",
    }  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    kind = TYPES.get(schema.get("type", ""), object)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind not in (bool, object))
    if wrong or ("const" in schema and value != schema["const"]):
        return [f"{at}: {value!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at}: {value!r}"]
    if isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        beyond = value >= schema.get("exclusiveMaximum", float("inf"))
        return [] if low <= value <= high and not beyond else [f"{at}: {value}"]
    if isinstance(value, list):
        few = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        first = schema.get("prefixItems", [])
        kinds = [*first, *[schema.get("items", {})] * (len(value) - len(first))]
        each = [faults(v, k, whole, f"{at}[{i}]") for i, (v, k) in enumerate(zip(value, kinds))]  # noqa: B905
        return [f for found in each for f in found] + ([] if few else [f"{at}: length"])
    if isinstance(value, dict):
        found = [
            f"{at}.{name}: missing" for name in schema.get("required", ()) if name not in value
        ]
        more = schema.get("additionalProperties")
        for name, item in value.items():
            kind = schema.get("properties", {}).get(name, more if isinstance(more, dict) else {})
            found += faults(item, kind, whole, f"{at}.{name}")
        return found
    return []


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: str(file.relative_to(ROOT)))
def test_committed_files_are_what_the_json_schemas_say(file: Path) -> None:
    value = held(file)
    schema = json_schemas()[value["schema"]]
    assert faults(value, schema, schema) == []
    for name, bad in (("schema", "other/1"), ("identity", 3), ("weights_sha256", 3), ("n", 0.5)):
        if name in value:
            assert faults({**value, name: bad}, schema, schema) == [f".{name}: {bad!r}"]


def test_json_schemas_say_what_each_field_is() -> None:
    schemas = json_schemas()
    assert json.loads(json.dumps(schemas)) == schemas and schemas.keys() == RECORDS.keys()
    evaluation = schemas["holdfast/evaluation/1"]
    assert evaluation["properties"]["robust_accuracy"]["anyOf"][0]["maximum"] == 1
    assert {"schema", "n", "threat"} <= set(evaluation["required"])
    assert "Clopper–Pearson" in evaluation["description"]


# --- what is wrong with a file ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"robust_accuracy": "abc"}, "'robust_accuracy' must be a number from 0 to 1, not 'abc'"),
        ({"robust_accuracy": True}, "'robust_accuracy' must be a number from 0 to 1, not True"),
        ({"robust_accuracy": float("nan")}, "'robust_accuracy' must be a number from 0 to 1"),
        ({"n": 12.0}, "'n' must be a whole number ≥ 1, not 12.0"),
        ({"n": 2**64}, "'n' must be a whole number ≥ 1, not 18446744073709551616"),
        ({"seed": None, "seconds": [1]}, "'seconds' must be a number ≥ 0, not [1]"),
        ({"data": {"first": -1}}, "'data': 'first' must be a whole number ≥ 0, not -1"),
        ({"data": {"overlaps": [{"split": 1}]}}, "'data': overlaps[0]: 'split' must be text"),
        ({"curve": {"points": [1]}}, "'curve': points[0] must be a JSON object, not 1"),
        (
            {"threat": {"norm": "l2", "eps": "1"}},
            "'threat' must be a threat model: norm (text) and",
        ),
        ({"threat": {"norm": "l2", "eps": -1}}, "'threat': eps must be a finite number above 0"),
        ({"files": {"a": 1}}, "'files': 'a' must be text, not 1"),
        ({"\ud800": 1}, "a name is no text"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_file_and_field(
    tmp_path: Path, fields: dict[str, Any], says: str
) -> None:
    file = evaluation_run(tmp_path / "run") / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        hf.read(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def test_keys_of_a_newer_version_are_kept(tmp_path: Path) -> None:
    file = evaluation_run(tmp_path / "run") / "result.json"
    value = json.loads(file.read_text()) | {"moon": {"phase": [1, None]}}
    value["model"]["moon"] = 2
    file.write_text(json.dumps(value))
    record = hf.read(file)
    assert record.to_dict()["moon"] == {"phase": [1, None]}
    assert hf.read(record.save(tmp_path / "other")).to_dict()["model"]["moon"] == 2


def test_whatever_is_no_record_is_said(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "gone", "gone does not exist: give a run folder, or a file in one"),
        (tmp_path, "is no run folder: it is empty"),
    ):
        with pytest.raises(InputError, match=re.escape(says)):
            hf.read(path)
    (tmp_path / "result.json").write_text('{"schema": "holdfast/benchmark/1"}')
    with pytest.raises(InputError, match="has schema 'holdfast/benchmark/1'; this version"):
        hf.read(tmp_path)
    (tmp_path / "result.json").write_text('{"schema": "holdfast/evaluation/1", "status": "begun"}')
    with pytest.raises(InputError, match="has status 'begun', not 'complete'"):
        hf.read(tmp_path)


def test_a_folder_is_read_as_what_it_is(tmp_path: Path) -> None:
    run = training_run(tmp_path / "run")
    assert isinstance(hf.read(run), TrainingRecord)
    assert isinstance(hf.read(run / "request.json"), RequestRecord)
    assert isinstance(hf.read(ROOT / "zoo" / "cifar10-linf-slim"), Card)


def test_a_saved_record_is_sealed_and_no_other_file_is_written_over(tmp_path: Path) -> None:
    record = hf.read(evaluation_run(tmp_path / "run"))
    file = record.save(tmp_path / "copy")
    assert record.save(tmp_path / "copy") == file  # its own
    file.write_text(file.read_text().replace('"suite": "apgd"', '"suite": "swift"'))
    with pytest.raises(InputError, match="is damaged"):
        hf.read(file)
    file.write_text("mine")
    with pytest.raises(InputError, match="did not write there"):
        record.save(tmp_path / "copy")
    assert file.read_text() == "mine"


# --- what a result shows of itself --------------------------------------------------------------


def shown_records() -> list[Record]:
    """One of every kind, with names that mean ill wherever text may stand."""

    def everywhere(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            kept = ("schema", "status", "threat", "files")
            return {k: v if k in kept else everywhere(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [everywhere(item) for item in value]
        return EVIL if isinstance(value, str) else value

    files = {json.loads(file.read_text())["schema"]: file for file in COMMITTED}
    return [RECORDS[name].checked(everywhere(held(f)), str(f)) for name, f in files.items()]


@pytest.mark.parametrize("record", shown_records(), ids=lambda record: type(record).__name__)
def test_hostile_names_stay_text_in_terminals_and_notebooks(record: Record) -> None:
    text, page = repr(record), record._repr_html_()
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page
    assert text.count("\n") == 1 and "\x1b" not in text and "\u202e" not in text
    assert str(record) == text


def test_an_evaluation_says_most_on_two_lines() -> None:
    record = hf.read(ROOT / "benchmarks" / "results" / "cifar10-linf-slim-swift")
    assert repr(record).split("\n") == [
        "Evaluation of cifar10-linf-slim on cifar10 test, n = 1000, L∞ 8/255, suite swift",
        "standard accuracy 69.3% (66.3% to 72.1%), robust accuracy 37.8% (34.8% to 40.9%), "
        "fired flags none",
    ]
    page = record._repr_html_()
    assert page.startswith("<table><caption>Evaluation of cifar10-linf-slim on cifar10 test")
    assert "<th style='text-align:left'>robust accuracy</th><td>37.8% (34.8% to 40.9%)</td>" in page


def test_the_result_of_evaluate_is_the_record_that_it_writes(tmp_path: Path) -> None:
    model, images, labels = models.digits(20)
    threat = hf.Threat("linf", 0.05)
    result = hf.evaluate(model, images, labels, threat, "fgsm", run=tmp_path / "run")
    written = hf.read(tmp_path / "run")
    assert isinstance(written, EvaluationRecord)
    kept = written.to_dict()
    assert {key: kept[key] for key in result.to_dict()} == result.to_dict()
    assert repr(result).startswith("Evaluation of n = 20, L∞ 0.05, suite fgsm\nstandard accuracy ")
    saved = hf.read(result.save(tmp_path / "saved"))
    assert saved.to_dict() == result.to_dict()
    rows = (tmp_path / "saved" / "verdicts.csv").read_text()
    assert rows == (tmp_path / "run" / "verdicts.csv").read_text()
    with pytest.raises(ValueError, match="moon"):  # a misspelt field is an error
        type(result)(**{**dict(result), "moon": 1})


def test_parts_are_compared_by_what_they_hold() -> None:
    class Point(Part):
        x: float
        y: float | None = None

    assert Point(x=1).to_dict() == {"x": 1.0}
    assert Point(x=1, y=None).to_dict() == {"x": 1.0, "y": None}  # what was said to have no value
    with pytest.raises(InputError, match="somewhere has no 'x'"):
        Point.checked({"y": 1}, "somewhere")


def test_models_that_were_made_show_their_figures(tmp_path: Path) -> None:
    model, images, labels = models.digits(12)
    mixed = hf.mix(model, model, images, labels, hf.Threat("linf", 0.1), steps=2, rounds=1)
    assert repr(mixed).startswith("Mixture of a robust and an accurate model, n = 12\nstandard ")
    assert hf.read(mixed.save(tmp_path)).to_dict() == mixed.to_dict()
    assert "<caption>Mixture of a robust and an accurate model" in mixed._repr_html_()
