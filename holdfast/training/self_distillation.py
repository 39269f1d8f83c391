"""Self-distillation: part of what a network is taught is what its averaged weights say."""

from __future__ import annotations

import torch
from torch import nn

from .averaging import batch_norms, frozen_statistics
from .objectives import Batch


@torch.no_grad()
def softened(batch: Batch, teacher: nn.Module, share: float) -> Batch:
    """The batch with `truth` in part replaced by the teacher's probabilities on clean images.

    A network that learns hard labels under attack is driven to answer ambiguous images with
    confidence, and learns them by heart; the averaged weights know which are ambiguous. The share
    is lessened image by image by how much likelier than the label the teacher finds another class,
    so that its errors are not taught. Wu et al., "Annealing self-distillation rectification
    improves adversarial training", ICLR 2024 (there with a temperature as well).

    Args:
        batch: of n images; its attacks climb the cross-entropy of the new `truth`.
        teacher: averaged weights; asked with the batch's own batch-norm statistics, since theirs
            are estimated at validations alone. Its mode and statistics stay as they are.
        share: weight of the teacher's probabilities, 0 to 1.
    """
    norms = [(norm, norm.training) for norm in batch_norms(teacher)]
    with frozen_statistics(teacher):
        for norm, _ in norms:
            norm.train()
        said = teacher(batch.images).float().softmax(1)
        for norm, trains in norms:
            norm.train(trains)
    lead = said.amax(1) - said.gather(1, batch.labels[:, None]).squeeze(1)
    weight = (share - lead).clamp_min(0)[:, None]
    return batch._replace(truth=torch.lerp(batch.probabilities(said.shape[1]), said, weight))
