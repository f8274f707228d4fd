"""AlexNet, in two versions.

One tower: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014,
https://arxiv.org/abs/1404.5997. Module names are torchvision's, so its state dict loads as it is::

    model.load_state_dict(torchvision.models.alexnet(weights="IMAGENET1K_V1").state_dict())

Two towers: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012, which spread the
network over two GPUs and so invented grouped convolution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, conv2d, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model


class _Row(NamedTuple):
    """One convolution, and whether local response normalisation and 3x3 max pooling of stride 2 follow."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 1
    groups: int = 1
    normalise: bool = False
    pool: bool = False


# By number of towers.
_TABLES = {
    1: (
        _Row(64, 11, stride=4, padding=2, pool=True),
        _Row(192, 5, padding=2, pool=True),
        _Row(384, 3),
        _Row(256, 3),
        _Row(256, 3, pool=True),
    ),
    2: (
        _Row(96, 11, stride=4, padding=2, normalise=True, pool=True),
        _Row(256, 5, padding=2, groups=2, normalise=True, pool=True),
        _Row(384, 3),
        _Row(384, 3, groups=2),
        _Row(256, 3, groups=2, pool=True),
    ),
}
_HIDDEN_UNITS, _POOLED_SIZE = 4096, 6


def local_response_norm() -> nn.LocalResponseNorm:
    """Section 3.3 of the paper of 2012: over 5 channels, k = 2, alpha = 1e-4, beta = 0.75.

    NOTE: torch divides alpha by the number of channels in the window, the paper does not.
    """
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


class AlexNet(Network):
    """AlexNet; see `alexnet` for the arguments."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, towers: int = 1) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        if towers not in _TABLES:
            raise ValueError(f"towers must be 1 or 2, got {towers!r}")
        self.input_size = (in_channels, 224, 224)

        self.features = nn.Sequential()
        found = []
        channels, reduction = in_channels, 1
        for row in _TABLES[towers]:
            self.features.append(
                conv2d(channels, row.out_channels, row.kernel_size, row.stride, row.padding, row.groups)
            )
            self.features.append(nn.ReLU(inplace=True))
            channels, reduction = row.out_channels, reduction * row.stride
            if row.normalise:
                self.features.append(local_response_norm())
            if row.pool:
                found.append(Feature(f"features.{len(self.features) - 1}", channels, reduction))
                self.features.append(nn.MaxPool2d(3, stride=2))
                reduction *= 2
        found.append(Feature(f"features.{len(self.features) - 1}", channels, reduction))
        self.trunk = tuple(f"features.{i}" for i in range(len(self.features)))
        self.feature_info = FeatureInfo(found)

        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED_SIZE)  # does nothing at 224x224
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels * _POOLED_SIZE**2, _HIDDEN_UNITS),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN_UNITS, _HIDDEN_UNITS),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN_UNITS, num_classes),
        )
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(x).flatten(1))


@register_model
def alexnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5, towers: int = 1) -> AlexNet:
    """Build AlexNet (https://arxiv.org/abs/1404.5997).

    With 1000 classes it has 61,100,840 parameters, and 714 million multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a unit before the first two linear layers, in training.
        towers: 1 for the network of 2014, which torchvision has too; 2 for that of 2012, whose layers 2, 4 and 5 have
            two groups (60,965,224 parameters).

    Returns:
        A network from images (N, in_channels, H, W), at least 63x63, to logits (N, num_classes), in training mode.
        State dicts of torchvision's ``alexnet`` load into the one of one tower and give the same logits.

    Raises:
        ValueError: if a count is below 1, ``towers`` neither 1 nor 2, or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> with torch.device("meta"):  # sizes only
        ...     model = cnnext.models.alexnet()
        >>> sum(p.numel() for p in model.parameters())
        61100840
    """
    return AlexNet(num_classes, in_channels, dropout, towers)
