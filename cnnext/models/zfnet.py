"""ZFNet: Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", 2013, https://arxiv.org/abs/1311.2901."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.alexnet import local_response_norm
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d


class _Row(NamedTuple):
    """One layer: convolution and ReLU, then 3x3 max pooling of stride 2 and contrast normalisation, if any."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    padding: int = 1
    pool: bool = False
    normalise: bool = False


# Figure 3 of the paper. It prints no paddings; these give its sizes: 110, 55, 26, 13, 13, 13, 13, 6.
_LAYERS = (
    _Row(96, 7, stride=2, pool=True, normalise=True),
    _Row(256, 5, stride=2, padding=0, pool=True, normalise=True),
    _Row(384, 3),
    _Row(384, 3),
    _Row(256, 3, pool=True),
)
_HIDDEN_UNITS, _POOLED_SIZE = 4096, 6


class ZFNet(Network):
    """ZFNet; see `zfnet` for the arguments."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        self.features = nn.Sequential()
        found: dict[int, Feature] = {}  # by reduction, the last one of each
        channels, reduction = in_channels, 1

        def add(name: str, module: nn.Module) -> None:
            self.features.add_module(name, module)
            found[reduction] = Feature(f"features.{name}", channels, reduction)

        for i, row in enumerate(_LAYERS, start=1):
            conv = GroupedConv2d(channels, row.out_channels, row.kernel_size, row.stride, row.padding)
            self.features.add_module(f"conv{i}", conv)
            channels, reduction = row.out_channels, reduction * row.stride
            add(f"relu{i}", nn.ReLU(inplace=True))
            if row.pool:
                reduction *= 2
                add(f"pool{i}", nn.MaxPool2d(3, stride=2, ceil_mode=True))
            if row.normalise:
                add(f"norm{i}", local_response_norm())
        self.trunk = tuple(f"features.{name}" for name, _ in self.features.named_children())
        self.feature_info = FeatureInfo(found.values())

        self.avgpool = nn.AdaptiveAvgPool2d(_POOLED_SIZE)  # does nothing at 224x224
        self.classifier = nn.Sequential(
            nn.Linear(channels * _POOLED_SIZE**2, _HIDDEN_UNITS),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN_UNITS, _HIDDEN_UNITS),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(_HIDDEN_UNITS, num_classes),
        )
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(x).flatten(1))


@register_model
def zfnet(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> ZFNet:
    """Build ZFNet (https://arxiv.org/abs/1311.2901).

    With 1000 classes it has 62,357,608 parameters, and 1.2 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a unit after the first two linear layers, in training.

    Returns:
        A network from images (N, in_channels, H, W), at least 31x31, to logits (N, num_classes), in training mode.

    Raises:
        ValueError: if a count is below 1 or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> with torch.device("meta"):  # sizes only
        ...     model = cnnext.models.zfnet()
        >>> sum(p.numel() for p in model.parameters())
        62357608
    """
    return ZFNet(num_classes, in_channels, dropout)
