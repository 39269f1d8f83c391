"""Ways to hide a gradient, as people write them: functions before a network and behind it."""

from __future__ import annotations

import copy
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


# --- models of their own kind ------------------------------------------------------------------


def purified_by_grad(network: Model, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().clone().requires_grad_(True)
        for _ in range(2):
            loss = -network(y).logsumexp(1).sum()
            (slope,) = torch.autograd.grad(loss, y)
            y = (y - 0.01 * slope.sign()).detach().requires_grad_(True)
    return network(y.detach())


def purified_by_backward(network: Model, x: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().clone().requires_grad_(True)
        (-network(y).logsumexp(1).sum()).backward()
        y = y - 0.01 * y.grad.sign()
    return network(y.detach())


def purified_by_func(network: Model, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda y: -network(y).logsumexp(1).sum())(x.detach())
    return network((x - 0.01 * slope.sign()).detach())


def equalised(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return (torch.searchsorted(flat.sort(1).values, flat) / flat.shape[1]).view_as(x)


PALETTE = torch.rand(32, 3, generator=torch.Generator().manual_seed(0))


def in_palette(x: Tensor) -> Tensor:
    distance = ((x.permute(0, 2, 3, 1)[..., None, :] - PALETTE) ** 2).sum(-1)
    return PALETTE[distance.argmin(-1)].permute(0, 3, 1, 2)


def written_into(x: Tensor) -> Tensor:
    x = x.clone()
    x[:] = x.round(decimals=1)
    return x


def rounded_into(x: Tensor) -> Tensor:
    buffer = torch.empty_like(x)
    with torch.no_grad():
        torch.round(x * 15, out=buffer)
    return buffer / 15


def by_file(x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(x.detach(), file)
    file.seek(0)
    return torch.load(file)


def listed(network: Model, x: Tensor) -> Tensor:
    return torch.tensor([[float(v == max(row)) for v in row] for row in network(x).tolist()])


def one_by_one(network: Model, x: Tensor) -> Tensor:
    rounded = (np.round(image.detach().numpy() * 15) / 15 for image in x)
    return torch.stack([network(torch.tensor(image)[None])[0] for image in rounded])


def raising(network: Model, x: Tensor) -> Tensor:
    if x.requires_grad:
        raise RuntimeError("no gradients here")
    return network(x)


def _steps(step: Callable[[Tensor, float], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: sum(step(x, level / 8) for level in range(1, 8)) / 7  # type: ignore[return-value]


FURTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "equalised": equalised,
    "palette": in_palette,
    "written into": written_into,
    "out": rounded_into,
    "file": by_file,
    "where": _steps(lambda x, level: torch.where(x > level, 1.0, 0.0)),
    "mask": _steps(lambda x, level: (x > level) * 1.0),
    "logic": _steps(lambda x, level: torch.logical_not(x <= level).float()),
    "heaviside": _steps(lambda x, level: torch.heaviside(x - level, torch.tensor(0.0))),
    "and": lambda x: ((x * 255).int() & 0xF0).float() / 255,
    "bits of floats": lambda x: (x.view(torch.int32) & ~0x1FFFFF).view(torch.float32),
    "deep copy": lambda x: copy.deepcopy(x.detach()),
    "apply": lambda x: x.detach().clone().apply_(lambda v: round(v * 15) / 15),
    "parameter": lambda x: nn.Parameter(x.detach(), requires_grad=False),
    "fourier by numpy": lambda x: torch.from_numpy(
        np.fft.ifft2(np.fft.fft2(x.detach().numpy())).real
    ).float(),
    "double": lambda x: torch.from_numpy(x.detach().double().numpy()).float(),
    "channels reversed": lambda x: torch.from_numpy(x.detach().numpy()[:, ::-1].copy()),
    "turned": lambda x: torch.from_numpy(np.rot90(x.detach().numpy(), 1, (2, 3)).copy()),
    "channels last": lambda x: (
        torch.from_numpy((x.permute(0, 2, 3, 1).detach().numpy() * 255).astype("uint8"))
        .permute(0, 3, 1, 2)
        .float()
        / 255
    ),
}
# The same by names of arguments.
FURTHER |= {
    "round by name": lambda x: torch.round(input=x * 15) / 15,
    "comparison by name": _steps(lambda x, level: torch.gt(input=x, other=level).float()),
    "where by name": _steps(
        lambda x, level: torch.where(
            condition=x > level, input=torch.ones_like(x), other=torch.zeros_like(x)
        )
    ),
    "masked fill by name": _steps(
        lambda x, level: torch.zeros_like(x).masked_fill(mask=x > level, value=1.0)
    ),
    "division by name": lambda x: (
        torch.div(input=x * 255, other=16, rounding_mode="floor") * 16 / 255
    ),
}


def twins(z: Tensor) -> Tensor:
    """Twice the classes: each with a twin that leads by turns, as with dummy classes."""
    lead = 0.3 * torch.sin(40 * z.detach().sum(1, keepdim=True))
    return torch.cat([z + lead, z - lead], 1)


def by_name(both: Tensor) -> Tensor:
    """The leading logit, at the class that a table names."""
    chosen = both.argmax(1, keepdim=True)
    names = torch.arange(both.shape[1]) % (both.shape[1] // 2)
    led = both.gather(1, chosen).abs() + 1
    return torch.zeros(len(both), both.shape[1] // 2).scatter(1, names[chosen], led)


def written(both: Tensor) -> Tensor:
    """The same, written into zeros."""
    led, chosen = both.max(1)
    answer = torch.zeros(len(both), both.shape[1] // 2)
    answer[torch.arange(len(both)), chosen % answer.shape[1]] = led.abs() + 1
    return answer


def marked(z: Tensor) -> Tensor:
    """One where the largest logit is, by a mask."""
    answer = torch.zeros_like(z)
    answer[z >= z.max(1, keepdim=True).values] = 1.0
    return answer


WHOLE: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "purified by grad": purified_by_grad,
    "purified by backward": purified_by_backward,
    "purified by func": purified_by_func,
    "listed": listed,
    "one by one": one_by_one,
    "raising": raising,
    "one-hot by name": lambda network, x: F.one_hot(
        torch.argmax(input=network(x), dim=1), num_classes=5
    ).float(),
    "twins by a table": lambda network, x: by_name(twins(network(x))),
    "one written by a mask": lambda network, x: marked(network(x)),
    "twins written into zeros": lambda network, x: written(twins(network(x))),
    "twins by a remainder": lambda network, x: F.one_hot(
        twins(network(x)).argmax(1) % 5, num_classes=5
    ).float(),
    "twins by a division": lambda network, x: torch.eye(5)[
        network(x).repeat_interleave(2, 1).argmax(1) // 2
    ],
    "softmax by name": lambda network, x: F.softmax(input=network(x) * 3000, dim=1),
    "blind without branch": lambda network, x: network(x * 0 if x.requires_grad else x),
    "features by numpy": lambda network, x: network[-1](  # type: ignore[index]
        torch.from_numpy(network[:-1](x).detach().numpy().round(2))  # type: ignore[index]
    ),
}


class Whole(nn.Module):
    """A network inside one of `WHOLE`, or behind one of `FURTHER`."""

    def __init__(self, network: Model, name: str):
        super().__init__()
        self.network, self.name = network, name

    def forward(self, x: Tensor) -> Tensor:
        if self.name in FURTHER:
            return self.network(FURTHER[self.name](x))
        return WHOLE[self.name](self.network, x)
