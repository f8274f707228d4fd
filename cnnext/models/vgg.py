"""VGG: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
https://arxiv.org/abs/1409.1556.

Module names are those of torchvision, so its state dict loads as it is::

    model.load_state_dict(torchvision.models.vgg16(weights="IMAGENET1K_V1").state_dict())
"""

from __future__ import annotations

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d

# Table 1 of the paper, column D: output channels of the 3x3 convolutions; 2x2 max pooling follows each group.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN_UNITS, _POOLED_SIZE = 4096, 7


class VGG(Network):
    """VGG; see `vgg16` for the arguments."""

    def __init__(
        self,
        stages: tuple[tuple[int, ...], ...],
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 224, 224)

        self.features = nn.Sequential()
        found = []
        channels, reduction = in_channels, 1
        for stage in stages:
            for out_channels in stage:
                self.features.extend([GroupedConv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)])
                channels = out_channels
            found.append(Feature(f"features.{len(self.features) - 1}", channels, reduction))
            self.features.append(nn.MaxPool2d(2, stride=2))
            reduction *= 2
        found.append(Feature(f"features.{len(self.features) - 1}", channels, reduction))
        self.trunk = tuple(f"features.{i}" for i in range(len(self.features)))
        self.feature_info = FeatureInfo(found)

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
def vgg16(num_classes: int = 1000, in_channels: int = 3, dropout: float = 0.5) -> VGG:
    """Build VGG-16 (https://arxiv.org/abs/1409.1556).

    With 1000 classes it has 138,357,544 parameters, and 15.5 billion multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a unit after the first two linear layers, in training.

    Returns:
        A network from images (N, in_channels, H, W), at least 32x32, to logits (N, num_classes), in training mode.
        State dicts of torchvision's ``vgg16`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1 or the dropout outside [0, 1].
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> with torch.device("meta"):  # sizes only
        ...     model = cnnext.models.vgg16()
        >>> sum(p.numel() for p in model.parameters())
        138357544
    """
    return VGG(_STAGES, num_classes, in_channels, dropout)
