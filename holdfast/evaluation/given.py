"""`judge`: adversarial images that are there already, checked and shown to a model."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .. import draws
from ..attacks import Attack, Stage, Suite
from ..attacks.goal import UNTARGETED
from ..data.given import Given, check_index, read_given, taken
from ..distributed import Workers, joined
from ..errors import InputError
from ..inputs import check_logits, checked_labels, checked_stored_data, whole_number
from ..intervals import clopper_pearson
from ..models.modes import evaluating
from ..models.wrapper import NO_PREDICTION, standard_defaults
from ..runs.environment import circumstances
from ..runs.files import csv_text, write_atomically
from ..runs.folder import now, open_run, withdraw_run
from ..runs.identity import code_version, digest, identity
from ..runs.lock import claimed
from ..runs.progress import ProgressLine
from ..runs.records import GivenInfo, TransferInfo
from ..search import CLEAN, MAJORITY_OF, Ledger, Verifier, succeeded
from ..stored import TOGETHER, Chosen, Made, ModelImages, NotInMemory, in_parts, part
from ..threat import NORMS, SPATIAL, Threat
from ..types import Images, Model
from . import health
from .evaluate import evaluate
from .goals import goals_of
from .inspection import PROBE, Inspection
from .random_models import draw_figures
from .request import Request
from .result import AttackCost, Evaluation, Flag, write_run
from .run import CODE
from .verdicts import distances_of, final_predictions, verdicts_of

NAME = "given images"
BATCH = 128
EXAMINED = 32  # images that are checked at once
SEARCHED = 256  # images outside the ball whose nearest original is looked for
NEAREST = 64  # of them, for which all originals are read once
CHECKS = "given.csv"
SOURCE = "source"  # the folder of the run on the source
EIGHT_BIT = 1e-3  # how far 255 · x may lie from a whole number


class _GivenImages(Attack):
    """Stands in a suite for whoever made the images: nothing is searched."""

    name = NAME
    norms = frozenset(NORMS)
    needs_gradient = False
    reaches = True

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def step(self, oracle: Any, state: Any, threat: Threat) -> Any:
        raise AssertionError("images that were handed over are judged, not searched for")


def judge(
    model: Model,
    images: Images | NotInMemory,
    labels: Int64[Tensor, " n"] | None = None,
    adversarial: Any = None,
    threat: Threat | None = None,
    *,
    source: Model | None = None,
    suite: Any = "swift",
    index: Int64[Tensor, " m"] | None = None,
    clip: bool = False,
    goal: str = UNTARGETED,
    targets: Int64[Tensor, " n"] | str | None = None,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    run: Path | str | None = None,
    progress: bool = False,
    described: dict[str, Any] | None = None,
    source_described: dict[str, Any] | None = None,
) -> Evaluation:
    """What ready-made adversarial images, somebody's or another model's, do to a model.

    Nothing is searched on the model itself, so `robust_accuracy` is an *upper bound*: an attack on
    the model could only lower it. An image counts only if its values are finite, in the box and in
    the ball (`Threat.contains`, with its tolerance for rounding); one that does not count leaves
    its original standing. Every check is a flag in the result.

    Args:
        model, images, labels, threat, batch_size, device, seed, run, progress, described: as in
            `holdfast.evaluate`; `threat` may stand in place of `adversarial` where `source` is
            given.
        adversarial: (M, C, H, W) or (M, H, W, C), floats in [0, 1] or 8-bit integers; a file or
            folder of them (`holdfast.data.given.read_given`); or the result of an evaluation.
        source: in place of `adversarial`, another model, which is attacked first by `suite`.
        suite: of attacks on `source`, as in `holdfast.evaluate`.
        index: int64 (M,), which of the images each adversarial one belongs to. By default the
            file's, else they belong to the first M, in order.
        clip: project images that lie outside into ball and box, rather than not count them.
        goal, targets: what counts as a success, as in `holdfast.evaluate`.
        source_described: what the source and the data are, for the run of the attack on it.

    Returns:
        the record of an evaluation whose suite is `given images`, or `transfer from …`; `given`
        says what was handed over, `transfer` how the source itself fared.

    Raises:
        InputError (a ValueError): as `holdfast.evaluate`; adversarial images of another shape or
            number, an index out of range or with repetitions; a spatial threat model.

    Example:
        >>> import torch, holdfast as hf
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels, threat = torch.rand(8, 1, 2, 2), torch.arange(8) % 2, ("linf", 0.1)
        >>> x_adv = hf.attacks.FGSM()(model, images, labels, threat)
        >>> result = hf.judge(model, images, labels, x_adv, threat)
        >>> result.suite, result.given.counted
        ('given images', 8)
    """
    began = time.monotonic()
    if threat is None and isinstance(adversarial, Threat | tuple):
        adversarial, threat = None, adversarial
    if (adversarial is None) == (source is None):
        raise InputError("give either adversarial images, or a source model to be attacked")
    with standard_defaults():
        everything, labels = checked_stored_data(images, labels)
        if batch_size is not None:
            whole_number("batch_size", batch_size)
    asked: dict[str, Any] = {"goal": goal, "targets": targets, "seed": seed, "device": device}
    attacked, given, rows = None, None, torch.arange(len(everything))
    if source is not None:
        attacked = Request.checked(
            source, everything, labels, threat, suite, described=source_described, **asked
        )
        whole = attacked.suite.name.removesuffix(f", target {attacked.kind}")
        name = f"transfer from {_name_of(attacked)}, {whole}"
        origin = {"source": _known_by(attacked), "attacks": attacked.suite.describe()}
    else:
        given, name = _given(adversarial, everything, index), NAME
        rows = _rows(given, len(everything))
        asked["targets"] = _of_rows(targets, rows, len(everything))
        origin = {"adversarial": digest(given.images, rows)}
    x, y = part(everything, rows), labels[rows]  # as many as there are adversarial images
    request = _request(model, x, y, threat, name, asked, described, run)
    with joined() as workers, _begun(request, {**origin, "clip": clip}, workers) as key:
        found = None
        if attacked is not None:  # which all workers share; the rest is worker 0's
            found = _attacked(attacked, source, suite, batch_size, progress, run)
            given = Given(found.adversarial, told=(f"found on the source by {found.suite}",))
            if goal != UNTARGETED:  # the classes that the source was brought to
                own = torch.tensor([verdict.target for verdict in found.verdicts])
                request = replace(request, targets=own)
        if not workers.leads:
            return _told(workers.share(None), len(x), everything.shape)
        assert given is not None
        result = _judged(request, everything, rows, given, clip, batch_size, progress)
        update = {"identity": key, "seconds": time.monotonic() - began}
        if found is not None and attacked is not None:
            transfer = _transfer(found, result, _name_of(attacked))
            update |= {"transfer": transfer, "targets": found.targets}
        result = result.model_copy(update=update)
        if run is not None:
            write_run(Path(run), request.images, result, request)
        if workers.size > 1:
            held = result.adversarial if isinstance(result.adversarial, Tensor) else None
            workers.share(result.model_copy(update={"adversarial": held}))
    return result


def _told(result: Evaluation, count: int, shape: Sequence[int]) -> Evaluation:
    """Worker 0's result, in another worker. Images that are not in memory stay there."""
    if result.adversarial is not None:
        return result

    def never(rows: Tensor) -> Images:
        raise InputError("the adversarial images are with the first process")

    return result.model_copy(update={"adversarial": Made(never, (count, *shape[1:]))})


# -- what was handed over -------------------------------------------------------------------------


def _given(adversarial: Any, images: ModelImages, index: Any) -> Given:
    """The adversarial images as a caller hands them over, and which image each belongs to."""
    shape = tuple(images.shape[1:])
    if isinstance(adversarial, str | Path):
        given = read_given(adversarial, shape, len(images))
    elif isinstance(adversarial, Given):
        given = adversarial
    elif isinstance(adversarial, Evaluation):
        given = Given(adversarial.adversarial, told=(f"found by suite {adversarial.suite}",))
        if tuple(given.images.shape[1:]) != shape:
            raise InputError(
                f"the evaluation is of images of shape {tuple(given.images.shape[1:])}, not {shape}"
            )
    else:
        given = taken(adversarial, shape)
    if index is not None:
        count = len(given.images)
        given = replace(given, index=checked_labels(index, count, "index").cpu())
    return given


def _rows(given: Given, most: int) -> Int64[Tensor, " m"]:
    """Which image each adversarial one belongs to."""
    if given.index is not None:
        check_index(given.index, most)
        return given.index
    if len(given.images) > most:
        raise InputError(
            f"{len(given.images)} adversarial images for {most} images: an index says which image "
            "each belongs to"
        )
    return torch.arange(len(given.images))


def _of_rows(targets: Any, rows: Tensor, most: int) -> Any:
    """Own targets of the images that are judged, where there is one for each image of all."""
    if targets is None or isinstance(targets, str) or len(targets) != most:
        return targets
    return checked_labels(targets, most, "targets").cpu()[rows]


def _request(
    model: Any,
    images: ModelImages,
    labels: Tensor,
    threat: Any,
    name: str,
    asked: dict[str, Any],
    described: dict[str, Any] | None,
    folder: Path | str | None = None,
) -> Request:
    suite = Suite(name, (Stage(_GivenImages(name)),))
    if isinstance(threat, Threat) and threat.norm == SPATIAL:
        raise InputError(
            "a turned image shows not by itself that it is one: only norms can be judged"
        )
    return Request.checked(
        model, images, labels, threat, suite, run=folder, described=described, **asked
    )


def _name_of(request: Request) -> str:
    """What the model of a request is called."""
    return str(request.described["model"].get("name") or "the source")


def _known_by(request: Request) -> str:
    """What the model of a request is known by, in a run's identity."""
    with _of_the_source(), _placed(request):
        known = Inspection(request)
        return digest(known.known_by, known.settings)


@contextmanager
def _of_the_source() -> Iterator[None]:
    """Errors inside say whose they are."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the source: {error}") from None


def _attacked(
    request: Request,
    source: Any,
    suite: Any,
    batch_size: int | None,
    progress: bool,
    run: Path | str | None,
) -> Evaluation:
    """The source's own evaluation, which brings the adversarial images."""
    with _of_the_source():
        return evaluate(
            source,
            request.images,
            request.labels,
            request.threat,
            suite,
            batch_size,
            request.device,
            seed=request.seed,
            run=None if run is None else Path(run) / SOURCE,
            progress=progress,
            goal=request.goal,
            targets=request.targets,
            described=request.described,
        )


@contextmanager
def _begun(request: Request, origin: dict[str, Any], workers: Workers) -> Iterator[str]:
    """Inside, the run is this process's; gives its identity. One that fails leaves nothing.

    Raises:
        InputError: the folder holds another run.
    """
    with _placed(request):
        known = Inspection(request)
        asked: dict[str, Any] = {
            "model": known.known_by,
            "images": digest(request.images, request.labels),
            "threat": request.threat.describe(),
            "suite": request.suite.name,
            "seed": request.seed,
            **origin,
        }
        if request.targets is not None:
            own = isinstance(request.targets, Tensor)
            asked["targets"] = digest(request.targets) if own else request.targets
        key = identity(**asked, settings=known.settings, code=code_version(*CODE))
    folder = request.folder
    if folder is None or not workers.leads:
        yield key
        return
    with claimed(folder):
        if "attacks" in asked:
            asked["attacks"] = digest(json.dumps(asked["attacks"], sort_keys=True))
        described = {**asked, "n": len(request.images), **request.described}
        open_run(folder, "judge", key, {"asked": described, **circumstances(request.device)})
        try:
            yield key
        except InputError:
            withdraw_run(folder)
            raise


# -- checks ---------------------------------------------------------------------------------------


class _Examined(NamedTuple):
    """What the checks found of some images, one row each.

    Attributes:
        points: float32 (M, C, H, W), to be shown to the model; the original where none counts.
        finite, in_box, in_ball, counts: bool (M,).
        clipped: bool (M,), whether it counts because it was projected.
        low, high: (M,), of its values; of the original's where they are not finite.
        distance: (M,) from the original, as handed over; NaN where that is not finite.
        off_grid: bool (M,), whether a value is no k/255.
    """

    points: Images
    finite: Bool[Tensor, " m"]
    in_box: Bool[Tensor, " m"]
    in_ball: Bool[Tensor, " m"]
    counts: Bool[Tensor, " m"]
    clipped: Bool[Tensor, " m"]
    low: Float[Tensor, " m"]
    high: Float[Tensor, " m"]
    distance: Float[Tensor, " m"]
    off_grid: Bool[Tensor, " m"]


def _examined(point: Images, x: Images, threat: Threat, clip: bool) -> _Examined:
    finite = torch.isfinite(point.flatten(1)).all(1)
    safe = torch.where(finite.view(-1, 1, 1, 1), point, x)
    low, high = safe.flatten(1).amin(1), safe.flatten(1).amax(1)
    in_box = finite & (low >= 0) & (high <= 1)
    distance = torch.where(finite, threat.distance(safe, x), torch.nan)
    in_ball = finite & threat.reaches(distance, threat.eps)
    counts, clipped = in_box & in_ball, torch.zeros_like(finite)
    if clip:
        outside = finite & ~counts
        projected = threat.project(safe, x)
        safe = torch.where(outside.view(-1, 1, 1, 1), projected, safe)
        counts = finite & threat.contains(safe, x)
        clipped = outside & counts
    off = (safe * 255 - (safe * 255).round()).abs().flatten(1).amax(1) > EIGHT_BIT
    points = torch.where(counts.view(-1, 1, 1, 1), safe, x)
    return _Examined(
        points, finite, in_box, in_ball, counts, clipped, low, high, distance, off & finite
    )


@dataclass(frozen=True)
class _Checked:
    """What the checks found of all images.

    Attributes:
        points: as of `_Examined`; where the originals are not in memory, made anew when they are
            asked for.
        finite, in_box, in_ball, counts, distance: as there.
        clipped: how many count because they were projected.
        flags: the checks.
    """

    points: ModelImages
    finite: Bool[Tensor, " m"]
    in_box: Bool[Tensor, " m"]
    in_ball: Bool[Tensor, " m"]
    counts: Bool[Tensor, " m"]
    distance: Float[Tensor, " m"]
    clipped: int
    flags: tuple[Flag, ...]


def _checked(
    request: Request, everything: ModelImages, rows: Tensor, given: Given, clip: bool
) -> _Checked:
    """Shape, values, ball and order of what was handed over, a part at a time.

    Args:
        everything: all images of the data, among which the original of each is looked for.
        rows: those that the adversarial ones belong to.
    """
    x, threat, point = request.images, request.threat, given.images

    def examined(some: Tensor) -> _Examined:
        return _examined(point[some], x[some], threat, clip)

    points, columns = torch.empty_like(x) if isinstance(x, Tensor) else None, []
    for some in torch.arange(len(point)).split(EXAMINED):
        part_of_all = examined(some)
        if points is not None:
            points[some] = part_of_all.points
        columns.append(part_of_all[1:])
    finite, in_box, in_ball, counts, were_clipped, low, high, distance, off_grid = (
        torch.cat(column) for column in zip(*columns, strict=True)
    )
    clipped = int(were_clipped.sum())
    m, flags = len(point), []
    flags.append(_flag("shape", False, _shape_told(given, rows, len(everything)), {"images": m}))
    lost = int((~finite).sum())
    flags.append(
        _flag(
            "finite", lost > 0,
            f"{lost} of {m} hold NaN or infinite values: they do not count." if lost
            else "All values are finite.",
            {"images": lost},
        )
    )  # fmt: skip
    beyond = int((finite & ~in_box).sum())
    instead = "they were projected into it" if clip else "they do not count (clip projects them)"
    flags.append(
        _flag(
            "in-box", beyond > 0 and not clip,
            f"{beyond} of {m} have values outside [0, 1], from {float(low.min()):.4g} to "
            f"{float(high.max()):.4g}: {instead}." if beyond else "All values lie in [0, 1].",
            {"images": beyond, "least": float(low.min()), "most": float(high.max())},
        )
    )  # fmt: skip
    flags.append(_ball_flag(threat, distance, finite & ~in_ball, finite, instead, clip))
    remedy = "give `index`" if given.index is None else "the index is not theirs"
    flags.append(_order_flag(everything, rows, point, finite & ~in_ball, threat, remedy))
    flags.append(_eight_bit_flag(int(off_grid.sum()), m))
    if given.labels is not None:
        differ = int((given.labels != request.labels).sum())
        flags.append(
            _flag(
                "labels-agree", differ > 0,
                f"On {differ} of {m} images the file's label is not the data's, which counts: are "
                "they in this order?" if differ else "The file's labels are the data's.",
                {"images": differ},
            )
        )  # fmt: skip
    shown = Made(lambda some: examined(some).points, x.shape) if points is None else points
    return _Checked(shown, finite, in_box, in_ball, counts, distance, clipped, tuple(flags))


def _flag(name: str, fired: bool, detail: str, figures: dict[str, Any]) -> Flag:
    return Flag(name=f"given-{name}", fired=fired, detail=detail, figures=figures)


def _shape_told(given: Given, rows: Tensor, most: int) -> str:
    size = "×".join(map(str, given.images.shape[1:]))
    which = "by their index" if given.index is not None else "in order"
    told = "; ".join(given.told)
    of = f"{len(rows)} adversarial images of {size}, for {len(rows)} of {most} images, {which}."
    return f"{of} ({told})" if told else of


def _ball_flag(
    threat: Threat,
    distance: Tensor,
    outside: Tensor,
    finite: Tensor,
    instead: str,
    clip: bool,
) -> Flag:
    count, m = int(outside.sum()), len(distance)
    largest = float(distance[finite].max()) if bool(finite.any()) else 0.0
    excess = largest - threat.eps
    if count:
        median = float(distance[outside].median()) - threat.eps
        said = (
            f"{count} of {m} lie outside the ball of {threat}, by up to {excess:.3g} "
            f"(median {median:.3g}): {instead}."
        )
        if threat.norm == "linf" and excess <= 0.5 / 255 + 1e-6:
            said += " So little may be the rounding of 8-bit or half-precision values."
    else:
        said = f"All lie in the ball of {threat}; the largest distance is {largest:.6g}."
    figures = {"images": count, "largest_distance": largest, "eps": threat.eps}
    return _flag("in-ball", count > 0 and not clip, said, figures)


def _order_flag(
    everything: ModelImages,
    rows: Tensor,
    point: ModelImages,
    outside: Tensor,
    threat: Threat,
    remedy: str,
) -> Flag:
    """Whether what lies outside the ball lies closer to another image than to its own."""
    asked = outside.nonzero().squeeze(1)[:SEARCHED]
    nearest = [_nearest(everything, point[some]) for some in asked.split(NEAREST)]
    closest = torch.cat(nearest) if nearest else asked
    elsewhere = closest != rows[asked]
    count = int(elsewhere.sum())
    distance = in_parts(threat.distance, part(point, asked), part(everything, closest))
    fits = int((threat.reaches(distance, threat.eps) & elsewhere).sum())
    fired = fits > 0 or 2 * count > len(asked)
    if fired:
        row = int(asked[elsewhere][0])
        other = int(closest[elsewhere][0])
        why = (
            f"they stand in another order; {remedy}"
            if fits
            else "they are of other images, or their values were changed, as by normalising"
        )
        said = (
            f"Of {len(asked)} examined outside the ball, {count} are closer to another image than "
            f"to their own (number {row} to image {other}, not {int(rows[row])}), and {fits} lie "
            f"in the ball of that one: {why}."
        )
    elif count:
        said = (
            f"{count} of {len(asked)} examined are closer to another image than to their own, too "
            "few for another order."
        )
    else:
        said = "Each is closest to its own image." if len(asked) else "Each lies at its own image."
    figures = {"images": count, "in_the_ball_of_another": fits, "examined": len(asked)}
    return _flag("in-order", fired, said, figures)


def _nearest(images: ModelImages, points: Images) -> Int64[Tensor, " m"]:
    """The image that is closest to each point in L2, whatever the norm."""
    few = torch.arange(len(images)).split(TOGETHER)
    distances = [torch.cdist(points.flatten(1), images[rows].flatten(1)) for rows in few]
    return torch.cat(distances, 1).argmin(1)


def _eight_bit_flag(count: int, m: int) -> Flag:
    said = (
        f"{count} of {m} have values that are no k/255: saved as 8-bit pictures they would be "
        "other images."
        if count
        else "All values are k/255, as 8-bit pictures hold them."
    )
    return _flag("8-bit", False, said, {"images_not_8_bit": count})


# -- the verdict ----------------------------------------------------------------------------------


def _judged(
    request: Request,
    everything: ModelImages,
    rows: Tensor,
    given: Given,
    clip: bool,
    batch_size: int | None,
    progress: bool,
) -> Evaluation:
    batch, began = batch_size or BATCH, time.monotonic()
    with _placed(request), ProgressLine(f"{request.suite.name}, {request.threat}", progress):
        found = _checked(request, everything, rows, given, clip)
        known = Inspection(request)
        # A model may draw random numbers only near the boundary.
        shown = found.points[:PROBE].to(request.device)
        changes = known.changes if known.random else health.outputs_change(request.model, shown)
        random = known.random or changes.fired
        verifier = Verifier(request.model, MAJORITY_OF if random else 1)
        ledger = _ledger(request, known, found, verifier, rows, batch)
        prediction, confidence, predictions = final_predictions(
            verifier, ledger, request.images, request.threat, batch, request.device, request.seed
        )
        distances = distances_of(request.suite, ledger, request.images, request.threat)
        figures = (
            draw_figures(
                verifier, ledger, request.images, predictions, batch, request.device, request.seed
            )
            if random
            else ()
        )
        batch_flag = health.depends_on_batch(known.model, known.images, changes.fired)
    _write_checks(request.folder, found, rows)
    n, standing = len(rows), int((~ledger.broken).sum())
    right = int((ledger.clean_prediction == ledger.labels).sum())
    unanswered = int((ledger.broken & (prediction == NO_PREDICTION)).sum())
    cost = AttackCost(
        name=request.suite.stages[0].name,
        broken=int((ledger.stage == 0).sum()),
        forwards=n * verifier.draws,
        backwards=0,
        seconds=time.monotonic() - began,
    )
    return Evaluation(
        n=n,
        standard_accuracy=right / n,
        standard_accuracy_interval=clopper_pearson(right, n),
        robust_accuracy=standing / n,
        robust_accuracy_interval=clopper_pearson(standing, n),
        threat=request.threat.describe(),
        suite=request.suite.name,
        goal=request.goal,
        targets=request.kind,
        attacks=(cost,),
        flags=(
            *found.flags,
            known.classes,
            health.averaged(changes, verifier.draws),
            batch_flag,
            health.answers_nothing(unanswered, n),
        ),
        given=GivenInfo(
            images=n,
            counted=int(found.counts.sum()),
            not_finite=int((~found.finite).sum()),
            outside_box=int((found.finite & ~found.in_box).sum()),
            outside_ball=int((found.finite & ~found.in_ball).sum()),
            clipped=found.clipped,
            told=given.told,
        ),
        forwards=2 * n * verifier.draws,
        backwards=0,
        seconds=0.0,
        seed=request.seed,
        precision="original",
        batch_size=batch,
        identity="",
        broken=ledger.broken,
        adversarial=ledger.adversarial,
        verdicts=verdicts_of(
            request.suite, ledger, request.images, distances, prediction, confidence
        ),
        draws=figures,
        unanswered=unanswered,
        finished=now(),
    )


@contextmanager
def _placed(request: Request) -> Iterator[None]:
    """The model in eval mode on the device, and afterwards where and as it was."""
    moved = request.device != request.home
    try:
        if moved:
            request.model.to(request.device)
        with standard_defaults(), evaluating(request.model):
            yield
    finally:
        if moved:
            request.model.to(request.home)


def _ledger(
    request: Request,
    known: Inspection,
    found: _Checked,
    verifier: Verifier,
    rows: Tensor,
    batch: int,
) -> Ledger:
    """What is known before the last word: clean answers, and the points that count."""
    goals = goals_of(request, known)
    ledger = Ledger.of(request.images, request.labels, rows, goal=goals, adversarial=found.points)
    for some in torch.arange(len(rows)).split(batch):
        seeds = draws.item_seeds(request.seed, "clean", rows[some])
        answers = verifier.predict(request.images[some].to(request.device), seeds)
        y = request.labels[some].to(request.device)
        check_logits(answers.logits, len(some), y, first=some)
        ledger.clean_prediction[some] = answers.prediction.cpu()
        ledger.clean_confidence[some] = answers.confidence.cpu()
    won = succeeded(ledger.clean_prediction, ledger.labels, ledger.goal)
    ledger.broken[won], ledger.stage[won] = True, CLEAN
    shown = found.counts & ~won
    either = Chosen([request.images, found.points], shown.long())
    ledger.adversarial = either[:] if isinstance(request.images, Tensor) else either
    ledger.found[shown] = ledger.found_item[shown] = 0
    ledger.forwards += 2 * verifier.draws
    return ledger


def _write_checks(folder: Path | None, found: _Checked, rows: Tensor) -> None:
    """`given.csv`: one row an adversarial image, with what the checks said of it."""
    if folder is None:
        return
    names = ("index", "finite", "in_box", "in_ball", "distance", "counts")
    columns = (
        rows.tolist(),
        *(mask.int().tolist() for mask in (found.finite, found.in_box, found.in_ball)),
        [f"{value:.6g}" for value in found.distance.tolist()],
        found.counts.int().tolist(),
    )
    write_atomically(folder / CHECKS, csv_text(names, zip(*columns, strict=True)))


# -- transfer -------------------------------------------------------------------------------------


def _transfer(found: Evaluation, result: Evaluation, source: str) -> TransferInfo:
    """How the source fared, and what of that came over."""
    pairs: Sequence[Any] = list(zip(found.verdicts, result.verdicts, strict=True))
    wanted = [
        there
        for here, there in pairs
        if here.broken and here.attack != "clean" and there.attack != "clean"
    ]
    over = sum(there.broken for there in wanted)
    count = len(wanted)
    return TransferInfo(
        source=source,
        suite=found.suite,
        standard_accuracy=found.standard_accuracy,
        standard_accuracy_interval=found.standard_accuracy_interval,
        robust_accuracy=found.robust_accuracy,
        robust_accuracy_interval=found.robust_accuracy_interval,
        broke_source=count,
        broke_both=over,
        rate=over / count if count else None,
        rate_interval=clopper_pearson(over, count) if count else None,
    )
