"""What a search looks at: fast twins of the model, the coarsest first."""

from __future__ import annotations

from torch import Tensor

from ..attacks import Suite
from ..attacks.base import Model
from ..engine import Lane, Twin, compiled, fast_twin, seconds_per_image
from ..engine.twin import Say, compiling_pays, has_fast_bf16, original, unsaid
from ..workers import Workers

COMPILING_SECONDS = 900.0  # a search that would take longer at most is worth a compiled twin


def lanes_of(
    model: Model, probe: Tensor, labels: Tensor, precision: str, say: Say = unsaid
) -> list[Lane]:
    """What the search looks at, the coarsest first; `say` is told why something faster is not."""
    if precision == "original":
        return [Lane(original(model))]
    exact = fast_twin(model, probe, labels, "float32", say) or original(model)
    if precision == "float32" or (precision == "auto" and not has_fast_bf16(probe.device)):
        return [Lane(exact)]
    coarse = fast_twin(model, probe, labels, "bf16", say)
    if coarse is None:
        return [Lane(exact)]
    return coarse_then_exact(coarse, exact)


def coarse_then_exact(coarse: Twin, exact: Twin) -> list[Lane]:
    """What ends closer to the boundary than the coarse twin can tell is searched again."""
    return [Lane(coarse), Lane(exact, near=3 * coarse.error, slopes=coarse.slopes)]


def compiled_where_it_pays(
    lanes: list[Lane],
    model: Model,
    suite: Suite,
    images: Tensor,
    labels: Tensor,
    workers: Workers,
    *,
    batch_size: int,
    of: int,
    classes: int,
    say: Say = unsaid,
) -> list[Lane]:
    """The lanes with the coarse one compiled, where a long search makes that worth its minutes.

    Args:
        images, labels: one batch, on the model's device.
        batch_size: of the search. With fewer images than that, its batches of several items an
            image would not be those that were compiled for.
        of: how many images there are in all.
        say: told why it is not compiled, where it would have paid.
    """
    coarse = lanes[0].twin
    if len(lanes) == 1 or of < batch_size or not compiling_pays(images.device):
        return lanes
    long = _looks(suite, of, classes) * seconds_per_image(coarse.model, images)
    if not workers.share(long / workers.size > COMPILING_SECONDS):
        return lanes
    faster = compiled(coarse, model, images, labels, say)
    return lanes if faster is None else coarse_then_exact(faster, lanes[-1].twin)


def _looks(suite: Suite, images: int, classes: int) -> float:
    """How many looks the suite takes at most."""
    return images * sum(
        stage.share_of(images) * stage.items_per_image(classes) * stage.attack.looks * stage.samples
        for stage in suite.stages
        if stage.after is None
    )
