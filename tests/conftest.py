"""Shared settings: tests run on one thread each, for several run at once, and whatever they draw
without a seed of their own is the same every time."""

import random

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
