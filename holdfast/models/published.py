"""Networks of published robust models, in images of [0, 1] as they were published.

Their weights come under other names than ours; `naming.py` translates. What a publication computes
is kept exactly, so that its weights give its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..inputs import whole_number
from .layers import Normalise, activation_named
from .resnet import Form, Trunk, doubling_stages, wide_stages

# Mean and standard deviation of each channel, as publications write them.
NORMALISATIONS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "none": ((0.0,), (1.0,)),
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
# Blocks of each stage of a ResNet by its depth, and whether a block has three convolutions.
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
DEEPMIND = Form(zeros_at_end=True)
DEEPMIND_PREACT = Form(shortcut_of_input=True, shortcut_kernel=3, zeros_at_end=True)


class Normalisation(TypedDict):
    """Of each channel."""

    mean: list[float]
    std: list[float]


def normalisation_named(name: str, channels: int) -> Normalisation:
    """`mean` and `std` of one of `NORMALISATIONS`, for images of so many channels.

    Raises:
        InputError: an unknown name, or one for another number of channels.

    Example:
        >>> normalisation_named("half", 1)
        {'mean': [0.5], 'std': [0.5]}
    """
    whole_number("channels", channels)
    if not isinstance(name, str) or name not in NORMALISATIONS:
        raise InputError(f"normalise {name!r} is unknown; known: {', '.join(NORMALISATIONS)}")
    mean, std = (list(v) * (channels if len(v) == 1 else 1) for v in NORMALISATIONS[name])
    if len(mean) != channels:
        raise InputError(f"normalise {name!r} is for {len(mean)} channels, not {channels}")
    return {"mean": mean, "std": std}


def name_of_normalisation(mean: Tensor, std: Tensor) -> str | None:
    """The name of a normalisation, of its values for each channel; None if it has none."""
    for name, values in NORMALISATIONS.items():
        if len(values[0]) in (1, len(mean)):
            known = normalisation_named(name, len(mean))
            if mean.equal(torch.tensor(known["mean"])) and std.equal(torch.tensor(known["std"])):
                return name
    return None


def _as_published(normalise: str, channels: int, classes: int) -> Normalisation:
    """A normalisation by its name; `published` is that of DeepMind's models for such data."""
    if normalise == "published":
        normalise = "half" if channels != 3 else "cifar100" if classes == 100 else "cifar10"
    return normalisation_named(normalise, channels)


class TradesWideResNet(Trunk):
    """Wide ResNet as in TRADES and most of RobustBench: no normalisation, unless it is named.

    Zhang et al., "Theoretically principled trade-off between robustness and accuracy", ICML 2019.

    Args:
        depth, widen, classes, activation: as in `WideResNet`.
        channels: of the images.
        normalise: `none`, `half`, `cifar10`, `cifar100` or `imagenet`. One that is in a file of
            weights takes its place.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> TradesWideResNet(depth=10, widen=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 34,
        widen: int = 10,
        classes: int = 10,
        activation: str = "relu",
        channels: int = 3,
        normalise: str = "none",
    ):
        whole_number("classes", classes)
        super().__init__(
            (16, 1),
            wide_stages(depth, widen),
            classes=classes,
            activation=activation,
            **normalisation_named(normalise, channels),
        )


class _Bordered(Trunk):
    """A trunk that sees `border` rows and columns of zeros around the image."""

    border: int

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The input (N, D) of the linear layer."""
        return super().features(F.pad(images, (self.border,) * 4) if self.border else images)


class DeepMindWideResNet(_Bordered):
    """Wide ResNet as published by DeepMind: strided convolutions see zeros at two edges only.

    Gowal et al., "Uncovering the limits of adversarial training against norm-bounded adversarial
    examples", 2020. Also of Rebuffi et al. 2021, Rade & Moosavi-Dezfooli 2022, Pang et al. 2022 and
    Wang et al. 2023.

    Args:
        depth, widen, classes, channels: as in `TradesWideResNet`.
        normalise: as there; or `published`, which is `cifar100` for 100 classes, `half` for images
            that are not of three channels (MNIST), else `cifar10`.
        activation: `silu` (= `swish`) as published for CIFAR; `relu` and `gelu` too.
        border: zeros put around the image on all sides, before it is normalised (2 for MNIST).

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> DeepMindWideResNet(depth=10, widen=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        widen: int = 10,
        classes: int = 10,
        activation: str = "silu",
        channels: int = 3,
        normalise: str = "published",
        border: int = 0,
    ):
        whole_number("classes", classes)
        self.border = whole_number("border", border, 0)
        super().__init__(
            (16, 1),
            wide_stages(depth, widen),
            classes=classes,
            activation=activation,
            form=DEEPMIND,
            **_as_published(normalise, channels, classes),
        )


class DeepMindPreActResNet(_Bordered):
    """Pre-activation ResNet as published by DeepMind: shortcuts of 3×3, of the input as it is.

    Rebuffi et al., "Data augmentation can improve robustness", NeurIPS 2021.

    Args:
        depth: 18 or 34; or 10, 26, … for as many blocks in each stage.
        width: channels of the first stage.
        classes, activation, channels, normalise, border: as in `DeepMindWideResNet`.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> DeepMindPreActResNet(width=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        classes: int = 10,
        activation: str = "silu",
        channels: int = 3,
        normalise: str = "published",
        border: int = 0,
    ):
        whole_number("classes", classes)
        self.border = whole_number("border", border, 0)
        super().__init__(
            (width, 1),
            doubling_stages(depth, width),
            classes=classes,
            activation=activation,
            form=DEEPMIND_PREACT,
            **_as_published(normalise, channels, classes),
        )


class KuangliuPreActResNet(Trunk):
    """Pre-activation ResNet as in pytorch-cifar (kuangliu) and its many descendants.

    Rice et al., "Overfitting in adversarially robust deep learning", ICML 2020; Wong et al., "Fast
    is better than free", ICLR 2020; Andriushchenko & Flammarion, NeurIPS 2020.

    Args:
        depth, width: as in `PreActResNet`.
        classes, activation, channels, normalise: as in `TradesWideResNet`.
        shortcut: what the convolution of a shortcut sees: `activated` (pytorch-cifar, Rice et al.),
            or `input` (Wong et al., Andriushchenko & Flammarion).
        last_norm: whether norm and activation follow the last block (Rice et al.), or not
            (pytorch-cifar, Wong et al., Andriushchenko & Flammarion).

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> KuangliuPreActResNet(width=4, last_norm=False)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        classes: int = 10,
        activation: str = "relu",
        channels: int = 3,
        normalise: str = "none",
        shortcut: str = "activated",
        last_norm: bool = True,
    ):
        whole_number("classes", classes)
        if shortcut not in ("activated", "input"):
            raise InputError(f"shortcut must be 'activated' or 'input', not {shortcut!r}")
        if not isinstance(last_norm, bool):
            raise InputError(f"last_norm must be true or false, not {last_norm!r}")
        super().__init__(
            (width, 1),
            doubling_stages(depth, width),
            classes=classes,
            activation=activation,
            form=Form(shortcut_of_input=shortcut == "input"),
            last_norm=last_norm,
            **normalisation_named(normalise, channels),
        )


class _PostActivationBlock(nn.Module):
    """Convolutions, each followed by a norm, added to the input; the activation comes last."""

    def __init__(
        self, inputs: int, inner: int, outputs: int, stride: int, deep: bool, activation: str
    ):
        super().__init__()
        self.act = activation_named(activation)
        # The stride is that of the 3×3 convolution.
        plan = ((1, 1), (3, stride), (1, 1)) if deep else ((3, stride), (3, 1))
        self.count = len(plan)
        channels = [inputs, *[inner] * (self.count - 1), outputs]
        for i, (kernel, step) in enumerate(plan):
            convolution = nn.Conv2d(
                channels[i], channels[i + 1], kernel, step, kernel // 2, bias=False
            )
            self.add_module(f"conv{i + 1}", convolution)
            self.add_module(f"norm{i + 1}", nn.BatchNorm2d(channels[i + 1]))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i in range(1, self.count + 1):
            h = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(h))
            if i < self.count:
                h = self.act(h)
        return self.act(h + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with the activation after the addition, for small images or for ImageNet's.

    He et al., "Deep residual learning for image recognition", CVPR 2016; as in pytorch-cifar
    (kuangliu), RobustBench and torchvision, whose 3×3 convolutions have the stride.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the first stage.
        widen: factor of the 3×3 convolutions of depth 50 and more (2 in Wide ResNet-50-2).
        stem: `cifar`, 3×3 of stride 1; or `imagenet`, 7×7 of stride 2 and a maximum over 3×3.
        classes, activation, channels, normalise: as in `TradesWideResNet`.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> ResNet(depth=50, width=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        depth: int = 18,
        width: int = 64,
        widen: int = 1,
        stem: str = "cifar",
        classes: int = 10,
        activation: str = "relu",
        channels: int = 3,
        normalise: str = "none",
    ):
        super().__init__()
        whole_number("width", width)
        whole_number("widen", widen)
        whole_number("classes", classes)
        if not isinstance(depth, int) or depth not in DEPTHS:
            raise InputError(f"depth {depth!r} fits no ResNet; use {', '.join(map(str, DEPTHS))}")
        counts, deep = DEPTHS[depth]
        if widen != 1 and not deep:
            raise InputError("widen is for ResNets of depth 50 and more")
        if stem not in ("cifar", "imagenet"):
            raise InputError(f"stem must be 'cifar' or 'imagenet', not {stem!r}")
        self.normalise = Normalise(**normalisation_named(normalise, channels))
        self.act = activation_named(activation)
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.stem = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(counts):
            inner, outputs = widen * width << stage, (4 if deep else 1) * width << stage
            for i in range(count):
                step = 2 if i == 0 and stage > 0 else 1
                blocks.append(_PostActivationBlock(inputs, inner, outputs, step, deep, activation))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(inputs, classes)

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The input (N, D) of the linear layer: averaged outputs of the last block."""
        x = self.act(self.norm(self.stem(self.normalise(images))))
        return self.blocks(self.pool(x)).mean((2, 3))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        return self.linear(self.features(images))
