"""SqueezeNet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016,
https://arxiv.org/abs/1602.07360.

Module names are those of torchvision, so its state dict loads as it is::

    model.load_state_dict(torchvision.models.squeezenet1_0(weights="IMAGENET1K_V1").state_dict())
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d, PointwiseConv2d


class _Fire(NamedTuple):
    """The paper's s1x1, e1x1 and e3x3."""

    squeeze: int
    expand1x1: int
    expand3x3: int


_STEM_CHANNELS, _STEM_KERNEL = 96, 7

# Table 1 of the paper: fire2 to fire9, in groups with 3x3 max pooling of stride 2 between them.
_STAGES = (
    (_Fire(16, 64, 64), _Fire(16, 64, 64), _Fire(32, 128, 128)),
    (_Fire(32, 128, 128), _Fire(48, 192, 192), _Fire(48, 192, 192), _Fire(64, 256, 256)),
    (_Fire(64, 256, 256),),
)


class Fire(nn.Module):
    """A 1x1 convolution to few channels, then 1x1 and 3x3 convolutions beside each other.

    Args:
        in_channels: C, channels of the input.
        squeeze: channels after the first 1x1 convolution.
        expand1x1: channels out of the second 1x1 convolution.
        expand3x3: channels out of the 3x3 convolution.

    Shapes:
        input (N, C, H, W), output (N, expand1x1 + expand3x3, H, W).
    """

    def __init__(self, in_channels: int, squeeze: int, expand1x1: int, expand3x3: int) -> None:
        super().__init__()
        self.squeeze = PointwiseConv2d(in_channels, squeeze)
        self.expand1x1 = PointwiseConv2d(squeeze, expand1x1)
        self.expand3x3 = GroupedConv2d(squeeze, expand3x3, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.squeeze(x))
        return self.activation(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNet(Network):
    """SqueezeNet; see `squeezenet1_0` for the arguments."""

    def __init__(self, num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        channels, reduction = _STEM_CHANNELS, 2
        self.features = nn.Sequential(
            GroupedConv2d(in_channels, channels, _STEM_KERNEL, stride=2), nn.ReLU(inplace=True)
        )
        found = [Feature("features.1", channels, reduction)]
        for stage in _STAGES:
            self.features.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            reduction *= 2
            for fire in stage:
                self.features.append(Fire(channels, *fire))
                channels = fire.expand1x1 + fire.expand3x3
            found.append(Feature(f"features.{len(self.features) - 1}", channels, reduction))
        self.trunk = tuple(f"features.{i}" for i in range(len(self.features)))
        self.feature_info = FeatureInfo(found)

        to_classes = PointwiseConv2d(channels, num_classes)
        self.classifier = nn.Sequential(nn.Dropout(dropout), to_classes, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
        init_weights(self, to_classes)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(x).flatten(1)


@register_model
def squeezenet1_0(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> SqueezeNet:
    """Build SqueezeNet 1.0 (https://arxiv.org/abs/1602.07360).

    With 1000 classes it has 1,248,424 parameters, and 819 million multiply-adds at 224x224. As published, a ReLU comes
    before the average over the maps of the classes, so logits are not negative.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a value before the last convolution, in training.

    Returns:
        A network from images (N, in_channels, H, W), at least 21x21, to logits (N, num_classes), in training mode.
        State dicts of torchvision's ``squeezenet1_0`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1 or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.squeezenet1_0()
        >>> sum(p.numel() for p in model.parameters())
        1248424
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    return SqueezeNet(num_classes, in_channels, dropout)
