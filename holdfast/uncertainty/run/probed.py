"""The model that is asked how sure it is: calibrated, watched by detectors, and its fast copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from ... import draws
from ...attacks.base import Model
from ...attacks.suite import Suite
from ...data.out_of_distribution import Foreign
from ...defences.base import declared
from ...errors import InputError
from ...models.wrapper import unwrapped
from ...search.fast_copies import FastCopy, Say, fast_copy_of, has_fast_bf16, original
from ...threat import Threat
from .. import scores
from ..batches import in_batches
from ..calibration import Calibrated, TemperatureScaling
from ..detection import Watched, last_linear

SPREAD_SAMPLES = 4  # looks through noise for the spread of predictions
DROPOUT_SAMPLES = 8
NEIGHBOURS = 50  # as published for CIFAR-10, for k-nearest-neighbour distances
PROBE = 64  # images that fast copies are compared on
COARSE = 0.1  # a fast copy may be wrong by this share of an output's standard deviation


@dataclass(frozen=True, eq=False)
class Part:
    """Images as data sets store them, their labels, and their numbers in the data set."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    items: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def floats(self) -> Float[Tensor, "n c h w"]:
        return self.images.float() / 255


@dataclass(frozen=True, eq=False)
class Question:
    """What is asked, checked and in memory.

    Attributes:
        model: images to logits, in eval mode, on `device`.
        members: more models of an ensemble.
        threat: what attacks may do.
        suite: what breaks labels.
        test: what figures are measured on.
        tuning: validation images on which scalings are fitted.
        held: other validation images, on which thresholds and sets are calibrated.
        more_test, more_held: `test` and `held` with more of their kind behind them: what needs no
            attack is told more exactly on these.
        training: training images whose features detectors know.
        classes: names.
        foreign: images of other kinds.
        human: (N, K) of people on the test images.
        alpha: share of conformal sets that may miss.
        risk, coverage: what abstaining promises.
        radius, sigma: of the robust sets, L2, in image units.
    """

    model: Model
    members: Sequence[Model]
    threat: Threat
    suite: Suite
    test: Part
    tuning: Part
    held: Part
    more_test: Part
    more_held: Part
    training: Part
    classes: tuple[str, ...]
    foreign: Sequence[Foreign]
    human: Float[Tensor, "n k"] | None
    alpha: float
    risk: float
    coverage: float
    radius: float
    sigma: float
    seed: int
    device: torch.device


class Known(NamedTuple):
    """What is known of some images: calibrated logits (N, K), and (N,) of every score."""

    logits: Tensor
    scores: dict[str, Tensor]


@dataclass
class Subject:
    """A calibrated model with its detectors; everything heavy is made when first needed."""

    question: Question
    temperature: TemperatureScaling
    batch_size: int = 128
    fast_copies: dict[str, FastCopy] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)  # why a faster copy was not searched on

    @cached_property
    def model(self) -> Calibrated:
        return Calibrated(self.question.model, self.temperature).eval()

    @cached_property
    def features(self) -> scores.LayerFeatures | None:
        """What the last linear layer is given; None for a model without one."""
        layer = last_linear(unwrapped(self.question.model))
        if layer is None:
            return None
        features = scores.LayerFeatures(self.model, f"model.{layer}", take="input")
        try:
            in_batches(self._on_device(features), self.question.test.images[:2])
        except InputError:  # a layer that is not run
            return None
        return features

    @cached_property
    def detectors(self) -> dict[str, scores.Score]:
        """Every score that this model allows, by name."""
        q, model = self.question, self.model
        found: dict[str, scores.Score] = {
            name: scores.LogitScore(model, name) for name in scores.LOGIT_SCORES
        }
        if self.features is not None:
            images = q.training.images.to(q.device)
            found["mahalanobis"] = scores.Mahalanobis(
                self.features, images, q.training.labels, classes=len(q.classes)
            )
            found["nearest-neighbour"] = scores.NearestNeighbour(
                self.features, images, k=min(NEIGHBOURS, len(images))
            )
        found["smoothing-spread"] = scores.smoothing_spread(
            model, q.sigma, samples=SPREAD_SAMPLES, seed=q.seed
        )
        if q.members:
            found["ensemble"] = scores.deep_ensemble([q.model, *q.members])
        if isinstance(q.model, nn.Module) and scores.has_dropout(q.model):
            found["mc-dropout"] = scores.mc_dropout(model, samples=DROPOUT_SAMPLES, seed=q.seed)
        if declared(q.model).random:
            found["defence-spread"] = scores.defence_spread(
                model, samples=SPREAD_SAMPLES, seed=q.seed
            )
        return found

    def know(self, images: Tensor, items: Tensor) -> Known:
        """Logits and every score of images, by the original model in its own precision."""
        found: dict[str, Tensor] = {}
        if self.features is None:
            logits = self.logits(images)
        else:
            at_hand = self.features
            joined = in_batches(
                self._on_device(lambda x: torch.cat(at_hand.with_output(x), 1)), images
            )
            split = joined.shape[1] - len(self.question.classes)
            features, logits = joined[:, :split], joined[:, split:].float()
        for name, score in self.detectors.items():
            if isinstance(score, scores.LogitScore):
                found[name] = score.measure(logits)
            elif isinstance(score, scores.FeatureScore):
                parts = features.to(self.question.device).split(1024)
                found[name] = torch.cat([score.of(part).cpu() for part in parts])
            else:
                found[name] = in_batches(self._on_device(score), images, items)
        return Known(logits, found)

    def logits(self, images: Tensor) -> Float[Tensor, "n k"]:
        """Calibrated logits of the original model, on the CPU."""
        return in_batches(self._on_device(self.model), images).float()

    def _on_device(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(images: Tensor, *more: Tensor) -> Tensor:
            # A model that draws random numbers answers the same when it is asked again.
            with draws.fixed_draws(self.question.seed):
                return function(images.to(self.question.device), *more).cpu()

        return call

    def watched(self, detector: str) -> tuple[Watched, FastCopy]:
        """The model with one detector, and the fast copy to search on."""
        score = self.detectors[detector]
        watched = Watched(self.model, score).eval()
        if isinstance(score, scores.LogitScore):
            fast_copy = self.fast_copy("calibrated", self.model)
            same = scores.LogitScore(fast_copy.model, detector)
            return watched, FastCopy(
                Watched(fast_copy.model, same).eval(), fast_copy.name, fast_copy.error
            )
        return watched, self.fast_copy(detector, watched)

    def fast_copy(self, name: str, model: nn.Module) -> FastCopy:
        """The fastest copy of a model whose every output stays close; made once a name.

        `error` is the largest difference between two outputs from the original's.
        """
        if name not in self.fast_copies:
            self.fast_copies[name] = _quick(model, self.question, self.log.append)
        return self.fast_copies[name]


def _quick(model: nn.Module, question: Question, say: Say) -> FastCopy:
    probe = question.test.floats[:PROBE].to(question.device)
    labels = question.test.labels[:PROBE].to(question.device)
    with torch.no_grad():
        reference = model(probe).float()
    for precision in ("bf16", "float32"):
        if precision == "bf16" and not has_fast_bf16(question.device):
            continue
        fast_copy = fast_copy_of(model, probe, labels, precision, say)
        if fast_copy is None:
            continue
        with torch.no_grad():
            off = (fast_copy.model(probe) - reference).abs().amax(0)
        if bool((off <= COARSE * reference.std(0)).all()):
            logits = off[: len(question.classes)]
            return FastCopy(fast_copy.model, fast_copy.name, 2 * float(logits.max()))
        say(f"no {precision} copy: some of its outputs are off by {float(off.max()):.2g}")
    return original(model)


def wrong(logits: Tensor, labels: Tensor) -> Bool[Tensor, " n"]:
    return logits.argmax(1) != labels
