"""The zoo: its list is true, and models that are elsewhere are fetched whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import holdfast as hf
from holdfast.errors import HoldfastError
from holdfast.models import zoo
from holdfast.models.checkpoint import read_card

ROOT = Path(__file__).resolve().parents[1]
NAME = "cifar10-autoencoder-cpu"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server's folder with one model; nothing is on this machine yet."""
    served = tmp_path / "served"
    shutil.copytree(ROOT / "zoo" / NAME, served / NAME)
    monkeypatch.setattr(zoo, "ADDRESS", served.as_uri())
    monkeypatch.setenv("HOLDFAST_ZOO", str(tmp_path / "zoo"))
    return served


def test_models_without_a_threat_model_name_none() -> None:
    for folder in zoo.zoo_models().values():
        card = read_card(folder, classifier=False).to_dict()
        plain = card["recipe"]["objective"]["name"] in ("standard", "denoising", "diffusion")
        assert ("threat" in card) != plain, folder


def test_a_model_is_fetched_and_loads(elsewhere: Path, tmp_path: Path) -> None:
    assert zoo.fetch(NAME) == tmp_path / "zoo" / NAME
    shutil.rmtree(elsewhere)
    assert zoo.fetch(NAME) == tmp_path / "zoo" / NAME  # it is here
    assert list((tmp_path / "zoo").iterdir()) == [tmp_path / "zoo" / NAME]
    assert hf.load(NAME).card["architecture"] == "denoising-autoencoder"


def test_what_is_not_what_was_published_is_not_kept(elsewhere: Path, tmp_path: Path) -> None:
    weights = elsewhere / NAME / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(HoldfastError, match="checksum differs"):
        zoo.fetch(NAME)
    assert not list((tmp_path / "zoo").iterdir())


def test_a_server_that_is_not_there_is_one_line(elsewhere: Path, tmp_path: Path) -> None:
    shutil.rmtree(elsewhere)
    with pytest.raises(HoldfastError, match="set HOLDFAST_ZOO") as caught:
        zoo.fetch(NAME)
    assert str(caught.value).startswith(f"{zoo.ADDRESS}/{NAME}/card.json cannot be reached")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "zoo").iterdir())


def test_unknown_models_are_told_from_those_elsewhere(elsewhere: Path) -> None:
    with pytest.raises(hf.InputError, match="did you mean 'cifar10-linf-2h'"):
        zoo.fetch("cifar10-linf-2hh")
    with pytest.raises(hf.InputError, match=f"models --fetch {NAME}` fetches it .0.2 MB. from"):
        hf.load(NAME)


def test_the_usual_address_is_the_projects() -> None:
    assert zoo.ADDRESS == "https://github.com/holdfast-robustness/holdfast/raw/v0.2.0/zoo"
