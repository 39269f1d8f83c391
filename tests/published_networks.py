"""Published networks, described from their publications and not from our code: the names and shapes
of their weights, and their logits, written with functions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Act = Callable[[Tensor], Tensor]


class Weights:
    """A state dict of random weights that grows as layers are named; and its layers, applied.

    Shapes alone (`on="meta"`) take no memory.
    """

    def __init__(self, seed: int = 0, on: str = "cpu"):
        self.state: State = {}
        self.draws = torch.Generator().manual_seed(seed)
        self.on = on

    def _new(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        if self.on == "meta":
            return torch.empty(shape, device="meta")
        return low + (high - low) * torch.rand(shape, generator=self.draws)

    def conv(self, name: str, inputs: int, outputs: int, kernel: int) -> None:
        bound = (3.0 / (inputs * kernel**2)) ** 0.5
        self.state[f"{name}.weight"] = self._new(
            outputs, inputs, kernel, kernel, low=-bound, high=bound
        )

    def norm(self, name: str, channels: int) -> None:
        self.state[f"{name}.weight"] = self._new(channels, low=0.5, high=1.5)
        self.state[f"{name}.bias"] = self._new(channels, low=-0.5, high=0.5)
        self.state[f"{name}.running_mean"] = self._new(channels, low=-0.3, high=0.3)
        self.state[f"{name}.running_var"] = self._new(channels, low=0.5, high=1.5)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def linear(self, name: str, inputs: int, outputs: int) -> None:
        self.state[f"{name}.weight"] = self._new(outputs, inputs, low=-0.3, high=0.3)
        self.state[f"{name}.bias"] = self._new(outputs)


def _conv(s: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, s[f"{name}.weight"], None, stride, padding)


def _norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    return F.batch_norm(x, mean, var, s[f"{name}.weight"], s[f"{name}.bias"], eps=1e-5)


def _linear(s: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])


# --- Wide ResNet of TRADES ---------------------------------------------------------------------


def _wide_blocks(depth: int, widen: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Stage from 0, place in it, input channels, output channels, stride."""
    channels = 16
    for stage, outputs in enumerate((16 * widen, 32 * widen, 64 * widen)):
        for i in range((depth - 4) // 6):
            yield stage, i, channels, outputs, 2 if stage > 0 and i == 0 else 1
            channels = outputs


def trades(depth: int, widen: int, classes: int = 10, leftover: bool = False, **how) -> State:
    w = Weights(**how)
    w.conv("conv1", 3, 16, 3)
    for stage, i, inputs, outputs, _ in _wide_blocks(depth, widen):
        for group in (f"block{stage + 1}", *(["sub_block1"] if leftover and stage == 0 else [])):
            name = f"{group}.layer.{i}"
            w.norm(f"{name}.bn1", inputs)
            w.conv(f"{name}.conv1", inputs, outputs, 3)
            w.norm(f"{name}.bn2", outputs)
            w.conv(f"{name}.conv2", outputs, outputs, 3)
            if inputs != outputs:
                w.conv(f"{name}.convShortcut", inputs, outputs, 1)
    w.norm("bn1", 64 * widen)
    w.linear("fc", 64 * widen, classes)
    return w.state


def trades_logits(s: State, x: Tensor, depth: int, widen: int, act: Act = F.relu) -> Tensor:
    x = _conv(s, "conv1", x, padding=1)
    for stage, i, inputs, outputs, stride in _wide_blocks(depth, widen):
        name = f"block{stage + 1}.layer.{i}"
        h = act(_norm(s, f"{name}.bn1", x))
        kept = x if inputs == outputs else _conv(s, f"{name}.convShortcut", h, stride)
        h = act(_norm(s, f"{name}.bn2", _conv(s, f"{name}.conv1", h, stride, 1)))
        x = kept + _conv(s, f"{name}.conv2", h, padding=1)
    x = F.avg_pool2d(act(_norm(s, "bn1", x)), 8).flatten(1)
    return _linear(s, "fc", x)


# --- DeepMind's networks -----------------------------------------------------------------------

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2471, 0.2435, 0.2616]).view(3, 1, 1)
MEAN100 = torch.tensor([0.5071, 0.4865, 0.4409]).view(3, 1, 1)
STD100 = torch.tensor([0.2673, 0.2564, 0.2762]).view(3, 1, 1)
HALF = torch.full((1, 1, 1), 0.5)


def deepmind(
    depth: int, widen: int, classes: int = 10, channels: int = 3, inside: bool = False, **how
) -> State:
    """`inside` puts the normalisation among the weights, as re-implementations do."""
    w = Weights(**how)
    if inside:
        w.state["mean"], w.state["std"] = MEAN[:channels].clone() + 0.1, STD[:channels].clone()
    w.conv("init_conv", channels, 16, 3)
    for stage, i, inputs, outputs, _ in _wide_blocks(depth, widen):
        name = f"layer.{stage}.block.{i}"
        w.norm(f"{name}.batchnorm_0", inputs)
        w.conv(f"{name}.conv_0", inputs, outputs, 3)
        w.norm(f"{name}.batchnorm_1", outputs)
        w.conv(f"{name}.conv_1", outputs, outputs, 3)
        if inputs != outputs:
            w.conv(f"{name}.shortcut", inputs, outputs, 1)
    w.norm("batchnorm", 64 * widen)
    w.linear("logits", 64 * widen, classes)
    return w.state


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _same(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    """3×3 with the padding that TensorFlow calls SAME, of an even size."""
    return _conv(s, name, F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)), stride)


def deepmind_logits(
    s: State,
    x: Tensor,
    depth: int,
    widen: int,
    act: Act = swish,
    border: int = 0,
    mean: Tensor = MEAN,
    std: Tensor = STD,
) -> Tensor:
    x = (F.pad(x, (border,) * 4) - s.get("mean", mean)) / s.get("std", std)
    x = _conv(s, "init_conv", x, padding=1)
    for stage, i, inputs, outputs, stride in _wide_blocks(depth, widen):
        name = f"layer.{stage}.block.{i}"
        h = act(_norm(s, f"{name}.batchnorm_0", x))
        kept = x if inputs == outputs else _conv(s, f"{name}.shortcut", h, stride)
        h = act(_norm(s, f"{name}.batchnorm_1", _same(s, f"{name}.conv_0", h, stride)))
        x = kept + _conv(s, f"{name}.conv_1", h, padding=1)
    x = F.avg_pool2d(act(_norm(s, "batchnorm", x)), 8).flatten(1)
    return _linear(s, "logits", x)


def _doubling_blocks(counts: tuple[int, ...], width: int) -> Iterator[tuple[int, int, int, int]]:
    """Stage from 0, place in it, channels of the stage, stride."""
    for stage, count in enumerate(counts):
        for i in range(count):
            yield stage, i, width << stage, 2 if stage > 0 and i == 0 else 1


def deepmind_preact(counts: tuple[int, ...], width: int = 64, classes: int = 10, **how) -> State:
    w = Weights(**how)
    w.conv("conv_2d", 3, width, 3)
    inputs = width
    for stage, i, outputs, stride in _doubling_blocks(counts, width):
        name = f"layer_{stage}.{i}"
        w.norm(f"{name}.batchnorm_0", inputs)
        w.conv(f"{name}.conv_2d_1", inputs, outputs, 3)
        w.norm(f"{name}.batchnorm_1", outputs)
        w.conv(f"{name}.conv_2d_2", outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            w.conv(f"{name}.shortcut", inputs, outputs, 3)
        inputs = outputs
    w.norm("batchnorm", inputs)
    w.linear("logits", inputs, classes)
    return w.state


def deepmind_preact_logits(
    s: State, x: Tensor, counts: tuple[int, ...], width: int = 64, act: Act = swish
) -> Tensor:
    x = _conv(s, "conv_2d", (x - MEAN) / STD, padding=1)
    for stage, i, _, stride in _doubling_blocks(counts, width):
        name = f"layer_{stage}.{i}"
        h = act(_norm(s, f"{name}.batchnorm_0", x))
        if f"{name}.shortcut.weight" in s:
            x = _same(s, f"{name}.shortcut", x, stride)
        h = act(_norm(s, f"{name}.batchnorm_1", _same(s, f"{name}.conv_2d_1", h, stride)))
        x = x + _conv(s, f"{name}.conv_2d_2", h, padding=1)
    x = F.avg_pool2d(act(_norm(s, "batchnorm", x)), 4).flatten(1)
    return _linear(s, "logits", x)


# --- pytorch-cifar's networks ------------------------------------------------------------------


def kuangliu_preact(
    counts: tuple[int, ...], width: int = 64, classes: int = 10, last_norm: bool = True, **how
) -> State:
    w = Weights(**how)
    w.conv("conv1", 3, width, 3)
    inputs = width
    for stage, i, outputs, stride in _doubling_blocks(counts, width):
        name = f"layer{stage + 1}.{i}"
        w.norm(f"{name}.bn1", inputs)
        w.conv(f"{name}.conv1", inputs, outputs, 3)
        w.norm(f"{name}.bn2", outputs)
        w.conv(f"{name}.conv2", outputs, outputs, 3)
        if stride != 1 or inputs != outputs:
            w.conv(f"{name}.shortcut.0", inputs, outputs, 1)
        inputs = outputs
    if last_norm:
        w.norm("bn", inputs)
    w.linear("linear", inputs, classes)
    return w.state


def kuangliu_preact_logits(
    s: State, x: Tensor, counts: tuple[int, ...], width: int = 64, of_input: bool = False
) -> Tensor:
    x = _conv(s, "conv1", x, padding=1)
    for stage, i, _, stride in _doubling_blocks(counts, width):
        name = f"layer{stage + 1}.{i}"
        h = F.relu(_norm(s, f"{name}.bn1", x))
        if f"{name}.shortcut.0.weight" in s:
            x = _conv(s, f"{name}.shortcut.0", x if of_input else h, stride)
        h = F.relu(_norm(s, f"{name}.bn2", _conv(s, f"{name}.conv1", h, stride, 1)))
        x = x + _conv(s, f"{name}.conv2", h, padding=1)
    if "bn.weight" in s:
        x = F.relu(_norm(s, "bn", x))
    return _linear(s, "linear", F.avg_pool2d(x, 4).flatten(1))


def resnet(
    counts: tuple[int, ...],
    deep: bool,
    width: int = 64,
    widen: int = 1,
    classes: int = 10,
    torchvision: bool = False,
    **how,
) -> State:
    w = Weights(**how)
    shortcut, last = ("downsample", "fc") if torchvision else ("shortcut", "linear")
    w.conv("conv1", 3, width, 7 if torchvision else 3)
    w.norm("bn1", width)
    inputs = width
    for stage, i, channels, stride in _doubling_blocks(counts, width):
        name, outputs = f"layer{stage + 1}.{i}", channels * (4 if deep else 1)
        if deep:
            inner = channels * widen
            layers = ((1, inputs, inner), (3, inner, inner), (1, inner, outputs))
        else:
            layers = ((3, inputs, outputs), (3, outputs, outputs))
        for number, (kernel, a, b) in enumerate(layers, 1):
            w.conv(f"{name}.conv{number}", a, b, kernel)
            w.norm(f"{name}.bn{number}", b)
        if stride != 1 or inputs != outputs:
            w.conv(f"{name}.{shortcut}.0", inputs, outputs, 1)
            w.norm(f"{name}.{shortcut}.1", outputs)
        inputs = outputs
    w.linear(last, inputs, classes)
    return w.state


def resnet_logits(
    s: State, x: Tensor, counts: tuple[int, ...], deep: bool, torchvision: bool = False
) -> Tensor:
    shortcut, last = ("downsample", "fc") if torchvision else ("shortcut", "linear")
    if torchvision:
        x = F.relu(_norm(s, "bn1", _conv(s, "conv1", x, 2, 3)))
        x = F.max_pool2d(x, 3, 2, 1)
    else:
        x = F.relu(_norm(s, "bn1", _conv(s, "conv1", x, 1, 1)))
    for stage, i, _, stride in _doubling_blocks(counts, 1):
        name, h = f"layer{stage + 1}.{i}", x
        if deep:
            h = F.relu(_norm(s, f"{name}.bn1", _conv(s, f"{name}.conv1", h)))
            h = F.relu(_norm(s, f"{name}.bn2", _conv(s, f"{name}.conv2", h, stride, 1)))
            h = _norm(s, f"{name}.bn3", _conv(s, f"{name}.conv3", h))
        else:
            h = F.relu(_norm(s, f"{name}.bn1", _conv(s, f"{name}.conv1", h, stride, 1)))
            h = _norm(s, f"{name}.bn2", _conv(s, f"{name}.conv2", h, 1, 1))
        if f"{name}.{shortcut}.0.weight" in s:
            x = _norm(s, f"{name}.{shortcut}.1", _conv(s, f"{name}.{shortcut}.0", x, stride))
        x = F.relu(h + x)
    return _linear(s, last, x.mean((2, 3)))
