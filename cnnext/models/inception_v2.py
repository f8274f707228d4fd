"""Inception-V2: Ioffe & Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
Covariate Shift", 2015, https://arxiv.org/abs/1502.03167, appendix; also called BN-Inception.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, conv2d, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model


class _Row(NamedTuple):
    """One inception module; channels, named as in the paper's table. A module of stride 2 has neither the 1x1
    convolution nor the projection: its input is pooled and passed through.
    """

    name: str
    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce_double3x3: int
    double3x3: int
    pool: str
    pool_proj: int
    stride: int = 1

    def out_channels(self, in_channels: int) -> int:
        return self.conv1x1 + self.conv3x3 + self.double3x3 + (self.pool_proj or in_channels)


# The first convolution is separable: 8 filters 7x7 for each channel of the image, then 1x1.
_STEM_MULTIPLIER, _STEM_CHANNELS = 8, (64, 64, 192)

# Figure 5 of the paper. For 4c and 4d it prints projections to 128 channels beside outputs of 576, and 1024 for 4e;
# these outputs need projections to 96.
_INCEPTION = (
    _Row("3a", 64, 64, 64, 64, 96, "avg", 32),
    _Row("3b", 64, 64, 96, 64, 96, "avg", 64),
    _Row("3c", 0, 128, 160, 64, 96, "max", 0, stride=2),
    _Row("4a", 224, 64, 96, 96, 128, "avg", 128),
    _Row("4b", 192, 96, 128, 96, 128, "avg", 128),
    _Row("4c", 160, 128, 160, 128, 160, "avg", 96),
    _Row("4d", 96, 128, 192, 160, 192, "avg", 96),
    _Row("4e", 0, 128, 192, 192, 256, "max", 0, stride=2),
    _Row("5a", 352, 192, 320, 160, 224, "avg", 128),
    _Row("5b", 352, 192, 320, 192, 224, "max", 128),
)

_POOLS: dict[str, Callable[..., nn.Module]] = {"avg": nn.AvgPool2d, "max": nn.MaxPool2d}


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Inception(nn.Module):
    """1x1, 3x3 and two 3x3 convolutions, and pooling, beside each other, their results stacked.

    Args:
        in_channels: C, channels of the input.
        row: channels within.

    Shapes:
        input (N, C, H, W), output (N, row.out_channels(C), ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, row: _Row) -> None:
        super().__init__()
        self.branches = nn.ModuleDict()
        if row.conv1x1:
            self.branches["conv1x1"] = _conv_norm_relu(in_channels, row.conv1x1, 1)
        self.branches["conv3x3"] = nn.Sequential(
            _conv_norm_relu(in_channels, row.reduce3x3, 1),
            _conv_norm_relu(row.reduce3x3, row.conv3x3, 3, row.stride),
        )
        self.branches["double3x3"] = nn.Sequential(
            _conv_norm_relu(in_channels, row.reduce_double3x3, 1),
            _conv_norm_relu(row.reduce_double3x3, row.double3x3, 3),
            _conv_norm_relu(row.double3x3, row.double3x3, 3, row.stride),
        )
        pooled = nn.Sequential(_POOLS[row.pool](3, stride=row.stride, padding=1))
        if row.pool_proj:
            pooled.append(_conv_norm_relu(in_channels, row.pool_proj, 1))
        self.branches["pool"] = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.branches.values()], dim=1)


class InceptionV2(Network):
    """Inception-V2; see `inception_v2` for the arguments."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)
        stem1, stem2, stem3 = _STEM_CHANNELS
        multiplied = in_channels * _STEM_MULTIPLIER
        self.conv1 = nn.Sequential(
            conv2d(in_channels, multiplied, 7, stride=2, padding=3, groups=in_channels, bias=False),
            *_conv_norm_relu(multiplied, stem1, 1),
        )
        self.maxpool1 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Sequential(*_conv_norm_relu(stem1, stem2, 1), *_conv_norm_relu(stem2, stem3, 3))
        self.maxpool2 = nn.MaxPool2d(3, stride=2, padding=1)
        trunk = ["conv1", "maxpool1", "conv2", "maxpool2"]
        found = {2: Feature("conv1", stem1, 2), 4: Feature("conv2", stem3, 4)}  # by reduction, the last one of each

        channels, reduction = stem3, 8
        for row in _INCEPTION:
            name = f"inception{row.name}"
            self.add_module(name, Inception(channels, row))
            channels, reduction = row.out_channels(channels), reduction * row.stride
            trunk.append(name)
            found[reduction] = Feature(name, channels, reduction)
        self.trunk = tuple(trunk)
        self.feature_info = FeatureInfo(found.values())

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


@register_model
def inception_v2(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.0) -> InceptionV2:
    """Build Inception-V2, or BN-Inception (https://arxiv.org/abs/1502.03167).

    With 1000 classes it has 11,188,288 parameters, and 1.9 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a feature before the classifier, in training.

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode.

    Raises:
        ValueError: if a count is below 1 or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.inception_v2()
        >>> sum(p.numel() for p in model.parameters())
        11188288
        >>> model.eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    return InceptionV2(num_classes, in_channels, dropout)
