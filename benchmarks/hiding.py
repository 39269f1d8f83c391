"""Ways to hide a gradient, as people write them: functions before a network and behind it."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from holdfast.types import Model


class ZeroBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class OppositeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x, factor):
        return x * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return None, None


class RoundOwn(torch.autograd.Function):
    """Rounds, without a gradient: its forward pass has none either."""

    @staticmethod
    def forward(ctx, x):
        return (x * 15).round() / 15

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient)


class ByNumPy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy().clip(0, 1))

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0


@torch.no_grad()
def jpeg(x: Tensor) -> Tensor:
    images = []
    for image in x.cpu():
        file = io.BytesIO()
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype("uint8")
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        read = np.asarray(Image.open(file)).copy()
        images.append(torch.from_numpy(read).permute(2, 0, 1).float() / 255)
    return torch.stack(images)


def resized_by_pil(x: Tensor) -> Tensor:
    images = []
    for image in x:
        picture = Image.fromarray((image * 255).detach().byte().permute(1, 2, 0).numpy())
        back = picture.resize((40, 40)).resize((x.shape[3], x.shape[2]))
        images.append(torch.tensor(np.array(back) / 255.0).permute(2, 0, 1))
    return torch.stack(images).float()


def blurred_by_scipy(x: Tensor) -> Tensor:
    return torch.from_numpy(gaussian_filter(x.detach().numpy(), (0, 0, 0.4, 0.4)))


def hooked(x: Tensor) -> Tensor:
    x = x * 1
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * 0)
    return x


def in_place(x: Tensor) -> Tensor:
    x = x * 15
    x.round_()
    return x.div_(15)


def by_attribute(x: Tensor) -> Tensor:
    return x.data


def not_required(x: Tensor) -> Tensor:
    x = x.detach()
    x.requires_grad = False
    return x


@torch.inference_mode()
def inferring(x: Tensor) -> Tensor:
    return x * 1


def with_table(x: Tensor) -> Tensor:
    table = (torch.arange(256) / 255) ** 1.1
    return table[(x * 255).round().long()]


def shifted_bits(x: Tensor) -> Tensor:
    return ((x * 255).to(torch.uint8) >> 4 << 4).float() / 255


def thermometer(x: Tensor) -> Tensor:
    return sum((x > level / 8).float() for level in range(1, 8)) / 7.5  # type: ignore[return-value]


def in_buckets(x: Tensor) -> Tensor:
    return torch.bucketize(x, torch.linspace(0, 1, 17)[1:-1]).float() / 15


def quantised(x: Tensor) -> Tensor:
    return torch.quantize_per_tensor(x, 1 / 255, 0, torch.quint8).dequantize()


def trembling(x: Tensor) -> Tensor:
    return x + 0.01 * torch.sin(3000 * x)


# What happens to the images before the network.
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: (x * 15).round() / 15,
    "round in place": in_place,
    "floor": lambda x: (x * 16).floor() / 16,
    "ceil": lambda x: (x * 16).ceil() / 16,
    "division that rounds": lambda x: torch.div(x * 255, 16, rounding_mode="floor") * 16 / 255,
    "floor division": lambda x: (x * 255) // 16 * 16 / 255,
    "remainder": lambda x: x - x % (1 / 16),
    "byte": lambda x: (x * 255).byte().float() / 255,
    "bits": shifted_bits,
    "table": with_table,
    "buckets": in_buckets,
    "thermometer": thermometer,
    "quantised": quantised,
    "detach": lambda x: x.detach(),
    "data": by_attribute,
    "not required": not_required,
    "inference": inferring,
    "copy": lambda x: torch.tensor(x),
    "list": lambda x: torch.tensor(x.tolist()),
    "zero backward": ZeroBackward.apply,
    "opposite backward": OppositeBackward.apply,
    "new style": lambda x: NewStyle.apply(x, 1.0),
    "own rounding": RoundOwn.apply,
    "backward by numpy": ByNumPy.apply,
    "hook": hooked,
    "sine": trembling,
    "numpy": lambda x: torch.from_numpy(np.round(x.detach().numpy() * 15) / 15),
    "mirrored by numpy": lambda x: torch.from_numpy(x.detach().numpy()[..., ::-1].copy()),
    "inverted by numpy": lambda x: torch.from_numpy(1 - x.detach().numpy()),
    "jpeg": jpeg,
    "pil": resized_by_pil,
    "scipy": blurred_by_scipy,
}


def by_no_grad(z: Tensor) -> Tensor:
    with torch.no_grad():
        return z * 1


def ranks(z: Tensor) -> Tensor:
    return z.argsort(1).argsort(1).float()


def pointed(z: Tensor) -> Tensor:
    return torch.zeros_like(z).scatter(1, z.argmax(1, keepdim=True), 1.0)


# What happens to the logits behind the network.
LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "rounded": lambda z: (z * 40).round() / 40,
    "whole": lambda z: (z * 100).int(),
    "one-hot": lambda z: F.one_hot(z.argmax(1), z.shape[1]).float(),
    "scattered": pointed,
    "compared": lambda z: (z >= z.amax(1, keepdim=True)).float(),
    "ranks": ranks,
    "clamped": lambda z: (z * 40).clamp(-1, 1) + z.detach() * 1e-3,
    "tanh": lambda z: torch.tanh(100 * z),
    "softmax": lambda z: F.softmax(z * 3000, 1),
    "tiny": lambda z: z * 1e-20,
    "no_grad": by_no_grad,
    "numpy": lambda z: torch.from_numpy(np.round(z.detach().numpy() * 40) / 40),
    "opposite if differentiated": lambda z: -z if z.requires_grad else z,
    "blind if differentiated": lambda z: z * 0 if torch.is_grad_enabled() else z,
}


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Hiding(nn.Module):
    """A network behind one of `INPUTS`, or before one of `LOGITS`."""

    def __init__(self, network: Model, before: str = "", after: str = ""):
        super().__init__()
        self.network = network
        self.before = INPUTS[before] if before else _as_it_is
        self.after = LOGITS[after] if after else _as_it_is

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))
