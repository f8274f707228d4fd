"""SE-ResNet: Hu et al., "Squeeze-and-Excitation Networks", 2017, https://arxiv.org/abs/1709.01507.

Module names are those of timm's ``legacy_seresnet18``, the port of the authors' network, so its state dict loads as it
is::

    model.load_state_dict(timm.create_model("legacy_seresnet18", pretrained=True).state_dict())
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.models.resnet import STAGES, BasicBlock
from cnnext.modules import GroupedConv2d, PointwiseConv2d

_STEM_CHANNELS = 64
_BLOCKS = (2, 2, 2, 2)  # of each stage, as in ResNet-18
_REDUCTION = 16  # the paper's r


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in (0, 1) that two linear layers make of the averages of all channels.

    Args:
        channels: C.
        reduction: C over the number of units between the two layers.

    Shapes:
        input and output (N, C, H, W).
    """

    def __init__(self, channels: int, reduction: int = _REDUCTION) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = PointwiseConv2d(channels, channels // reduction)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = PointwiseConv2d(channels // reduction, channels)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.pool(x)))))


class SEBasicBlock(BasicBlock):
    """ResNet's block of two 3x3 convolutions, with squeeze-and-excitation before the shortcut is added.

    NOTE: the paper has no ReLU between the second batch norm and the squeeze; the network that timm's weights were
    trained with has one.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.se_module = SqueezeExcitation(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.se_module(self.relu(self.bn2(self.conv2(x))))
        return self.relu(x + shortcut)


class SEResNet(Network):
    """SE-ResNet; see `se_resnet18` for the arguments."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        channels, reduction = _STEM_CHANNELS, 4
        self.layer0 = nn.Sequential(
            OrderedDict(
                conv1=GroupedConv2d(in_channels, channels, 7, stride=2, padding=3, bias=False),
                bn1=nn.BatchNorm2d(channels),
                relu1=nn.ReLU(inplace=True),
            )
        )
        self.pool0 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        trunk, found = ["layer0", "pool0"], [Feature("layer0", channels, 2)]
        for i, ((width, stride), count) in enumerate(zip(STAGES, blocks, strict=True), start=1):
            stage = nn.Sequential()
            for j in range(count):
                stage.append(SEBasicBlock(channels, width, stride if j == 0 else 1))
                channels = width
            reduction *= stride
            self.add_module(f"layer{i}", stage)
            trunk.append(f"layer{i}")
            found.append(Feature(f"layer{i}", channels, reduction))
        self.trunk = tuple(trunk)
        self.feature_info = FeatureInfo(found)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.last_linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_linear(self.avgpool(x).flatten(1))


@register_model
def se_resnet18(num_classes: int = 1000, in_channels: int = 3) -> SEResNet:
    """Build SE-ResNet-18 (https://arxiv.org/abs/1709.01507).

    With 1000 classes it has 11,778,592 parameters, and 1.8 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode. State dicts of
        timm's ``legacy_seresnet18`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1.
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.se_resnet18()
        >>> sum(p.numel() for p in model.parameters())
        11778592
        >>> model.eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    return SEResNet(_BLOCKS, num_classes, in_channels)
