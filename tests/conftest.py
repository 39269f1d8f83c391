"""Shared settings: tests run on one thread each, for several run at once, and whatever they draw
without a seed of their own is the same every time."""

import os
import random
import shutil
from collections.abc import Iterator

import numpy as np
import pretend_accelerator  # noqa: F401  before a backward pass: devices are counted at the first
import pytest
import torch

torch.set_num_threads(1)
torch.manual_seed(0)  # of what is drawn while tests are collected


@pytest.fixture(autouse=True)
def _seeds():
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)


# A browser of the machine's own; else the one that `make browser` brings.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def missing(reason: str) -> None:
    """Where a browser has to be there, its absence is a failure, not a skip."""
    if os.environ.get("HOLDFAST_BROWSER") == "required":
        pytest.fail(f"HOLDFAST_BROWSER=required, but {reason}: run `make browser`")
    pytest.skip(f"{reason}: run `make browser`")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        missing("playwright is not installed")
    own = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(
                executable_path=own, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
        except Error as error:
            missing(f"no browser starts ({str(error).splitlines()[0]})")
        yield found
        found.close()
