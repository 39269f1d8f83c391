"""Threat models: what an attacker may do to an image.

One table of norms serves every attack, the verification of every verdict, and training.
All functions take the radius per item, so that one batch may hold items of different ε.
"""

from __future__ import annotations

import copy
import difflib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from . import draws
from .errors import InputError
from .parsing import parse_number
from .spatial import PARAMETERS, transformed
from .stored import ModelImages
from .types import Images


def per_item(values: Float[Tensor, " n"], like: Tensor) -> Tensor:
    """(N,) reshaped to (N, 1, …) so that it broadcasts against `like` (N, …)."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _l1_threshold(magnitudes: Tensor, ceilings: Tensor, eps: Tensor) -> Tensor:
    """The soft threshold λ ≥ 0, (N,), at which Σ min(max(|v| − λ, 0), ceiling) = ε.

    Bisection: the sum falls monotonically in λ, and 40 halvings reach float32's precision.
    """
    low = torch.zeros_like(eps)
    high = magnitudes.amax(1)
    for _ in range(40):
        middle = (low + high) / 2
        total = (magnitudes - middle[:, None]).clamp_min(0).minimum(ceilings).sum(1)
        inside = total <= eps
        high = torch.where(inside, middle, high)
        low = torch.where(inside, low, middle)
    return high  # the side on which the constraint holds


def _use(gradient: Images, at: Images | None, far: float) -> Tensor:
    """How much moving each component helps, (N, D): |gradient|, and in proportion less where `at`
    has less than `far` to go before the wall of the box.

    A step that moves few components would else be spent for ever on those that cannot move.
    """
    use = gradient.abs()
    if at is not None:
        room = torch.where(gradient > 0, 1 - at, at)
        use = use * (room / far).clamp_max(1)
    return use.flatten(1)


class Linf:
    """‖δ‖∞ = max |δᵢ|; ε in image units, such as 8/255."""

    name = "linf"

    def distance(self, delta: Images) -> Float[Tensor, " n"]:
        return delta.flatten(1).abs().amax(1)

    def project(self, x_adv: Images, x: Images, eps: Float[Tensor, " n"]) -> Images:
        e = per_item(eps, x)
        return torch.minimum(torch.maximum(x_adv, x - e), x + e).clamp_(0, 1)

    def steepest(self, gradient: Images, at: Images | None = None) -> Images:
        return gradient.sign()

    def noise(self, seeds: Int64[Tensor, " n"], counter: int, like: Images) -> Images:
        return draws.uniform(seeds, counter, like.shape[1:]) * 2 - 1


class L2:
    """‖δ‖₂ = √Σδᵢ²; ε in image units."""

    name = "l2"

    def distance(self, delta: Images) -> Float[Tensor, " n"]:
        return delta.flatten(1).norm(dim=1)

    def project(self, x_adv: Images, x: Images, eps: Float[Tensor, " n"]) -> Images:
        delta = x_adv - x
        shrink = (eps / self.distance(delta).clamp_min(1e-12)).clamp_max(1)
        # Clamping to the box after the ball only ever brings δ closer to 0.
        return (x + delta * per_item(shrink, x)).clamp_(0, 1)

    def steepest(self, gradient: Images, at: Images | None = None) -> Images:
        # Scaled by its largest entry first: the squares of a tiny gradient underflow.
        largest = per_item(gradient.flatten(1).abs().amax(1).clamp_min(1e-38), gradient)
        gradient = gradient / largest
        return gradient / per_item(self.distance(gradient).clamp_min(1e-12), gradient)

    def noise(self, seeds: Int64[Tensor, " n"], counter: int, like: Images) -> Images:
        direction = self.steepest(draws.normal(seeds, 2 * counter, like.shape[1:]))
        radius = draws.uniform(seeds, 2 * counter + 1) ** (1 / like.shape[1:].numel())
        return direction * per_item(radius, like)


class L1:
    """‖δ‖₁ = Σ|δᵢ|; ε in image units summed over all components, such as 12."""

    name = "l1"
    step_share = 0.01  # share of the components that one steepest step moves

    def distance(self, delta: Images) -> Float[Tensor, " n"]:
        return delta.flatten(1).abs().sum(1)

    def project(self, x_adv: Images, x: Images, eps: Float[Tensor, " n"]) -> Images:
        """The exact projection onto ball ∩ box (Croce & Hein, "Mind the box", ICML 2021)."""
        delta = (x_adv - x).flatten(1)
        # How far each component may go in its direction before it leaves the box.
        ceilings = torch.where(delta > 0, 1 - x.flatten(1), x.flatten(1))
        magnitudes = delta.abs()
        in_box = magnitudes.minimum(ceilings)
        threshold = _l1_threshold(magnitudes, ceilings, eps)
        shrunk = (magnitudes - threshold[:, None]).clamp_min(0).minimum(ceilings)
        outside = in_box.sum(1) > eps
        magnitudes = torch.where(outside[:, None], shrunk, in_box)
        return (x + (magnitudes * delta.sign()).view_as(x)).clamp_(0, 1)

    def steepest(self, gradient: Images, at: Images | None = None) -> Images:
        flat = gradient.flatten(1)
        k = max(1, round(self.step_share * flat.shape[1]))
        top = _use(gradient, at, far=0.1).topk(k, dim=1).indices
        return (
            torch.zeros_like(flat)
            .scatter_(1, top, flat.gather(1, top).sign() / k)
            .view_as(gradient)
        )

    def noise(self, seeds: Int64[Tensor, " n"], counter: int, like: Images) -> Images:
        # Exponential magnitudes with one spare, normalised, are uniform in the simplex.
        size = like.shape[1:].numel()
        u = draws.uniform(seeds, 2 * counter, (size + 1,)) + 2.0**-25
        e = -u.log()
        signs = draws.integers(seeds, 2 * counter + 1, 2, (size,)) * 2 - 1
        return (e[:, :size] / e.sum(1, keepdim=True) * signs).view_as(like)


class L0:
    """‖δ‖₀ = the number of components (pixel × channel) that differ; ε is such a count."""

    name = "l0"

    def distance(self, delta: Images) -> Float[Tensor, " n"]:
        return (delta.flatten(1) != 0).sum(1).to(delta.dtype)

    def project(self, x_adv: Images, x: Images, eps: Float[Tensor, " n"]) -> Images:
        wanted, delta = (x_adv - x).flatten(1), (x_adv.clamp(0, 1) - x).flatten(1)
        # By how much moving a component brings the point closer to x_adv, squared.
        gain = delta * (2 * wanted - delta)
        order = gain.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(delta.shape[1], device=x.device).expand_as(order)
        )
        kept = torch.where(rank + 1 <= eps[:, None], delta, torch.zeros_like(delta))
        # Untouched components must be the image's own, bit for bit: x + (y − x) need not be y.
        return torch.where(kept.view_as(x) != 0, x_adv.clamp(0, 1), x)

    def steepest(self, gradient: Images, at: Images | None = None) -> Images:
        flat = gradient.flatten(1)
        top = _use(gradient, at, far=1).argmax(1, keepdim=True)
        return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top).sign()).view_as(gradient)

    def noise(self, seeds: Int64[Tensor, " n"], counter: int, like: Images) -> Images:
        return draws.uniform(seeds, counter, like.shape[1:]) * 2 - 1


Norm = Linf | L2 | L1 | L0
NORMS: dict[str, Norm] = {norm.name: norm for norm in (Linf(), L2(), L1(), L0())}


SPATIAL = "spatial"
# What people write for a norm, without case, spaces, `_` and `-`.
SPELLINGS = {"inf": "linf", "l∞": "linf", "∞": "linf", "linfinity": "linf"} | {
    str(order): f"l{order}" for order in (0, 1, 2)
}
# The radius by which a norm is usually asked; of L0 there is none.
USUAL_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, SPATIAL: 1.0}


def norm_named(name: Any) -> str:
    """A norm by its name, however it is spelt: `Linf`, `L_2`, `l∞`.

    Raises:
        InputError: none of that name.
    """
    short = "".join(c for c in str(name).lower() if c not in " _-")
    norm = SPELLINGS.get(short, short)
    if norm not in (*NORMS, SPATIAL):
        close = difflib.get_close_matches(norm, (*NORMS, SPATIAL), n=1)
        hint = f"; did you mean {close[0]!r}" if close else ""
        raise InputError(
            f"norm {name!r} is unknown{hint}; the norms are {', '.join((*NORMS, SPATIAL))}"
        )
    return norm


# A turned image is interpolated; devices and batches do that alike up to here, image units.
INTERPOLATION = 1e-5


@dataclass(frozen=True)
class Threat:
    """A norm, a radius and the box [0, 1]; or rotations and shifts, which lie in no norm's ball.

    Attributes:
        norm: `linf`, `l2`, `l1`, `l0`, or `spatial`.
        eps: the radius in image units (`8/255`); for `l0`, a number of components; for `spatial`,
            a factor on the two that follow.
        degrees, pixels: `spatial` only: the largest rotation either way, and the largest shift
            up, down, left or right, for ε = 1 (Engstrom et al., ICML 2019: 30 and 3).

    A point of a spatial threat model is legal if it is the image turned and shifted by allowed
    parameters. The point alone does not show them: they go with it as its *witness* (N, 3), see
    `holdfast.spatial.transformed`, and are applied anew to check it. Norms need none.

    Raises:
        InputError: unknown norm; a radius that is not a finite number above 0, or so large that
            the ball holds the whole box (see also `check_reach`); degrees or pixels that are not
            finite numbers of at least 0, or both 0.
    """

    norm: str
    eps: float
    degrees: float = 30.0
    pixels: float = 3.0

    _of_any_reach: ClassVar[bool] = False  # true of those that `times` makes

    def __post_init__(self) -> None:
        if isinstance(self.norm, int | float) and isinstance(self.eps, str):
            raise InputError(f"the norm comes first: Threat({self.eps!r}, {self.norm!r})")
        object.__setattr__(self, "norm", norm_named(self.norm))
        object.__setattr__(self, "eps", parse_number(self.eps))
        for name in ("degrees", "pixels"):
            object.__setattr__(self, name, parse_number(getattr(self, name)))
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise InputError(f"eps must be a finite number above 0, not {self.eps}")
        if self.norm == "linf" and self.eps > 1:
            raise InputError(
                f"ε = {self.eps:g}: ε is in image units, 0 to 1, and a ball of 1 holds every "
                f"image there is; did you mean {self.eps:g}/255?"
            )
        if self.norm == SPATIAL and self.eps * self.degrees > 180:
            raise InputError(
                f"ε = {self.eps:g} allows rotations by ±{self.eps * self.degrees:g}°, more than "
                "all there are: for spatial, ε is a factor on degrees and pixels, usually 1"
            )
        extents = (self.degrees, self.pixels)
        if not all(math.isfinite(e) and e >= 0 for e in extents) or not any(extents):
            raise InputError(
                f"degrees and pixels must be finite numbers of at least 0, one of them above it, "
                f"not {self.degrees} and {self.pixels}"
            )

    def times(self, factor: float) -> Threat:
        """The same with ε so many times as large, even where that ball holds every image: for
        checks and curves."""
        other = copy.copy(self)
        object.__setattr__(other, "eps", self.eps * factor)
        object.__setattr__(other, "_of_any_reach", True)
        return other

    def huge(self, images: ModelImages, factor: float) -> Threat:
        """A ball that reaches plain grey from every image of this shape, where no image can be told
        from another; at least so many times as large as this one. That of L1 is one of L∞: sparse
        steps would be many."""
        if self.norm == "l1":
            return Threat("linf", 0.5)
        grey = self._whole(images) / 2 if self.norm in ("linf", "l2") else 0.0
        return self.times(max(factor, grey / self.eps))

    def _whole(self, images: ModelImages) -> float:
        """The ε from which on a ball around any image of this shape holds the whole box."""
        size = images.shape[1:].numel()
        return {
            "linf": 1.0,
            "l2": size**0.5,
            "l1": float(size),
            "l0": float(size),
            SPATIAL: max(images.shape[2:]) / max(self.pixels, 1e-12),
        }[self.norm]

    def check_reach(self, images: ModelImages) -> None:
        """InputError where the ball around any image of this shape holds the whole box, so that
        every model is at 0 %, or no point but the image: such a figure says nothing."""
        if self._of_any_reach:
            return
        if self.norm == "l0" and self.eps < 1:
            raise InputError(f"ε = {self.eps:g}: for l0 it is a number of components, at least 1")
        whole = self._whole(images)
        if self.eps >= whole:
            hint = {
                "linf": f"did you mean {self.eps:g}/255?",
                "l2": f"did you mean {self.eps:g}/255, or {USUAL_EPS['l2']}?",
                "l1": f"did you mean {self.eps:g}/255, or {USUAL_EPS['l1']:g}?",
                "l0": "give the number of components that may change",
                SPATIAL: f"it is a factor on {self.degrees:g}° and {self.pixels:g} pixels, "
                "usually 1",
            }[self.norm]
            shape = " × ".join(map(str, images.shape[1:]))
            what = (
                "shifts every image out of sight"
                if self.norm == SPATIAL
                else "holds every image there is"
            )
            raise InputError(
                f"a ball of {self.norm} ε = {self.eps:g} {what} of shape {shape} (from "
                f"{whole:g} on): ε is in image units; {hint}"
            )

    @property
    def table(self) -> Norm:
        """InputError for a spatial threat model, which has no norm."""
        if self.norm == SPATIAL:
            raise InputError(f"{self} has no norm: only rotation-translation attacks fit it")
        return NORMS[self.norm]

    @property
    def witness_size(self) -> int:
        """How many numbers go with each adversarial image to show that it is legal."""
        return PARAMETERS if self.norm == SPATIAL else 0

    def radii(self, x: Tensor) -> Float[Tensor, " n"]:
        """ε once per item of x."""
        return torch.full((len(x),), self.eps, device=x.device)

    def limits(self, eps: Float[Tensor, " n"]) -> Float[Tensor, "n 3"]:
        """Spatial: the largest value of each parameter."""
        return eps[:, None] * eps.new_tensor([self.degrees, self.pixels, self.pixels])

    def distance(self, x_adv: Images, x: Images, witness: Tensor | None = None) -> Tensor:
        """(N,) in units of ε's own. Spatial: the ε at which the witness is just allowed."""
        if self.norm != SPATIAL:
            return self.table.distance(x_adv - x)
        unit = self.limits(torch.ones(len(x), device=x.device))
        size = self._witness(witness).to(x.device).abs()
        return torch.where(size == 0, 0.0, size / unit).amax(1)

    def project(self, x_adv: Images, x: Images, eps: Float[Tensor, " n"] | None = None) -> Images:
        """The point of the ball around x and the box, closest (for l2: near) to x_adv."""
        return self.table.project(x_adv, x, self.radii(x) if eps is None else eps)

    def contains(
        self,
        x_adv: Images,
        x: Images,
        eps: Float[Tensor, " n"] | None = None,
        witness: Float[Tensor, "n p"] | None = None,
    ) -> Bool[Tensor, " n"]:
        """Whether each item lies in the ball and the box.

        The ball is allowed float32's own rounding and no more: 1e-6 relative (2e-5 for the norms
        that sum over all components) plus half a unit in the last place of an image value.
        The box is exact. A point with a NaN is outside.

        Spatial: whether the witness is within the limits (to 1e-6, relative) and makes the point
        out of x (to 1e-5 in image units).
        """
        eps = self.radii(x) if eps is None else eps
        in_ball = self.reaches(self.distance(x_adv, x, witness), eps)
        if self.norm == SPATIAL:
            again = transformed(x, self._witness(witness).to(x))
            in_ball &= (again - x_adv).flatten(1).abs().amax(1) <= INTERPOLATION
        flat = x_adv.flatten(1)
        in_box = (flat.amin(1) >= 0) & (flat.amax(1) <= 1)
        return in_ball & in_box

    def reaches(self, distance: Float[Tensor, " n"], eps: Tensor | float) -> Bool[Tensor, " n"]:
        """Whether a ball of radius ε, with the allowance for rounding that `contains` makes, holds
        a point at this distance."""
        slack = 2e-5 if self.norm in ("l2", "l1") else 1e-6
        return distance <= eps * (1 + slack) + 6e-8

    def _witness(self, witness: Tensor | None) -> Tensor:
        if witness is None:
            raise InputError(f"{self}: a point is judged by its rotation and shift; pass `witness`")
        return witness

    def describe(self) -> dict[str, Any]:
        """What `Threat(**…)` makes again, as JSON."""
        told: dict[str, Any] = {"norm": self.norm, "eps": self.eps}
        if self.norm == SPATIAL:
            told |= {"degrees": self.degrees, "pixels": self.pixels}
        return told

    def __str__(self) -> str:
        if self.norm == SPATIAL:
            return f"spatial ±{self.eps * self.degrees:g}° ±{self.eps * self.pixels:g} px"
        named = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0"}[self.norm]
        over_255 = self.eps * 255
        short = len(f"{self.eps:g}") <= 4
        if self.norm == "linf" and not short and abs(over_255 - round(over_255, 1)) < 1e-6:
            return f"{named} {over_255:g}/255"
        return f"{named} {self.eps:g}"
