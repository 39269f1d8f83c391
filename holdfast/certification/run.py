"""Certified accuracy: what no attack inside a radius can change, and what attacks did change.

For each image, a certificate says up to which radius the answer cannot be changed, and an attack
tries to change it at one radius. So the true robust accuracy lies between two figures:
certified ≤ true ≤ attacked. A certificate that an attack contradicts is a bug, and a flag.
"""

from __future__ import annotations

import csv
import io
import math
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ..errors import InputError
from ..evaluation import health
from ..evaluation.classes import logits_without_images
from ..evaluation.quick_attack import strongest
from ..evaluation.result import Flag
from ..inputs import check_labels, check_logits
from ..intervals import clopper_pearson
from ..models.modes import evaluating
from ..models.wrapper import predicted, standard_defaults, wrapped
from ..runs.environment import circumstances
from ..runs.files import read_text, write_atomically
from ..runs.folder import claimed, finish, finished, holds, now, on_date, open_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.progress import ProgressLine
from ..threat import Images, Threat
from .bounds import escapes, logit_bounds, verified
from .smoothing import ABSTAIN, Certificates, Smoothed

SCHEMA = "holdfast/certification/1"
LADDER = 16  # rungs up to ε, and as many beyond it, at which interval bounds are tried
CURVE_POINTS = 41
WRITE_SECONDS = 5.0  # between two writings of the rows
CHECKSUM = "checksum"  # the last column of certificates.csv
CONTRADICTED = "certificate-contradicted"
PROBE = 32  # images on which bounds are compared with points of the ball


@dataclass(frozen=True)
class Row:
    """What is known about one image.

    Attributes:
        prediction: the certified answer; `ABSTAIN` (−1) where there is none.
        radius: inside which the answer is `prediction`, in image units; 0 where that is not known.
        broken: whether another answer than the label was found within the attack's ε.
        seconds: that certificate and attack took.
    """

    index: int
    label: int
    prediction: int
    radius: float
    broken: bool
    seconds: float


class Method(ABC):
    """A kind of certificate, for one model."""

    name: str
    norm: str
    threat: Threat  # of the attack
    steps: int  # of the attack
    seed: int

    @abstractmethod
    def certify(self, images: Images, indices: Int64[Tensor, " n"]) -> Certificates: ...

    @abstractmethod
    def broken(
        self, images: Images, labels: Int64[Tensor, " n"], indices: Int64[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Where an answer other than the label was found in the ball, on the CPU."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that decides the outcome besides model and images, as JSON."""

    def checks(self, images: Images) -> list[Flag]:
        """Health checks of its own."""
        return []


class Smoothing(Method):
    """Randomised smoothing, L2: see `holdfast.defences.Smoothed`.

    Args:
        n0, n, alpha: of each certificate; answers at attacked points are asked with at most 1,000
            samples and the same alpha, and count as broken only where they are not abstentions.
        samples: draws that the attack averages over.
    """

    name, norm = "smoothing", "l2"

    def __init__(
        self,
        smoothed: Smoothed,
        threat: Threat,
        *,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        steps: int = 20,
        samples: int = 16,
        seed: int = 0,
    ):
        self.smoothed, self.threat, self.steps, self.seed = smoothed, threat, steps, seed
        self.n0, self.n, self.alpha, self.samples = n0, n, alpha, samples

    def settings(self) -> dict[str, Any]:
        return {
            "sigma": self.smoothed.sigma,
            "n0": self.n0,
            "n": self.n,
            "alpha": self.alpha,
            "attack_samples": self.samples,
        }

    def certify(self, images: Images, indices: Int64[Tensor, " n"]) -> Certificates:
        return self.smoothed.certify(
            images, n0=self.n0, n=self.n, alpha=self.alpha, indices=indices
        )

    def broken(
        self, images: Images, labels: Int64[Tensor, " n"], indices: Int64[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        def fooled(points: Images) -> Bool[Tensor, " n"]:
            said = self.smoothed.predict(
                points, n=min(self.n, 1000), alpha=self.alpha, indices=indices
            )
            return (said != ABSTAIN) & (said != labels.cpu())

        size = max(1, self.smoothed.batch_size // self.samples)
        points = strongest(
            self.smoothed.soft(self.samples),
            images,
            labels,
            self.threat,
            self.steps,
            self.seed,
            size,
        )
        return fooled(images) | fooled(points)


class IntervalBounds(Method):
    """Interval bound propagation, L∞: see `holdfast.certification.bounds`.

    A certified radius is the largest of the radii ε/16, 2ε/16, …, 2ε at which the bounds hold.
    """

    name, norm = "interval bounds", "linf"

    def __init__(self, model: nn.Module, threat: Threat, *, steps: int = 50, seed: int = 0):
        self.model, self.threat, self.steps, self.seed = model, threat, steps, seed
        self.asked = wrapped(model)

    def settings(self) -> dict[str, Any]:
        return {"ladder": LADDER}

    def certify(self, images: Images, indices: Int64[Tensor, " n"]) -> Certificates:
        with torch.no_grad():
            prediction = predicted(self.asked(images))
        radius = torch.zeros(len(images), dtype=torch.float64)
        rows = torch.arange(len(images), device=images.device)
        for rung in range(1, 2 * LADDER + 1):
            eps = self.threat.eps * rung / LADDER
            rows = rows[verified(self.model, images[rows], prediction[rows], eps)]
            if not len(rows):  # what a smaller ball does not verify, a larger one does not either
                break
            radius[rows.cpu()] = eps
        return Certificates(prediction.cpu(), radius)

    def broken(
        self, images: Images, labels: Int64[Tensor, " n"], indices: Int64[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        points = strongest(self.asked, images, labels, self.threat, self.steps, self.seed)
        with torch.no_grad():
            answers = torch.stack([predicted(self.asked(x)) for x in (images, points)])
        return (answers != labels).any(0).cpu()

    def checks(self, images: Images) -> list[Flag]:
        probe, eps = images[:PROBE], self.threat.eps
        with torch.no_grad():
            bounds = logit_bounds(self.model, probe, eps)
        wrong = int(escapes(self.model, probe, eps, bounds).sum())
        return [
            Flag(
                "bounds-are-left",
                wrong > 0,
                "Points of the ball have logits outside their bounds: the bounds are wrong."
                if wrong
                else "No point that was tried leaves the bounds of its logits.",
                {"images": len(probe), "wrong": wrong},
            )
        ]


@dataclass(frozen=True)
class CertifiedAt:
    radius: float
    certified_accuracy: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Certification:
    """The outcome of `holdfast.certify`; accuracies are fractions of n, intervals are 95 %.

    Attributes:
        standard_accuracy: of the certified classifier; an abstention is not right.
        abstained: fraction without an answer.
        attacked_accuracy: fraction that an attack at `threat` did not break.
        certified: at the radii asked for; `curve` at many.
        mean_radius: average certified radius, 0 for what is wrong (Zhai et al., ICLR 2020).
        finished: when, ISO 8601, UTC. A run that is found finished keeps its date.
        note: where the model was trained for something else than it is asked at, what.
    """

    method: str
    settings: dict[str, Any]
    n: int
    standard_accuracy: float
    standard_accuracy_interval: tuple[float, float]
    abstained: float
    threat: dict[str, Any]
    attack: str
    attacked_accuracy: float
    attacked_accuracy_interval: tuple[float, float]
    certified: tuple[CertifiedAt, ...]
    curve: tuple[CertifiedAt, ...]
    mean_radius: float
    flags: tuple[Flag, ...]
    seconds: float
    seed: int
    identity: str
    rows: tuple[Row, ...]
    finished: str = ""
    note: str = ""

    def summary(self) -> dict[str, Any]:
        """Everything but the rows, as JSON holds it."""
        return {key: value for key, value in asdict(self).items() if key != "rows"}


def certify_by(
    method: Method,
    model: nn.Module,
    images: Images,
    labels: Int64[Tensor, " n"],
    out: Path,
    *,
    radii: Sequence[float],
    chunk: int = 100,
    classes: Sequence[str] | None = None,
    described: dict[str, Any] | None = None,
    progress: bool = False,
    note: str = "",
) -> Certification:
    """Certify and attack every image; the same call goes on where it was interrupted.

    Args:
        method: `Smoothing` or `IntervalBounds` of the model.
        model: what the run is known by.
        images: float32 (N, C, H, W) in [0, 1], on the model's device.
        radii: at which certified accuracy is reported, in image units, at least 0.
        chunk: images that are worked on at once; it changes no row.
        classes: names of those that the data has.
        described: for `result.json`: what model and data are.
        note: for the result.

    Returns:
        what is also written: `result.json`, and `certificates.csv` with a row an image.

    Raises:
        InputError: a radius below 0; a model that fails on the images, or answers fewer classes
            than there are; a folder that holds another run, or damaged rows.
    """
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise InputError(f"a certified radius must be a number of at least 0, not {radius!r}")
    told: dict[str, Any] = {
        "model": weights_digest(model),
        "images": digest(images, labels),
        "method": method.name,
        **method.settings(),
        "threat": {"norm": method.threat.norm, "eps": method.threat.eps},
        "attack_steps": method.steps,
        "seed": method.seed,
    }
    code = code_version("attacks", "defences", "threat.py", "draws.py")
    key = identity(**told, settings=settings_digest(model), code=code)
    told |= {"settings_sha256": settings_digest(model), "code": code, "n_images": len(images)}
    asked = {**told, "radii": list(radii), **(described or {})}
    path = out / "certificates.csv"
    with standard_defaults(), claimed(out), evaluating(model):
        done = finished(out) if holds(out, "certify", key) else None
        if done is None:
            method.threat.check_reach(images)
            flags = _first_look(model, images, labels, classes)
            for flag in flags if progress else ():
                print(flag.detail, file=sys.stderr)
            flags += method.checks(images)
            open_run(out, "certify", key, {"asked": asked, **circumstances(images.device)})
        else:
            flags = [Flag(**flag) for flag in done["flags"] if flag["name"] != CONTRADICTED]
        rows = _rows(method, images, labels, path, chunk, progress)
        if done is not None and [point["radius"] for point in done["certified"]] == list(radii):
            with ProgressLine("certifying", progress) as line:
                when = on_date(done["finished"])
                line.say(f"{out} was finished on {when}: read, not certified again")
            return _result(method, rows, radii, flags, key, done["finished"], note)
        result = _result(method, rows, radii, flags, key, now(), note)
        told = {"schema": SCHEMA, "status": "complete", **(described or {}), **result.summary()}
        finish(out, told, [path.name])
    return result


def _first_look(
    model: nn.Module, images: Images, labels: Tensor, classes: Sequence[str] | None
) -> list[Flag]:
    """What one look at some images says before hours are spent: whether the model answers them,
    as many classes as the data has, and each by itself. Only what fires."""
    probe, look = images[:PROBE], wrapped(model)
    with torch.no_grad():
        logits = look(probe)
    unnamed = logits_without_images(logits.shape[1], labels, classes)
    check_logits(logits, len(probe), labels[:PROBE].to(images.device))
    check_labels(labels, len(images), logits.shape[1])
    changes = health.outputs_change(look, probe)
    flags = (
        unnamed,
        health.depends_on_batch(look, probe, changes.fired),
        health.writes_to_its_input(look),
    )
    return [flag for flag in flags if flag.fired]


def _rows(
    method: Method, images: Images, labels: Tensor, path: Path, chunk: int, progress: bool
) -> tuple[Row, ...]:
    """All rows, those of earlier processes included."""
    written = time.monotonic()
    done = {row.index: row for row in read_rows(path)} if path.exists() else {}
    left = torch.tensor([i for i in range(len(images)) if i not in done], dtype=torch.int64)
    if not len(left):
        return tuple(done[i] for i in sorted(done))
    with ProgressLine(f"certifying by {method.name}", progress) as line:
        line.update(len(done) / len(images))  # what was there already is not this process's pace
        try:
            for part in left.split(chunk):
                for row in _certified(method, images, labels, part):
                    done[row.index] = row
                right = sum(row.prediction == row.label for row in done.values())
                line.update(
                    len(done) / len(images), f"{right / len(done):.1%} right of {len(done)}"
                )
                if time.monotonic() - written > WRITE_SECONDS:
                    _write_rows(path, done)
                    written = time.monotonic()
        finally:  # an interruption loses no more than the images in work
            if done:
                _write_rows(path, done)
    return tuple(done[i] for i in sorted(done))


def _certified(
    method: Method, images: Images, labels: Tensor, rows: Int64[Tensor, " n"]
) -> Iterator[Row]:
    began = time.monotonic()
    x, y = images[rows.to(images.device)], labels[rows.to(labels.device)]
    found = method.certify(x, rows)
    broken = method.broken(x, y.to(x.device), rows)
    seconds = (time.monotonic() - began) / len(rows)
    for i, row in enumerate(rows.tolist()):
        yield Row(
            index=row,
            label=int(y[i]),
            prediction=int(found.prediction[i]),
            radius=float(found.radius[i]),
            broken=bool(broken[i]),
            seconds=seconds,
        )


def _write_rows(path: Path, rows: dict[int, Row]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow((*(field.name for field in fields(Row)), CHECKSUM))
    for index in sorted(rows):
        values = asdict(rows[index])
        written = [str(v) for v in {**values, "broken": int(values["broken"])}.values()]
        writer.writerow((*written, _checksum(written)))
    write_atomically(path, table.getvalue())


def _checksum(values: Sequence[str]) -> str:
    return f"{zlib.crc32(','.join(values).encode()):08x}"


def read_rows(path: Path) -> list[Row]:
    """The rows of `certificates.csv`; InputError naming the file where it is damaged.

    Each row ends with a checksum; in files of the first version it has none.
    """
    names = [field.name for field in fields(Row)]
    try:
        with io.StringIO(read_text(path), newline="") as file:
            header, *rows = csv.reader(file, strict=True)
        if header not in (names, [*names, CHECKSUM]):
            raise ValueError(f"its columns are not {', '.join(names)}")
        found: dict[int, Row] = {}
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"a row has {len(row)} values")
            if header != names and row.pop() != _checksum(row):
                raise ValueError(f"the checksum of row {row[0]} differs")
            index, label, prediction, radius, broken, seconds = row
            found[int(index)] = Row(
                int(index),
                int(label),
                int(prediction),
                float(radius),
                bool(("0", "1").index(broken)),
                float(seconds),
            )
        if len(found) != len(rows):
            raise ValueError("an image has two rows")
        return list(found.values())
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())}); remove the run folder to start "
            "anew"
        ) from None


def _result(
    method: Method,
    rows: tuple[Row, ...],
    radii: Sequence[float],
    flags: list[Flag],
    key: str,
    when: str,
    note: str,
) -> Certification:
    n, eps = len(rows), method.threat.eps
    right = [row.prediction == row.label for row in rows]

    def at(radius: float) -> CertifiedAt:
        count = sum(good and row.radius >= radius for good, row in zip(right, rows, strict=True))
        return CertifiedAt(radius, count / n, clopper_pearson(count, n))

    standing = sum(not row.broken for row in rows)
    contradicted = [
        row.index
        for good, row in zip(right, rows, strict=True)
        if good and row.broken and row.radius >= eps
    ]
    flags = [
        *flags,
        Flag(
            CONTRADICTED,
            bool(contradicted),
            "An attack changed an answer inside its certified radius: the certificates are wrong."
            if contradicted
            else "No attack changed an answer inside its certified radius.",
            {"images": contradicted[:20], "count": len(contradicted)},
        ),
    ]
    farthest = max((row.radius for row in rows), default=0.0) or eps
    return Certification(
        method=method.name,
        settings=method.settings(),
        n=n,
        standard_accuracy=sum(right) / n,
        standard_accuracy_interval=clopper_pearson(sum(right), n),
        abstained=sum(row.prediction == ABSTAIN for row in rows) / n,
        threat={"norm": method.threat.norm, "eps": eps},
        attack=f"APGD, {method.steps} steps, cross-entropy then margin",
        attacked_accuracy=standing / n,
        attacked_accuracy_interval=clopper_pearson(standing, n),
        certified=tuple(at(radius) for radius in radii),
        curve=tuple(at(farthest * i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)),
        mean_radius=sum(row.radius for good, row in zip(right, rows, strict=True) if good) / n,
        flags=tuple(flags),
        seconds=sum(row.seconds for row in rows),
        seed=method.seed,
        identity=key,
        rows=rows,
        finished=when,
        note=note,
    )
