"""DenseNet: Huang et al., "Densely Connected Convolutional Networks", 2016, https://arxiv.org/abs/1608.06993.

Module names are those of torchvision, so its state dict loads as it is::

    model.load_state_dict(torchvision.models.densenet121(weights="IMAGENET1K_V1").state_dict())
"""

from __future__ import annotations

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d, PointwiseConv2d

# Table 1 of the paper: layers of the four dense blocks. DenseNet-BC: 1x1 convolutions to 4k channels before the 3x3
# ones to k, and transitions that halve the channels.
_LAYERS = (6, 12, 24, 16)
_GROWTH_RATE, _BOTTLENECK, _COMPRESSION = 32, 4, 0.5
_STEM_CHANNELS = 64


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1x1 convolution, batch norm, ReLU, 3x3 convolution; the result joins the input.

    Args:
        in_channels: C, channels of the input.
        growth_rate: k, channels that the layer adds.

    Shapes:
        input (N, C, H, W), output (N, C + k, H, W).
    """

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        width = _BOTTLENECK * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = PointwiseConv2d(in_channels, width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = GroupedConv2d(width, growth_rate, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.conv1(self.relu1(self.norm1(x)))
        new = self.conv2(self.relu2(self.norm2(new)))
        return torch.cat([x, new], dim=1)


def _transition(in_channels: int, out_channels: int) -> nn.Sequential:
    transition = nn.Sequential()
    transition.add_module("norm", nn.BatchNorm2d(in_channels))
    transition.add_module("relu", nn.ReLU(inplace=True))
    transition.add_module("conv", PointwiseConv2d(in_channels, out_channels, bias=False))
    transition.add_module("pool", nn.AvgPool2d(2, stride=2))
    return transition


class DenseNet(Network):
    """DenseNet; see `densenet121` for the arguments."""

    def __init__(self, layers: tuple[int, ...], num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        channels, reduction = _STEM_CHANNELS, 4
        self.features = nn.Sequential()
        self.features.add_module("conv0", GroupedConv2d(in_channels, channels, 7, stride=2, padding=3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
        found = [Feature("features.relu0", channels, 2)]
        for i, count in enumerate(layers, start=1):
            block = nn.Sequential()
            for j in range(1, count + 1):
                block.add_module(f"denselayer{j}", DenseLayer(channels, _GROWTH_RATE))
                channels += _GROWTH_RATE
            self.features.add_module(f"denseblock{i}", block)
            if i < len(layers):
                found.append(Feature(f"features.denseblock{i}", channels, reduction))
                compressed = int(channels * _COMPRESSION)
                self.features.add_module(f"transition{i}", _transition(channels, compressed))
                channels, reduction = compressed, reduction * 2
        self.features.add_module(f"norm{len(layers) + 1}", nn.BatchNorm2d(channels))
        self.features.add_module(f"relu{len(layers) + 1}", nn.ReLU(inplace=True))
        found.append(Feature(f"features.relu{len(layers) + 1}", channels, reduction))
        self.trunk = tuple(f"features.{name}" for name, _ in self.features.named_children())
        self.feature_info = FeatureInfo(found)

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(x).flatten(1))


@register_model
def densenet121(num_classes: int = 1000, in_channels: int = 3) -> DenseNet:
    """Build DenseNet-121 (https://arxiv.org/abs/1608.06993).

    With 1000 classes it has 7,978,856 parameters, and 2.8 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.

    Returns:
        A network from images (N, in_channels, H, W), at least 29x29, to logits (N, num_classes), in training mode.
        State dicts of torchvision's ``densenet121`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1.
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.densenet121()
        >>> sum(p.numel() for p in model.parameters())
        7978856
        >>> model.eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    return DenseNet(_LAYERS, num_classes, in_channels)
