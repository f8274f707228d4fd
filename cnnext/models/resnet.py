"""ResNet: He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385.

Module names are those of torchvision, so its state dicts load as they are::

    model.load_state_dict(torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict())
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d, PointwiseConv2d

_STEM_CHANNELS = 64
# Table 1 of the paper, conv2_x to conv5_x: channels of the 3x3 convolutions, and stride of the first block.
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    """Build the paper's option B: a 1x1 convolution where the shapes differ, None for the identity elsewhere."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        PointwiseConv2d(in_channels, out_channels, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them.

    Args:
        in_channels: C, channels of the input.
        channels: K, channels of both convolutions and of the output.
        stride: stride of the first convolution and of the shortcut.

    Shapes:
        input (N, C, H, W), output (N, K, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = GroupedConv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = GroupedConv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """A 1x1 convolution to fewer channels, a 3x3 one, and a 1x1 one to 4 times as many, with a shortcut around them.

    The stride is that of the 3x3 convolution, as in torchvision; the paper has it in the first 1x1 one.

    Args:
        in_channels: C, channels of the input.
        channels: channels of the first two convolutions.
        stride: stride of the 3x3 convolution and of the shortcut.

    Shapes:
        input (N, C, H, W), output (N, 4 * channels, ceil(H / stride), ceil(W / stride)).
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = PointwiseConv2d(in_channels, channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = GroupedConv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = PointwiseConv2d(channels, out_channels, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + shortcut)


class _Column(NamedTuple):
    """One column of table 1: the kind of block, and how many there are in each stage."""

    block: type[BasicBlock] | type[Bottleneck]
    blocks: tuple[int, int, int, int]


_COLUMNS = {
    "resnet18": _Column(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _Column(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _Column(Bottleneck, (3, 4, 6, 3)),
}


class ResNet(Network):
    """A residual network; see `resnet18` for the arguments.

    Attributes:
        input_size: (channels, height, width) the network is meant for. Other sizes work too.
        layer1, layer2, layer3, layer4: the stages, ending at the feature maps of stride 4, 8, 16 and 32.
    """

    def __init__(self, column: _Column, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        channels, reduction = _STEM_CHANNELS, 4
        self.conv1 = GroupedConv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        trunk = ["conv1", "bn1", "relu", "maxpool"]
        found = [Feature("relu", channels, 2)]

        for i, ((width, stride), count) in enumerate(zip(STAGES, column.blocks, strict=True), start=1):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(column.block(channels, width, stride if j == 0 else 1))
                channels = width * column.block.expansion
            reduction *= stride
            self.add_module(f"layer{i}", stage)
            trunk.append(f"layer{i}")
            found.append(Feature(f"layer{i}", channels, reduction))
        self.trunk = tuple(trunk)
        self.feature_info = FeatureInfo(found)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.avgpool(x).flatten(1))


@register_model
def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Build ResNet-18 (https://arxiv.org/abs/1512.03385).

    With 1000 classes it has 11,689,512 parameters, and 1.8 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode. State dicts of
        torchvision's ``resnet18`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1.
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.resnet18()
        >>> sum(p.numel() for p in model.parameters())
        11689512
        >>> model.eval()(torch.zeros(1, *model.input_size)).shape
        torch.Size([1, 1000])
    """
    return ResNet(_COLUMNS["resnet18"], num_classes, in_channels)


@register_model
def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Build ResNet-34: as `resnet18`, with 21,797,672 parameters and 3.7 billion multiply-adds at 224x224."""
    return ResNet(_COLUMNS["resnet34"], num_classes, in_channels)


@register_model
def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Build ResNet-50: as `resnet18`, with 25,557,032 parameters and 4.1 billion multiply-adds at 224x224."""
    return ResNet(_COLUMNS["resnet50"], num_classes, in_channels)
