"""A certification run: every image is certified and attacked, and the rows are written.

A certificate says inside which radius no attack can change an image's prediction. An attack tries
to change it at one radius. So the true robust accuracy lies between two measured ones:
certified ≤ true ≤ attacked. If an attack contradicts a certificate, the certificate is wrong, and a
flag says so.
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
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from jaxtyping import Bool, Int64
from pydantic import ConfigDict, Field, SkipValidation
from torch import Tensor, nn

from ..distributed import Workers, joined
from ..errors import InputError
from ..evaluation import health
from ..evaluation.classes import logits_without_images
from ..evaluation.quick_attack import quick_attack
from ..evaluation.result import Flag
from ..inputs import check_labels, check_logits
from ..intervals import clopper_pearson
from ..models.adapted import described_with
from ..models.modes import evaluating
from ..models.wrapper import predicted, standard_defaults, unwrapped, wrapped
from ..runs import records
from ..runs.environment import circumstances
from ..runs.files import make_folder, read_text, write_atomically
from ..runs.folder import finish, finished, holds, now, on_date, open_run
from ..runs.identity import code_version, digest, identity, settings_digest, weights_digest
from ..runs.lock import claimed
from ..runs.progress import ProgressLine
from ..runs.records import CertificationRecord
from ..runs.records.base import Fraction, Integer, Interval, ListOf, Quantity
from ..stored import ModelImages
from ..threat import Threat
from ..types import Images
from .bounds import logit_bounds, outside_bounds, verified
from .smoothing import ABSTAIN, Certificates, Smoothed

CODE = ("attacks", "certification", "defences", "intervals.py", "threat.py", "draws.py")
LADDER = 16  # interval bounds are tried at ε/16, 2ε/16, …, 2ε
CURVE_POINTS = 41  # radii at which the curve of certified accuracy is drawn
WRITE_SECONDS = 5.0  # rows are written at most this often
OTHERS = "certificates-*.csv"  # what workers write, until it is brought together
CHECKSUM = "checksum"  # the last column of certificates.csv
CONTRADICTED = "certificate-contradicted"  # the name of a flag
PROBE = 32  # the first images, on which the model and its bounds are checked


@dataclass(frozen=True)
class Row:
    """The certificate of one image, and what an attack did to it.

    Attributes:
        index: the image's number in its split.
        label: its true class.
        prediction: the certified class; `ABSTAIN` (−1) where there is none.
        radius: inside this radius, in image units, the prediction is `prediction`; 0 where nothing
            is certified.
        broken: whether a prediction other than the label was found within the attack's ε.
        seconds: time that certificate and attack took.
    """

    index: int
    label: int
    prediction: int
    radius: float
    broken: bool
    seconds: float


class Method(ABC):
    """A way to certify one model, and the attack that tries to contradict it.

    Attributes:
        name: of the way, as results hold it.
        norm: in which radii are measured.
        threat: of the attack.
        steps: iterations of the attack.
        seed: of all random draws.
    """

    name: str
    norm: str
    threat: Threat
    steps: int
    seed: int

    @abstractmethod
    def certify(self, images: Images, indices: Int64[Tensor, " n"]) -> Certificates:
        """Certificates of images (N, C, H, W), whose numbers in their split are `indices`."""

    @abstractmethod
    def broken(
        self, images: Images, labels: Int64[Tensor, " n"], indices: Int64[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Whether a prediction other than the label was found in the ball, (N,) on the CPU."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything that decides the outcome besides model and images, as JSON holds it."""

    def checks(self, images: Images) -> list[Flag]:
        """Health checks of this way to certify."""
        return []


class Smoothing(Method):
    """Certificates in L2 by randomised smoothing.

    An attacked image is predicted with at most 1,000 samples. It is broken if the prediction is a
    class other than the label; an abstention does not count as broken.

    Args:
        smoothed: the smoothed model.
        threat: of the attack.
        n0, n, alpha: as for `Smoothed.certify`.
        steps: iterations of the attack.
        samples: noisy samples of an image that the attack averages over.
        seed: of the attack.
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
        def wrong(points: Images) -> Bool[Tensor, " n"]:
            prediction = self.smoothed.predict(
                points, n=min(self.n, 1000), alpha=self.alpha, indices=indices
            )
            return (prediction != ABSTAIN) & (prediction != labels.cpu())

        size = max(1, self.smoothed.batch_size // self.samples)
        points = quick_attack(
            self.smoothed.soft(self.samples),
            images,
            labels,
            self.threat,
            self.steps,
            self.seed,
            size,
            items=indices,
        )
        return wrong(images) | wrong(points)


class IntervalBounds(Method):
    """Certificates in L∞ by interval bound propagation (`holdfast.certification.bounds`).

    An image's certified radius is the largest of ε/16, 2ε/16, …, 2ε at which the bounds prove that
    the prediction cannot change.

    Args:
        model: images to logits, of layers that `bounds` has rules for.
        threat: of the attack, whose radius is ε.
        steps: iterations of the attack.
        seed: of the attack.
    """

    name, norm = "interval bounds", "linf"

    def __init__(self, model: nn.Module, threat: Threat, *, steps: int = 50, seed: int = 0):
        self.wrapped_model = wrapped(model)
        self.model = cast(nn.Module, unwrapped(model))  # bounds go through its layers
        self.threat, self.steps, self.seed = threat, steps, seed

    def settings(self) -> dict[str, Any]:
        return {"ladder": LADDER}

    def certify(self, images: Images, indices: Int64[Tensor, " n"]) -> Certificates:
        with torch.no_grad():
            prediction = predicted(self.wrapped_model(images))
        radius = torch.zeros(len(images), dtype=torch.float64)
        rows = torch.arange(len(images), device=images.device)
        for rung in range(1, 2 * LADDER + 1):
            eps = self.threat.eps * rung / LADDER
            rows = rows[verified(self.model, images[rows], prediction[rows], eps)]
            if not len(rows):  # what is not verified in a ball is not in a larger one either
                break
            radius[rows.cpu()] = eps
        return Certificates(prediction.cpu(), radius)

    def broken(
        self, images: Images, labels: Int64[Tensor, " n"], indices: Int64[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        points = quick_attack(
            self.wrapped_model,
            images,
            labels,
            self.threat,
            self.steps,
            self.seed,
            items=indices,
        )
        with torch.no_grad():
            predictions = [predicted(self.wrapped_model(x)) for x in (images, points)]
        return (torch.stack(predictions) != labels).any(0).cpu()

    def checks(self, images: Images) -> list[Flag]:
        probe, eps = images[:PROBE], self.threat.eps
        with torch.no_grad():
            bounds = logit_bounds(self.model, probe, eps)
        wrong = int(outside_bounds(self.model, probe, eps, bounds).sum())
        return [
            Flag(
                name="bounds-are-left",
                fired=wrong > 0,
                detail="Some points of the ball have logits outside the bounds: the bounds are "
                "wrong."
                if wrong
                else "Every point of the ball that was tried has logits inside the bounds.",
                figures={"images": len(probe), "wrong": wrong},
            )
        ]


class CertifiedAt(records.CertifiedAt):
    """As in the record, and every figure is there."""

    certified_accuracy: Fraction
    interval: Interval


class Certification(CertificationRecord):
    """The outcome of `holdfast.certify`: the record of the run, and what is known of each image.

    Attributes (besides those of `CertificationRecord`):
        rows: one an image.
    """

    model_config = ConfigDict(extra="forbid")

    standard_accuracy: Fraction
    standard_accuracy_interval: Interval
    abstained: Fraction
    attacked_accuracy: Fraction
    attacked_accuracy_interval: Interval
    certified: ListOf[CertifiedAt]
    curve: ListOf[CertifiedAt]
    mean_radius: Quantity
    seconds: Quantity
    seed: Integer
    finished: str = ""
    rows: Annotated[tuple[Row, ...], SkipValidation] = Field(exclude=True)


def certify_by(
    method: Method,
    model: nn.Module,
    images: ModelImages,
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
    """Certify and attack every image. The same call goes on where it was interrupted.

    Args:
        method: `Smoothing` or `IntervalBounds` of the model.
        model: decides the identity of the run.
        images: float32 (N, C, H, W) in [0, 1], on the model's device.
        labels: int64 (N,).
        out: the run folder: `result.json`, and `certificates.csv` with a row an image.
        radii: at which certified accuracy is reported, in image units, at least 0.
        chunk: images that are worked on at once. It changes no row.
        classes: names of the classes of the data.
        described: for `result.json`: what model and data are.
        progress: show progress on standard error.
        note: for the result.

    Returns:
        what is also written.

    Raises:
        InputError: a radius below 0; a model that fails on the images, or has fewer logits than
            there are classes; a folder that holds another run, or damaged rows.
    """
    for radius in radii:
        if not (math.isfinite(radius) and radius >= 0):
            raise InputError(f"a certified radius must be a number of at least 0, not {radius!r}")
    described = described or {}
    settings, key = _identity(method, model, images, labels)
    request = {**settings, "n_images": len(images), "radii": list(radii), **described}
    path = out / "certificates.csv"
    with (
        standard_defaults(),
        evaluating(model),
        joined() as workers,
        claimed(out) if workers.leads else nullcontext(),
    ):
        _check_alike(workers, key)
        progress = progress and workers.leads
        mine = workers.leads and holds(out, "certify", key)
        earlier: CertificationRecord | None = workers.share(
            finished(out, CertificationRecord) if mine else None
        )
        if earlier is None:
            flags = _checked(method, model, images, labels, classes, progress)
            if workers.leads:
                where = circumstances(images.device)
                open_run(out, "certify", key, {"asked": request, **where}, besides=OTHERS)
            workers.meet()  # from now on the others write there, too
        else:
            flags = [Flag(**flag.to_dict()) for flag in earlier.flags if flag.name != CONTRADICTED]
        rows = _rows(method, images, labels, path, key, chunk, progress, workers)
        if earlier and [point.radius for point in earlier.certified] == list(radii):
            with ProgressLine("certifying", progress) as line:
                when = on_date(earlier.finished or "")
                line.say(f"{out} was finished on {when}: read, not certified again")
            return _result(method, rows, radii, flags, key, earlier.finished or "", note)
        result = _result(method, rows, radii, flags, key, str(workers.share(now())), note)
        if workers.leads:
            described = described_with(described, model)
            record = CertificationRecord.checked({**described, **result.to_dict()}, str(out))
            finish(out, record, [path.name])
        workers.meet()
    return result


def _check_alike(workers: Workers, key: str) -> None:
    """InputError where processes are about to certify different things."""
    keys = set(workers.gather(key))
    if len(keys) > 1:
        raise InputError("the processes have different models, images or versions of Holdfast")


def _identity(
    method: Method, model: nn.Module, images: ModelImages, labels: Tensor
) -> tuple[dict[str, Any], str]:
    """Everything that decides the rows, as JSON holds it, and the run's identity."""
    settings: dict[str, Any] = {
        "model": weights_digest(unwrapped(model)),
        "images": digest(images, labels),
        "method": method.name,
        **method.settings(),
        "threat": {"norm": method.threat.norm, "eps": method.threat.eps},
        "attack_steps": method.steps,
        "seed": method.seed,
    }
    code, of_model = code_version(*CODE), settings_digest(unwrapped(model))
    key = identity(**settings, settings=of_model, code=code)
    return {**settings, "settings_sha256": of_model, "code": code}, key


def _checked(
    method: Method,
    model: nn.Module,
    images: ModelImages,
    labels: Tensor,
    classes: Sequence[str] | None,
    progress: bool,
) -> list[Flag]:
    """Health checks on the first images, before hours are spent.

    Raises:
        InputError: a threat model that does not fit the images; logits that are not finite, or
            too few.
    """
    method.threat.check_reach(images)
    probe, wrapped_model = images[:PROBE], wrapped(model)
    with torch.no_grad():
        logits = wrapped_model(probe)
    unnamed = logits_without_images(logits.shape[1], labels, classes)
    check_logits(logits, len(probe), labels[:PROBE].to(images.device))
    check_labels(labels, len(images), logits.shape[1])
    changes = health.outputs_change(wrapped_model, probe)
    fired = [
        flag
        for flag in (
            unnamed,
            health.depends_on_batch(wrapped_model, probe, changes.fired),
            health.writes_to_its_input(wrapped_model),
        )
        if flag.fired
    ]
    for flag in fired if progress else ():
        print(flag.detail, file=sys.stderr)
    return fired + method.checks(probe)


def _rows(
    method: Method,
    images: ModelImages,
    labels: Tensor,
    path: Path,
    key: str,
    chunk: int,
    progress: bool,
    workers: Workers,
) -> tuple[Row, ...]:
    """All rows, those of earlier processes included, in every worker.

    Each worker certifies every N-th image that is left, and writes its rows every few seconds to a
    file of its own; worker 0 brings them together, and whatever earlier workers left.
    """
    done = _brought_together(path, key, workers)
    left = torch.tensor([i for i in range(len(images)) if i not in done], dtype=torch.int64)
    if not len(left):
        return tuple(done[i] for i in sorted(done))
    own = path if workers.leads else _file_of(path, key, workers.rank)
    known = done if workers.leads else {}
    _certify_some(method, images, labels, left[workers.rank :: workers.size], known, own, chunk,
                  progress, workers)  # fmt: skip
    if workers.size > 1:
        done = _brought_together(path, key, workers)
    return tuple(done[i] for i in sorted(done))


def _file_of(path: Path, key: str, worker: int | str) -> Path:
    """A worker's file of this very run: on its own machine, another run's may lie beside it."""
    return path.with_name(f"{path.stem}-{worker}-{key[:16]}{path.suffix}")


def _brought_together(path: Path, key: str, workers: Workers) -> dict[int, Row]:
    """The rows of all workers' files, wherever they lie, in every worker and in worker 0's file."""
    others = sorted(path.parent.glob(_file_of(path, key, "*").name))
    here = [path] if path.exists() and workers.leads else []
    found = [row for file in (*here, *others) for row in read_rows(file)]
    rows = {row.index: row for held in workers.gather(found) for row in held}
    if workers.leads and (others or workers.size > 1) and rows:
        _write_rows(path, rows)
    rows = dict(workers.share(rows))  # now worker 0 has them for good
    for file in others:
        file.unlink(missing_ok=True)
    if not workers.leads:
        with suppress(OSError):  # it holds the run, where worker 0 sees it too
            path.parent.rmdir()
    workers.meet()
    return rows


def _certify_some(
    method: Method,
    images: ModelImages,
    labels: Tensor,
    mine: Int64[Tensor, " r"],
    done: dict[int, Row],
    path: Path,
    chunk: int,
    progress: bool,
    workers: Workers,
) -> None:
    """The rows of some images, written beside those that are done."""
    written, before, goal = time.monotonic(), len(done), max(1, len(done) + len(mine))
    shown = path.parent if workers.leads else None
    with ProgressLine(f"certifying by {method.name}", progress, run=shown) as line:
        line.update(before / goal)  # the time left is estimated from new rows alone
        try:
            for part in mine.split(chunk):
                workers.check()
                for row in _certified(method, images, labels, part):
                    done[row.index] = row
                right = sum(row.prediction == row.label for row in done.values())
                line.update(len(done) / goal, f"{right / len(done):.1%} right of {len(done)}")
                if time.monotonic() - written > WRITE_SECONDS:
                    _write_rows(path, done)
                    written = time.monotonic()
        finally:  # an interruption loses at most one chunk
            if done:
                _write_rows(path, done)


def _certified(
    method: Method, images: ModelImages, labels: Tensor, rows: Int64[Tensor, " n"]
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
    make_folder(path.parent)
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
    """The rows of `certificates.csv`.

    Each row ends with a checksum, except in files of the first version.

    Raises:
        InputError: the file is damaged.
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
    right = [row for row in rows if row.prediction == row.label]

    def at(radius: float) -> CertifiedAt:
        count = sum(row.radius >= radius for row in right)
        return CertifiedAt(
            radius=radius, certified_accuracy=count / n, interval=clopper_pearson(count, n)
        )

    standing = sum(not row.broken for row in rows)
    farthest = max((row.radius for row in rows), default=0.0) or eps
    return Certification(
        method=method.name,
        settings=method.settings(),
        n=n,
        standard_accuracy=len(right) / n,
        standard_accuracy_interval=clopper_pearson(len(right), n),
        abstained=sum(row.prediction == ABSTAIN for row in rows) / n,
        threat={"norm": method.threat.norm, "eps": eps},
        attack=f"APGD, {method.steps} steps, cross-entropy then margin",
        attacked_accuracy=standing / n,
        attacked_accuracy_interval=clopper_pearson(standing, n),
        certified=tuple(at(radius) for radius in radii),
        curve=tuple(at(farthest * i / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)),
        mean_radius=sum(row.radius for row in right) / n,
        flags=(*flags, _contradictions(right, eps)),
        seconds=sum(row.seconds for row in rows),
        seed=method.seed,
        identity=key,
        rows=rows,
        finished=when,
        note=note,
    )


def _contradictions(right: list[Row], eps: float) -> Flag:
    """Whether the attack broke an image that is certified at its ε."""
    contradicted = [row.index for row in right if row.broken and row.radius >= eps]
    return Flag(
        name=CONTRADICTED,
        fired=bool(contradicted),
        detail="An attack changed a prediction inside its certified radius: the certificates are "
        "wrong."
        if contradicted
        else "No attack changed a prediction inside its certified radius.",
        figures={"images": contradicted[:20], "count": len(contradicted)},
    )
