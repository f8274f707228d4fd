"""ResNet: He et al., "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385.

Module names are those of torchvision, so its state dicts load as they are::

    model.load_state_dict(torchvision.models.resnet18(weights="IMAGENET1K_V1").state_dict())
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d, PointwiseConv2d


class _Stage(NamedTuple):
    """One column entry of the paper's table 1: blocks in a row, of which the first has the stride."""

    channels: int
    blocks: int
    stride: int


_STEM_CHANNELS = 64

# Table 1 of the paper: conv2_x to conv5_x.
_STAGES = {
    "resnet18": (_Stage(64, 2, 1), _Stage(128, 2, 2), _Stage(256, 2, 2), _Stage(512, 2, 2)),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them.

    Args:
        in_channels: C, channels of the input.
        out_channels: K, channels of the output.
        stride: stride of the first convolution and of the shortcut.

    Shapes:
        input (N, C, H, W), output (N, K, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = GroupedConv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = GroupedConv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            # The paper's option B: a 1x1 convolution where the shapes differ, the identity elsewhere.
            self.downsample = nn.Sequential(
                PointwiseConv2d(in_channels, out_channels, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + shortcut)


class ResNet(nn.Module):
    """A residual network of `BasicBlock`; see `resnet18` for the arguments.

    Attributes:
        input_size: (channels, height, width) the network is meant for. Other sizes work too.
        layer1, layer2, layer3, layer4: the stages, ending at the feature maps of stride 4, 8, 16 and 32.
    """

    def __init__(self, stages: tuple[_Stage, ...], num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        self.conv1 = GroupedConv2d(in_channels, _STEM_CHANNELS, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM_CHANNELS)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)

        channels = _STEM_CHANNELS
        self._stage_names = [f"layer{i}" for i in range(1, len(stages) + 1)]
        for name, stage in zip(self._stage_names, stages, strict=True):
            blocks = nn.Sequential(BasicBlock(channels, stage.channels, stage.stride))
            for _ in range(stage.blocks - 1):
                blocks.append(BasicBlock(stage.channels, stage.channels, 1))
            self.add_module(name, blocks)
            channels = stage.channels

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self._stage_names:
            x = self.get_submodule(name)(x)
        x = self.avgpool(x).flatten(1)
        return self.fc(x)


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
    return ResNet(_STAGES["resnet18"], num_classes, in_channels)
