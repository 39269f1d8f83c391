"""HAT: helper examples beyond the attack, with the labels of a standard model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import InputError
from ...inputs import check_logits
from ...loading import load
from ...runs.identity import weights_digest
from ...types import Images
from ..averaging import frozen_statistics
from .base import Batch, Loss, Network, inside
from .trades import TRADES


@dataclass(kw_only=True, eq=False)
class HAT(TRADES):
    """TRADES + `gamma` × cross-entropy on helper examples, x + `reach` × (attacked − x).

    Rade & Moosavi-Dezfooli, "Reducing excessive margin to achieve a better accuracy vs.
    robustness trade-off", ICLR 2022. Far beyond the attack, an image may well look like another
    class: its label there is what a model without a defence says of the attacked image.

    Args:
        helper: that model: a checkpoint or run folder, or a name from the zoo.
        reach: how far the helper lies, in lengths of the attack; it may leave the ball and box.

    The helper's pass leaves batch-norm statistics alone: nobody is evaluated there.
    """

    helper: str
    beta: float = 2.5
    gamma: float = 0.5
    reach: float = 3.5

    def __post_init__(self) -> None:
        self.standard: nn.Module | None = None  # the helper, once `prepare` was called

    def prepare(self, images: Images, classes: int) -> None:
        try:
            standard = load(self.helper, code=False).to(images.device)
            with torch.no_grad():
                logits = standard(images)
            check_logits(logits, len(images), torch.zeros_like(logits[:, 0], dtype=torch.int64))
            if logits.shape[1] != classes:
                raise InputError(
                    f"it tells {logits.shape[1]} classes apart, the data has {classes}"
                )
        except (InputError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise InputError(f"objective 'hat': helper {self.helper!r}: {said}") from None
        self.standard = standard.requires_grad_(False)
        self.fingerprint = weights_digest(standard) or ""

    def loss(self, model: Network, points: Images, batch: Batch) -> Loss:
        assert self.standard is not None, "prepare() comes first"
        trades = super().loss(model, points, batch)
        clean, attacked = points.chunk(2)
        with torch.no_grad():
            labels = self.standard(attacked).argmax(1)
        with frozen_statistics(inside(model)):
            logits = model(clean + self.reach * (attacked - clean))
        helped = batch.mean(F.cross_entropy(logits, labels, reduction="none"))
        return Loss(trades.value + self.gamma * helped, trades.logits)
