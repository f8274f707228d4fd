"""MobileNet-V1: Howard et al., "MobileNets", 2017, https://arxiv.org/abs/1704.04861.

Module names are those of timm's ``mobilenetv1_100``, so its state dict loads as it is::

    model.load_state_dict(timm.create_model("mobilenetv1_100", pretrained=True).state_dict())

Like timm and the authors' code, and unlike the paper's text, the activation is ReLU6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import DepthwiseConv2d, GroupedConv2d, PointwiseConv2d


class _Pair(NamedTuple):
    """One row of the table: a depthwise 3x3 with this stride, then a 1x1 to this many channels."""

    stride: int
    out_channels: int


_STEM_CHANNELS = 32

# Table 1 of the paper. Its last depthwise row prints stride 2 while the sizes beside it stay 7x7: stride 1 is meant.
_BODY = (
    _Pair(1, 64),
    _Pair(2, 128),
    _Pair(1, 128),
    _Pair(2, 256),
    _Pair(1, 256),
    _Pair(2, 512),
    *[_Pair(1, 512)] * 5,
    _Pair(2, 1024),
    _Pair(1, 1024),
)


def _scale_channels(channels: int, width_multiplier: float) -> int:
    """Thin ``channels`` to the nearest multiple of 8 that loses at most a tenth of them."""
    scaled = channels * width_multiplier
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * scaled else rounded + 8


class DepthwiseSeparableBlock(nn.Module):
    """Depthwise 3x3 -> batch norm -> ReLU6 -> 1x1 -> batch norm -> ReLU6.

    Args:
        in_channels: C, channels of the input.
        out_channels: K, channels of the output.
        stride: stride of the depthwise convolution.

    Shapes:
        input (N, C, H, W), output (N, K, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = DepthwiseConv2d(in_channels, in_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU6(inplace=True)
        self.conv_pw = PointwiseConv2d(in_channels, out_channels, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU6(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act1(self.bn1(self.conv_dw(x)))
        return self.act2(self.bn2(self.conv_pw(x)))


class MobileNetV1(Network):
    """MobileNet-V1; see `mobilenet_v1` for the arguments.

    Attributes:
        input_size: (channels, height, width) the network is meant for. Other sizes work too.
        blocks: five stages, each ending at the feature map of stride 2, 4, 8, 16 and 32.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width_multiplier: float = 1.0,
        resolution: int = 224,
        dropout: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("resolution", resolution)
        check_positive_int("in_channels", in_channels)
        if not width_multiplier > 0:
            raise ValueError(f"width_multiplier must be positive, got {width_multiplier}")
        self.input_size = (in_channels, resolution, resolution)

        channels = _scale_channels(_STEM_CHANNELS, width_multiplier)
        self.conv_stem = GroupedConv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU6(inplace=True)

        stages: list[nn.Sequential] = []
        reduction = 2
        found: dict[int, Feature] = {}  # by reduction, the last one of each
        for stride, table_channels in _BODY:
            if stride == 2 or not stages:
                stages.append(nn.Sequential())
            out_channels = _scale_channels(table_channels, width_multiplier)
            stages[-1].append(DepthwiseSeparableBlock(channels, out_channels, stride))
            channels, reduction = out_channels, reduction * stride
            found[reduction] = Feature(f"blocks.{len(stages) - 1}", channels, reduction)
        self.blocks = nn.Sequential(*stages)
        self.trunk = ("conv_stem", "bn1", "act1", *[f"blocks.{i}" for i in range(len(stages))])
        self.feature_info = FeatureInfo(found.values())

        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(self.global_pool(x).flatten(1)))


@register_model
def mobilenet_v1(
    num_classes: int = 1000,
    width_multiplier: float = 1.0,
    resolution: int = 224,
    dropout: float = 0.0,
    in_channels: int = 3,
) -> MobileNetV1:
    """Build MobileNet-V1 (https://arxiv.org/abs/1704.04861).

    At width 1 and 1000 classes it has 4,231,976 parameters, and 569 million multiply-adds at resolution 224.

    Args:
        num_classes: number of outputs of the classifier.
        width_multiplier: the paper's alpha, a factor on every channel count; the paper has 1, 0.75, 0.5 and 0.25.
            Counts are rounded to multiples of 8, as in the authors' code and in timm.
        resolution: the paper's rho, as side of the square input; the paper has 224, 192, 160 and 128. It is only
            recorded, in ``model.input_size``: global pooling makes the network work at any size.
        dropout: probability of dropping a feature before the classifier, in training.
        in_channels: channels of the input images.

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode. State dicts of
        timm's ``mobilenetv1_100`` (and ``mobilenetv1_125`` for ``width_multiplier=1.25``) load into it and give the
        same logits.

    Raises:
        ValueError: if a count is below 1, the width multiplier not positive or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.mobilenet_v1()
        >>> sum(p.numel() for p in model.parameters())
        4231976
        >>> small = cnnext.models.mobilenet_v1(num_classes=10, width_multiplier=0.25, resolution=128)
        >>> small.input_size
        (3, 128, 128)
        >>> small.eval()(torch.zeros(1, *small.input_size)).shape
        torch.Size([1, 10])
    """
    return MobileNetV1(num_classes, width_multiplier, resolution, dropout, in_channels)
