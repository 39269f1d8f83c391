"""The documentation's site: it builds without a warning, and asks nobody for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NO_REMARK = {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, **NO_REMARK},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = [file for file in (ROOT / "docs").rglob("*.md")]
    assert pages
    for page in pages:
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page


def test_no_page_asks_another_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"(https?:[^\"]+)", text)
        fetched += re.findall(
            r"<link[^>]+rel=\"(?:stylesheet|preconnect)\"[^>]+(https?:[^\"]+)", text
        )
        assert not fetched, page


def test_the_reference_tells_every_verb_and_every_public_name(site: Path) -> None:
    import holdfast as hf
    from holdfast.cli.program import VERBS

    commands = (site / "reference" / "commands.html").read_text()
    assert all(f">holdfast {verb}<" in commands for verb in VERBS)
    python = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    missing = [name for name in hf.__all__ if f"holdfast.{name}" not in python]
    assert set(missing) <= {"__version__"}, missing


def test_links_to_places_in_pages_lead_somewhere(site: Path) -> None:
    """MkDocs warns of pages and anchors that are not there; the pages of the root are not its."""
    for page in site.glob("*.html"):
        for target, anchor in re.findall(r"href=\"([\w-]+\.html)#([^\"]+)\"", page.read_text()):
            assert f'id="{anchor}"' in (site / target).read_text(), (page.name, target, anchor)


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/console_page.py", "docs/tutorial.md", "--check"],
        cwd=ROOT,
        env={**os.environ, **NO_REMARK},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
