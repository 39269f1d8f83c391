"""Shared settings: tests run on one thread each, for several run at once."""

import torch

torch.set_num_threads(1)
