"""The model that a run probes: calibrated, with every detector, and its fast copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ... import draws
from ...attacks import Oracle
from ...attacks.losses import margin
from ...defences.base import declared
from ...distributed import Workers
from ...errors import InputError
from ...models.wrapper import unwrapped
from ...runs.files import make_folder
from ...runs.identity import digest
from ...search import Journal
from ...search.fast_copies import FastCopy, Say, fast_copy_of, has_fast_bf16, original
from ...stored import ModelImages, part
from ...threat import Threat, per_item
from ...types import Model, Stored
from .. import scores
from ..attacks import Ascent, Found, seek
from ..batches import in_batches
from ..calibration import Calibrated, TemperatureScaling
from ..detection import WithDetector, last_linear
from .request import Request

SPREAD_SAMPLES = 4  # noisy passes an image, for the spread of its predictions
DROPOUT_SAMPLES = 8  # passes with dropout an image
NEIGHBOURS = 50  # as published for CIFAR-10, for k-nearest-neighbour distances
PROBE = 64  # test images on which a fast copy is compared with its original
SMOOTH = 0.8  # share of a step's linear gain that a smooth model keeps over ε
COARSE = 0.1  # largest error of a fast copy's output, in standard deviations of that output


class Look(NamedTuple):
    """Calibrated logits of N images, and their features (N, D); D is 0 for a model without any."""

    logits: Float[Tensor, "n k"]
    features: Float[Tensor, "n d"]


class Scored(NamedTuple):
    """Calibrated logits of N images, and every detector's score of them."""

    logits: Float[Tensor, "n k"]
    scores: dict[str, Float[Tensor, " n"]]  # by detector


@dataclass
class ProbedModel:
    """A calibrated model with its detectors. Whatever is slow is made when it is first used.

    Attributes:
        request: the run's.
        temperature: the calibrator in front of which everything is measured.
        batch_size: images in a pass.
        fast_copies: those made so far, by name.
        log: why a search could not use a faster copy, one line a reason.
        folder: where searches keep what they find while they run; None: in memory.
        key: the run's identity.
        workers: who shares the images of each search.
    """

    request: Request
    temperature: TemperatureScaling
    batch_size: int = 128
    fast_copies: dict[str, FastCopy] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    folder: Path | None = None
    key: str = ""
    workers: Workers = field(default_factory=Workers)

    @cached_property
    def model(self) -> Calibrated:
        """The model behind its temperature."""
        return Calibrated(self.request.model, self.temperature).eval()

    @cached_property
    def features(self) -> scores.LayerFeatures | None:
        """The input of the last linear layer; None for a model without one."""
        layer = last_linear(unwrapped(self.request.model))
        if layer is None:
            return None
        features = scores.LayerFeatures(self.model, f"model.{layer}", take="input")
        try:
            in_batches(self._on_device(features), self.request.test.images[:2])
        except InputError:  # a layer that is not run
            return None
        return features

    @cached_property
    def detectors(self) -> dict[str, scores.Score]:
        """Every score that this model allows, by name."""
        request, model = self.request, self.model
        found: dict[str, scores.Score] = {
            name: scores.LogitScore(model, name) for name in scores.LOGIT_SCORES
        }
        if (layer := self.features) is not None:
            images = request.training.images
            features = in_batches(lambda x: layer(x.to(request.device)), images)
            found["mahalanobis"] = scores.Mahalanobis(
                layer,
                images,
                request.training.labels,
                classes=len(request.classes),
                known=features,
            )
            found["nearest-neighbour"] = scores.NearestNeighbour(
                layer, images, k=min(NEIGHBOURS, len(images)), known=features
            )
        # Noise moves logits much further than a fast copy's rounding.
        found["smoothing-spread"] = scores.smoothing_spread(
            self.fast_copy("calibrated", model).model,
            request.sigma,
            samples=SPREAD_SAMPLES,
            seed=request.seed,
        )
        if request.members:
            found["ensemble"] = scores.deep_ensemble([request.model, *request.members])
        if isinstance(request.model, nn.Module) and scores.has_dropout(request.model):
            found["mc-dropout"] = scores.mc_dropout(
                model, samples=DROPOUT_SAMPLES, seed=request.seed
            )
        if declared(request.model).random:
            found["defence-spread"] = scores.defence_spread(
                model, samples=SPREAD_SAMPLES, seed=request.seed
            )
        return found

    def look(self, images: Tensor | Stored) -> Look:
        """Logits and features of images (N, C, H, W), by the original in its own precision."""
        if self.features is None:
            return Look(self.logits(images), torch.zeros(len(images), 0))
        layer = self.features
        joined = in_batches(self._on_device(lambda x: torch.cat(layer.with_output(x), 1)), images)
        split = joined.shape[1] - len(self.request.classes)
        return Look(joined[:, split:].float(), joined[:, :split])

    def score(
        self, images: Tensor | Stored, items: Int64[Tensor, " n"], look: Look | None = None
    ) -> Scored:
        """Logits and every score of images (N, C, H, W).

        Args:
            look: at these images, if the model was asked about them before.
        """
        found: dict[str, Tensor] = {}
        logits, features = look or self.look(images)
        for name, score in self.detectors.items():
            if isinstance(score, scores.LogitScore):
                found[name] = score.measure(logits)
            elif isinstance(score, scores.FeatureScore):
                parts = features.to(self.request.device).split(1024)
                found[name] = torch.cat([score.from_features(part).cpu() for part in parts])
            else:
                found[name] = in_batches(self._on_device(score), images, items)
        return Scored(logits, found)

    def logits(self, images: Tensor | Stored) -> Float[Tensor, "n k"]:
        """Calibrated logits of the original model, on the CPU."""
        return in_batches(self._on_device(self.model), images).float()

    def logits_of_many(self, images: Tensor | Stored) -> Float[Tensor, "n k"]:
        """Calibrated logits of the fast copy, and the original's wherever the two could predict
        differently, on the CPU."""
        fast_copy = self.fast_copy("calibrated", self.model)
        if fast_copy.model is self.model:
            return self.logits(images)
        logits = in_batches(
            self._on_device(fast_copy.model), images, batch_size=self.batch_size
        ).float()
        top = logits.topk(2, dim=1).values
        near = (top[:, 0] - top[:, 1] <= 2 * fast_copy.error).nonzero().squeeze(1)
        if len(near):
            logits[near] = self.logits(part(images, near))
        return logits

    @cached_property
    def smooth(self) -> bool:
        """Whether a step of the length ε gains nearly what its gradient promises, on some test
        images: then few long steps reach as far as many short ones."""
        request = self.request
        if request.threat.norm not in ("linf", "l2"):
            return False  # nobody has measured it there
        search = Oracle(self.fast_copy("calibrated", self.model).model)
        x, y = (t[:PROBE].to(request.device) for t in (request.test.floats, request.test.labels))
        with draws.fixed_draws(request.seed):
            gradient, _, before = search.gradient(x, lambda logits: -margin(logits, y))
            step = request.threat.table.steepest(gradient, x)
            step = step * per_item(request.threat.radii(x), x)
            gained = -margin(search.logits(x + step), y) - before
        return float(gained.sum()) >= SMOOTH * float((gradient * step).sum()) > 0

    def _on_device(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(images: Tensor, *more: Tensor) -> Tensor:
            # A model that draws random numbers gives the same logits at every call.
            with draws.fixed_draws(self.request.seed):
                return function(images.to(self.request.device), *more).cpu()

        return call

    def with_detector(self, name: str) -> tuple[WithDetector, FastCopy]:
        """The model with one detector, and the fast copy of both on which to search."""
        score = self.detectors[name]
        both = WithDetector(self.model, score).eval()
        if isinstance(score, scores.LogitScore):
            fast_copy = self.fast_copy("calibrated", self.model)
            same = scores.LogitScore(fast_copy.model, name)
            fast_both = WithDetector(fast_copy.model, same).eval()
            return both, FastCopy(fast_both, fast_copy.name, fast_copy.error)
        return both, self.fast_copy(name, both)

    def fast_copy(self, name: str, model: nn.Module) -> FastCopy:
        """The fastest copy of `model` whose every output stays close; made once for each name.

        Its `error` is the largest that the difference of two logits may be wrong by.
        """
        if name not in self.fast_copies:
            self.fast_copies[name] = _fastest_copy(model, self.request, self.log.append)
        return self.fast_copies[name]

    def seek(
        self,
        name: str,
        attack: Ascent,
        model: Model,
        images: ModelImages,
        labels: Int64[Tensor, " n"],
        threat: Threat,
        *,
        starts: ModelImages | None = None,
        known: Tensor | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Found:
        """`seek` with the run's seed, device and batch size. A run that is interrupted goes on in
        the midst of it.

        Args:
            name: of this search, unlike that of any other in the run: nothing else tells apart two
                detectors that are attacked alike.
        """
        if known is not None and declared(self.request.model).random:
            known = None  # there it draws from each image's own stream
        workers, count = self.workers, len(images)
        mine = torch.arange(count)[workers.rank :: workers.size]
        if workers.size > 1:
            items = options.pop("items", None)
            options["items"] = mine if items is None else items[mine]
            images, labels = part(images, mine), labels[mine]
            starts = None if starts is None else part(starts, mine)
            known = None if known is None else known[mine]
        found = None
        if len(mine):
            found = self._seek(
                name, attack, model, images, labels, threat, starts, known, batch_size, **options
            )
        return found if workers.size == 1 and found is not None else self._of_all(found, mine)

    def _of_all(self, found: Found | None, mine: Int64[Tensor, " r"]) -> Found:
        """What all workers found, in each of them."""
        held = [(rows, each) for rows, each in self.workers.gather((mine, found)) if each]
        everything = None
        if held:
            order = torch.cat([rows for rows, _ in held]).argsort()
            columns = zip(*(each for _, each in held), strict=True)
            everything = Found(*(torch.cat(column)[order] for column in columns))
        shared: Found | None = self.workers.share(everything)
        assert shared is not None
        return shared

    def _seek(
        self,
        name: str,
        attack: Ascent,
        model: Model,
        images: ModelImages,
        labels: Int64[Tensor, " n"],
        threat: Threat,
        starts: ModelImages | None,
        known: Tensor | None,
        batch_size: int | None,
        **options: Any,
    ) -> Found:
        journal = None
        if self.folder is not None:
            begin = images if starts is None else starts
            settings = json.dumps([attack.describe(), threat.describe()], sort_keys=True)
            asked = digest(name, images, begin, labels, settings)
            path = make_folder(self.folder) / f"search-{asked[:16]}.sqlite"
            journal = Journal(path, f"{self.key}/{asked}")
        try:
            return seek(
                attack,
                model,
                images,
                labels,
                threat,
                starts=starts,
                known=known,
                seed=self.request.seed,
                batch_size=batch_size or self.batch_size,
                device=self.request.device,
                journal=journal,
                **options,
            )
        finally:
            if journal is not None:
                journal.close()


def _fastest_copy(model: nn.Module, request: Request, say: Say) -> FastCopy:
    probe = request.test.floats[:PROBE].to(request.device)
    labels = request.test.labels[:PROBE].to(request.device)
    with torch.no_grad():
        reference = model(probe).float()
    for precision in ("bf16", "float32"):
        if precision == "bf16" and not has_fast_bf16(request.device):
            continue
        fast_copy = fast_copy_of(model, probe, labels, precision, say)
        if fast_copy is None:
            continue
        with torch.no_grad():
            error = (fast_copy.model(probe) - reference).abs().amax(0)
        if bool((error <= COARSE * reference.std(0)).all()):
            logits = error[: len(request.classes)]
            return FastCopy(fast_copy.model, fast_copy.name, 2 * float(logits.max()))
        say(f"no {precision} copy: some of its outputs are off by {float(error.max()):.2g}")
    return original(model)


def wrong(logits: Float[Tensor, "n k"], labels: Int64[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Whether each prediction is wrong."""
    return logits.argmax(1) != labels
