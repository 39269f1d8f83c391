"""Networks from images to logits, and the folders they are kept in."""

from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .registry import ARCHITECTURES, DENOISERS, arguments_of, build
from .resnet import CIFAR10_MEAN, CIFAR10_STD, PreActResNet, WideResNet
from .small_cnn import SmallCNN

__all__ = [
    "ARCHITECTURES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "DENOISERS",
    "PreActResNet",
    "SmallCNN",
    "WideResNet",
    "arguments_of",
    "build",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
