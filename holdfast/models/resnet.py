"""Residual networks for small images.

`PreActResNet` (He et al., "Identity mappings in deep residual networks", ECCV 2016) and
`WideResNet` (Zagoruyko & Komodakis, BMVC 2016) are the same chain of pre-activation blocks with
different numbers of stages, so both are built from one `Trunk`. So are the published networks of
`published.py`, whose blocks differ in what `Form` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import InputError
from ..inputs import whole_number
from .layers import Normalise, activation_named

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class Form:
    """What publications of pre-activation blocks differ in.

    Attributes:
        shortcut_of_input: the convolution of the shortcut sees the block's input as it is, not
            activated.
        shortcut_kernel: its size, 1 or 3.
        zeros_at_end: 3×3 convolutions of stride 2 see zeros beyond the lower and the right edge
            only, as TensorFlow pads an even size; else on all sides.
    """

    shortcut_of_input: bool = False
    shortcut_kernel: int = 1
    zeros_at_end: bool = False


OURS = Form()


class _Block(nn.Module):
    """norm → activation → 3×3 → norm → activation → 3×3, added to the input.

    If the shape changes, the shortcut is a convolution, of the *activated* input unless the form
    says otherwise.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, form: Form = OURS):
        super().__init__()
        self.act = activation_named(activation)
        self.norm1 = nn.BatchNorm2d(inputs)
        border = 0 if form.zeros_at_end and stride == 2 else 1
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, border, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            size = form.shortcut_kernel
            self.shortcut = nn.Conv2d(
                inputs, outputs, size, stride, border if size == 3 else 0, bias=False
            )
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(x))
        shortcut = x
        if self.shortcut is not None:
            seen = x if self.form.shortcut_of_input else h
            shortcut = self.shortcut(self._padded(seen, self.form.shortcut_kernel))
        return self.conv2(self.act(self.norm2(self.conv1(self._padded(h))))) + shortcut

    def _padded(self, x: Tensor, kernel: int = 3) -> Tensor:
        # No module: the model's digest is also that of its parts.
        at_end = self.form.zeros_at_end and kernel == 3 and self.conv1.stride == (2, 2)
        return F.pad(x, (0, 1, 0, 1)) if at_end else x


class Trunk(nn.Module):
    """Stem → stages of blocks → norm → activation → average → linear.

    Args:
        stem: output channels and stride of the first convolution. Its kernel is 3 at stride 1
            and 4 at stride 2 (which covers every pixel equally often).
        stages: (channels, blocks, stride) of each stage.
        form: of the blocks.
        last_norm: whether the last block is followed by norm and activation.
        mirrored: in eval mode, average over each image and its mirror image.
    """

    mirrored = False

    def __init__(
        self,
        stem: tuple[int, int],
        stages: Sequence[tuple[int, int, int]],
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        activation: str,
        form: Form = OURS,
        last_norm: bool = True,
        mirrored: bool = False,
    ):
        super().__init__()
        if mirrored:  # else the class says so: the model's digest is also that of its attributes
            self.mirrored = True
        self.normalise = Normalise(mean, std)
        self.act = activation_named(activation)
        channels, stride = stem
        self.stem = nn.Conv2d(len(mean), channels, 2 + stride, stride, 1, bias=False)
        blocks: list[nn.Module] = []
        for outputs, count, stride in stages:
            for i in range(count):
                blocks.append(_Block(channels, outputs, stride if i == 0 else 1, activation, form))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels) if last_norm else None
        self.linear = nn.Linear(channels, classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The input (N, D) of the linear layer: averaged activations of the last block."""
        if self.mirrored and not self.training:
            # The layer is linear: the average of the features gives that of the logits.
            return (self._features(images) + self._features(images.flip(3))) / 2
        return self._features(images)

    def _features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        x = self.blocks(self.stem(self.normalise(images)))
        if self.norm is not None:
            x = self.act(self.norm(x))
        return x.mean((2, 3))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.linear(self.features(images))


Stages = list[tuple[int, int, int]]  # channels, blocks and stride of each


def doubling_stages(depth: int, width: int, stages: int = 4) -> Stages:
    """Stages of `width`, 2 × `width`, … channels, each after the first of stride 2; InputError for
    a depth that no whole number of blocks gives."""
    whole_number("width", width)
    per_block = 2 * whole_number("stages", stages, 1, 16)
    if (depth, stages) == (34, 4):
        counts = [3, 4, 6, 3]
    elif whole_number("depth", depth) > 2 and (depth - 2) % per_block == 0:
        counts = [(depth - 2) // per_block] * stages
    else:
        fitting = ", ".join(str(2 + per_block * n) for n in (1, 2, 3))
        raise InputError(
            f"depth {depth} fits no PreAct ResNet of {stages} stages; use {fitting}, …"
        )
    return [(width << i, n, 1 if i == 0 else 2) for i, n in enumerate(counts)]


def wide_stages(depth: int, widen: int) -> Stages:
    """Three stages of 16, 32 and 64 × `widen` channels; InputError for a depth that no whole
    number of blocks gives."""
    whole_number("widen", widen)
    if whole_number("depth", depth) < 10 or (depth - 4) % 6 != 0:
        raise InputError(f"depth {depth} fits no Wide ResNet; use 10, 16, 22, 28, 34, …")
    return [(16 * widen << i, (depth - 4) // 6, 1 if i == 0 else 2) for i in range(3)]


class PreActResNet(Trunk):
    """Pre-activation ResNet with four stages of `width`, 2, 4 and 8 × `width` channels.

    Args:
        depth: 2 + 2 × stages × blocks per stage, which is 10, 18, 26, … with four stages; or 34,
            for stages of 3, 4, 6 and 3 blocks.
        width: channels of the first stage (64 in the paper).
        stages: each halves the resolution and doubles the channels of the one before.
        classes: number of classes.
        mean, std: normalisation per channel; their length is the number of image channels.
        stem_stride: 1 as published. With 2, all blocks work at half the resolution, which costs a
            quarter.
        activation: `relu`, `silu` or `gelu`.
        mirrored: in eval mode, logits are the average over each image and its mirror image, which
            takes twice as long. Training is the same.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> PreActResNet(depth=10, width=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        stages: int = 4,
        classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        stem_stride: int = 1,
        activation: str = "relu",
        mirrored: bool = False,
    ):
        whole_number("classes", classes)
        shapes = doubling_stages(depth, width, stages)
        if whole_number("stem_stride", stem_stride) > 2:
            raise InputError(f"stem_stride must be 1 or 2, not {stem_stride!r}")
        if not isinstance(mirrored, bool):
            raise InputError(f"mirrored must be true or false, not {mirrored!r}")
        super().__init__(
            (width, stem_stride),
            shapes,
            classes=classes,
            mean=mean,
            std=std,
            activation=activation,
            mirrored=mirrored,
        )


class WideResNet(Trunk):
    """Wide ResNet with three stages of 16, 32 and 64 × `widen` channels.

    Args:
        depth: 4 + 6 × blocks per stage (16, 28, 34, …).
        widen: widening factor (10 in WRN-34-10).
        classes, mean, std, activation: as in `PreActResNet`.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> WideResNet(depth=10, widen=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        widen: int = 10,
        classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        activation: str = "relu",
    ):
        whole_number("classes", classes)
        stages = wide_stages(depth, widen)
        super().__init__(
            (16, 1), stages, classes=classes, mean=mean, std=std, activation=activation
        )
