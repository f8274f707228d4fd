"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", 2014, https://arxiv.org/abs/1409.4842.

Module names are those of torchvision, so its state dict loads as it is::

    model = cnnext.models.googlenet(transform_input=True)
    model.load_state_dict(torchvision.models.googlenet(weights="IMAGENET1K_V1").state_dict())

Like torchvision's it has batch norms, which came a year after the paper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from cnnext.models._layers import check_positive_int, conv2d, init_weights
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model


class _Row(NamedTuple):
    """One inception module; channels, named as in the paper's table."""

    name: str
    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_proj: int

    @property
    def out_channels(self) -> int:
        return self.conv1x1 + self.conv3x3 + self.conv5x5 + self.pool_proj


_STEM_CHANNELS = (64, 64, 192)

# Table 1 of the paper. Max pooling of stride 2 comes before 4a and 5a.
_INCEPTION = (
    (_Row("3a", 64, 96, 128, 16, 32, 32), _Row("3b", 128, 128, 192, 32, 96, 64)),
    (
        _Row("4a", 192, 96, 208, 16, 48, 64),
        _Row("4b", 160, 112, 224, 24, 64, 64),
        _Row("4c", 128, 128, 256, 24, 64, 64),
        _Row("4d", 112, 144, 288, 32, 64, 64),
        _Row("4e", 256, 160, 320, 32, 128, 128),
    ),
    (_Row("5a", 256, 160, 320, 32, 128, 128), _Row("5b", 384, 192, 384, 48, 128, 128)),
)
# Section 5 of the paper: by auxiliary classifier, the module it hangs on.
_AUXILIARY = {"aux1": "inception4a", "aux2": "inception4d"}


class ConvNormReLU(nn.Module):
    """Convolution without a bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """1x1, 3x3 and 5x5 convolutions and max pooling beside each other, their results stacked.

    Args:
        in_channels: C, channels of the input.
        row: channels within.
        large_kernel: size of the filter of the third branch.

    Shapes:
        input (N, C, H, W), output (N, row.out_channels, H, W).
    """

    def __init__(self, in_channels: int, row: _Row, large_kernel: int) -> None:
        super().__init__()
        self.branch1 = ConvNormReLU(in_channels, row.conv1x1, 1)
        self.branch2 = nn.Sequential(
            ConvNormReLU(in_channels, row.reduce3x3, 1), ConvNormReLU(row.reduce3x3, row.conv3x3, 3)
        )
        self.branch3 = nn.Sequential(
            ConvNormReLU(in_channels, row.reduce5x5, 1), ConvNormReLU(row.reduce5x5, row.conv5x5, large_kernel)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvNormReLU(in_channels, row.pool_proj, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class AuxiliaryClassifier(nn.Module):
    """A small classifier on a feature map in the middle, which brings gradients there in training.

    Shapes:
        input (N, C, H, W), output (N, num_classes).
    """

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = ConvNormReLU(in_channels, 128, 1)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(self.relu(self.fc1(x))))


class Renormalise(nn.Module):
    """Images normalised by ImageNet's mean and deviation, to images scaled to [-1, 1]: (N, 3, H, W) to the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        deviation = x.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        return (x * deviation + mean - 0.5) / 0.5


class GoogLeNetOutput(NamedTuple):
    """What GoogLeNet with auxiliary classifiers returns in training; each is (N, num_classes)."""

    logits: torch.Tensor
    aux_logits2: torch.Tensor
    aux_logits1: torch.Tensor


class GoogLeNet(Network):
    """GoogLeNet; see `googlenet` for the arguments."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        dropout: float = 0.2,
        aux_logits: bool = False,
        aux_dropout: float = 0.7,
        transform_input: bool = False,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        if transform_input and in_channels != 3:
            raise ValueError(f"transform_input is for colour images, but in_channels is {in_channels}")
        self.input_size = (in_channels, 224, 224)
        stem1, stem2, stem3 = _STEM_CHANNELS
        self.transform = Renormalise() if transform_input else nn.Identity()
        self.conv1 = ConvNormReLU(in_channels, stem1, 7, stride=2)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvNormReLU(stem1, stem2, 1)
        self.conv3 = ConvNormReLU(stem2, stem3, 3)
        trunk = ["transform", "conv1", "maxpool1", "conv2", "conv3"]
        found = [Feature("conv1", stem1, 2), Feature("conv3", stem3, 4)]

        channels, reduction = stem3, 4
        width_of: dict[str, int] = {}
        for i, group in enumerate(_INCEPTION, start=2):
            # The paper pools over 3x3 everywhere; torchvision, as the authors' code, over 2x2 before 5a.
            kernel = 2 if i == 4 and not as_published else 3
            self.add_module(f"maxpool{i}", nn.MaxPool2d(kernel, stride=2, ceil_mode=True))
            trunk.append(f"maxpool{i}")
            reduction *= 2
            for row in group:
                name = f"inception{row.name}"
                self.add_module(name, Inception(channels, row, large_kernel=5 if as_published else 3))
                trunk.append(name)
                width_of[name] = channels = row.out_channels
            found.append(Feature(trunk[-1], channels, reduction))
        self.trunk = tuple(trunk)
        self.feature_info = FeatureInfo(found)

        self.aux_logits = aux_logits
        if aux_logits:
            for name, source in _AUXILIARY.items():
                self.add_module(name, AuxiliaryClassifier(width_of[source], num_classes, aux_dropout))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor | GoogLeNetOutput:  # type: ignore[override]
        """Map images (N, C, H, W) to logits (N, num_classes); in training with those of the auxiliary classifiers."""
        if not (self.training and self.aux_logits):
            return self.forward_head(self.forward_features(x))
        auxiliary = {}
        for name in self.trunk:
            x = self.get_submodule(name)(x)
            for aux, source in _AUXILIARY.items():
                if source == name:
                    auxiliary[aux] = self.get_submodule(aux)(x)
        return GoogLeNetOutput(self.forward_head(x), auxiliary["aux2"], auxiliary["aux1"])


@register_model
def googlenet(
    num_classes: int = 1000,
    in_channels: int = 3,
    dropout: float = 0.2,
    aux_logits: bool = False,
    aux_dropout: float = 0.7,
    transform_input: bool = False,
    as_published: bool = False,
) -> GoogLeNet:
    """Build GoogLeNet with batch norms (https://arxiv.org/abs/1409.4842).

    With 1000 classes it has 6,624,904 parameters (13,004,888 with auxiliary classifiers), and 1.5 billion
    multiply-adds at 224x224.

    Args:
        num_classes: number of outputs of the classifier.
        in_channels: channels of the input images.
        dropout: probability of dropping a feature before the classifier, in training.
        aux_logits: add the two auxiliary classifiers, whose losses the paper weights by 0.3.
        aux_dropout: probability of dropping a unit in them.
        transform_input: take images normalised by ImageNet's mean and deviation, where the weights expect [-1, 1]:
            needed for torchvision's pretrained weights. Channels must be 3.
        as_published: 5x5 filters in the third branch and 3x3 pooling before module 5a, as in the paper. Otherwise 3x3
            and 2x2, as in torchvision.

    Returns:
        A network from images (N, in_channels, H, W) to logits (N, num_classes), in training mode; with ``aux_logits``,
        it returns ``(logits, aux_logits2, aux_logits1)`` in training. State dicts of torchvision's ``googlenet`` with
        the same ``aux_logits`` load into it and give the same logits.

    Raises:
        ValueError: if a count is below 1, a dropout outside [0, 1], or ``transform_input`` is asked for images that
            have not 3 channels.
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.googlenet()
        >>> sum(p.numel() for p in model.parameters())
        6624904
        >>> model.eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    return GoogLeNet(num_classes, in_channels, dropout, aux_logits, aux_dropout, transform_input, as_published)
