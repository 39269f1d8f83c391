"""Networks that hide nothing, of as many kinds as people build."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 8


def _classified(*layers: nn.Module) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(nn.Conv2d(3, CHANNELS, 3, padding=1), *layers, pool, nn.Flatten(),
                         nn.Linear(CHANNELS, 5))  # fmt: skip


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.norm(self.conv(x)))


class Excited(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.place = nn.Parameter(torch.randn(1, 16, 16) * 0.1)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.layer(tokens).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(48, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])


class QuantisationAware(nn.Module):
    """Weights and activations rounded, with straight-through gradients of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv.weight
        weight = weight + ((weight * 32).round() / 32 - weight).detach()
        x = F.conv2d(x, weight, self.conv.bias, padding=1)
        return x + ((x * 16).round() / 16 - x).detach()


class OwnLeaky(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.1 * x)


class OwnReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0)


class Swish(torch.autograd.Function):
    """A custom backward pass that is the right one, to save memory."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return gradient * (s + x * s * (1 - s))


class OwnClamps(nn.Module):
    """ReLU written as people write it otherwise, on features in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(768, 64), nn.Linear(64, 64)
        self.third, self.head = nn.Linear(64, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1)).clamp(min=0)
        x = torch.clamp_min(self.second(x), 0)
        return self.head(torch.maximum(self.third(x), torch.zeros(())))


class SteepTanh(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(768, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(4 * self.first(x.flatten(1))))


class SavingSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Swish.apply(x)


class Remembering(nn.Module):
    """Keeps activations for somebody to look at."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        self.largest = x.max().item()
        with torch.no_grad():
            self.classes = x.mean((2, 3)).argmax(1)
        return x


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x).abs().log1p()


class Views(nn.Module):
    """The mean over an image and its mirror image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = _classified(nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return (self.network(x) + self.network(x.flip(3))) / 2


class Resized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = _classified(nn.SiLU())
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="bicubic").clamp(0, 1)
        return self.network((x - self.mean) / 0.25)


def _convolution() -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)),
    "perceptron": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Linear(32, 5)
    ),
    "residual": lambda: _classified(Block(), Block()),
    "attention": Attention,
    "recurrent": Recurrent,
    "group norm": lambda: _classified(nn.GroupNorm(2, CHANNELS), nn.ReLU()),
    "layer norm": lambda: _classified(nn.LayerNorm((CHANNELS, 16, 16)), nn.GELU()),
    "instance norm": lambda: _classified(nn.InstanceNorm2d(CHANNELS), nn.ReLU(), _convolution()),
    "SiLU": lambda: _classified(nn.SiLU()),
    "ReLU6": lambda: _classified(nn.ReLU6(), _convolution(), nn.Hardswish()),
    "PReLU": lambda: _classified(nn.PReLU(), _convolution(), nn.ELU()),
    "max pooling": lambda: _classified(nn.ReLU(), nn.MaxPool2d(2), _convolution(), nn.ReLU()),
    "spectral norm": lambda: _classified(
        nn.utils.parametrizations.spectral_norm(_convolution()), nn.ReLU()
    ),
    "weight norm": lambda: _classified(
        nn.utils.parametrizations.weight_norm(_convolution()), nn.ReLU()
    ),
    "depthwise": lambda: _classified(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS), nn.ReLU()
    ),
    "squeeze and excitation": lambda: _classified(nn.ReLU(), Excited()),
    "tanh": lambda: _classified(nn.Tanh(), _convolution(), nn.Softplus()),
    "quantisation-aware": lambda: _classified(QuantisationAware(), nn.ReLU()),
    "own leaky ReLU": lambda: _classified(OwnLeaky(), _convolution(), OwnReLU()),
    "own clamps": OwnClamps,
    "steep tanh": SteepTanh,
    "own backward": lambda: _classified(SavingSwish()),
    "remembering": lambda: _classified(Remembering(), nn.ReLU()),
    "spectrum": lambda: nn.Sequential(Spectrum(), _classified(nn.ReLU())),
    "mirror images": Views,
    "resized": Resized,
    "dropout": lambda: _classified(nn.Dropout(0.5), nn.ReLU()),
    "log-probabilities": lambda: nn.Sequential(_classified(nn.ReLU()), nn.LogSoftmax(1)),
}


def plain(name: str) -> nn.Module:
    """A network of `PLAIN`, weights drawn, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return PLAIN[name]().eval()
