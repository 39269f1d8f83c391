"""A small convolutional network made for interval bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from ..inputs import whole_number
from .layers import Normalise
from .resnet import CIFAR10_MEAN, CIFAR10_STD


class IntervalCNN(nn.Sequential):
    """Three convolutions, an average and two linear layers, with ReLUs and no batch norm.

    `holdfast.certification.bounds` has a rule for every layer. The network resembles the small one
    of Gowal et al., "On the effectiveness of interval bound propagation for training verifiably
    robust models", 2018. The average makes the linear layers' size independent of the images'.

    Args:
        width: channels of the first convolution; the others have twice as many.
        classes: number of classes.
        mean, std: normalisation per channel; their length is the number of image channels.
        stride: of the last convolution: 1 for 8×8 images, 2 for 32×32.

    Raises:
        InputError: an argument out of its range.

    Example:
        >>> import torch
        >>> IntervalCNN(width=4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        width: int = 16,
        classes: int = 10,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
        stride: int = 2,
    ):
        whole_number("width", width)
        whole_number("classes", classes)
        whole_number("stride", stride)
        super().__init__(
            OrderedDict(
                normalise=Normalise(mean, std),
                conv1=nn.Conv2d(len(mean), width, 3, 1, 1),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(width, 2 * width, 4, 2, 1),
                relu2=nn.ReLU(),
                conv3=nn.Conv2d(2 * width, 2 * width, 3, stride, 1),
                relu3=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(4),
                flatten=nn.Flatten(),
                linear1=nn.Linear(32 * width, 8 * width),
                relu4=nn.ReLU(),
                linear2=nn.Linear(8 * width, classes),
            )
        )
