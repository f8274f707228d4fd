"""LeNet-5: LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, section II.B.

As in the paper: pooling has a coefficient and a bias for every channel, the maps of C3 see some of the maps of S2 only,
and activations are scaled tanhs. The output layer alone differs: the paper measures distances to bitmaps drawn by hand,
which needs a loss of its own; here it is a linear layer, so that the network gives logits as the others do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from cnnext.models._layers import check_positive_int
from cnnext.models.features import Feature, FeatureInfo, Network
from cnnext.models.registry import register_model
from cnnext.modules import GroupedConv2d

_C1_MAPS, _C5_MAPS, _F6_UNITS = 6, 120, 84

# Table I of the paper: for each of the 16 maps of C3, the maps of S2 that it sees.
_C3_INPUTS = (
    *[(0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1)],
    *[(0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2)],
    *[(0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)],
    (0, 1, 2, 3, 4, 5),
)


class ScaledTanh(nn.Module):
    """The paper's squashing function, 1.7159 tanh(2/3 x), which maps -1 and 1 to themselves."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """Sums 2x2 pixels, times a coefficient, plus a bias, both learnt for every channel.

    Shapes:
        input (N, C, H, W), output (N, C, H // 2, W // 2), weight and bias (C).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))  # the sum becomes the average
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 2, divisor_override=1) * self.weight[:, None, None] + self.bias[:, None, None]


class PartialConv2d(nn.Module):
    """A convolution whose every output channel sees its own choice of input channels.

    Outputs that see equally many inputs are a grouped convolution, one group for each, over the chosen inputs.

    Args:
        inputs: for each output channel the input channels that it sees; those of equal length stand together.
        kernel_size: R = S.

    Shapes:
        input (N, C, H, W), output (N, len(inputs), P, Q).
    """

    def __init__(self, inputs: tuple[tuple[int, ...], ...], kernel_size: int) -> None:
        super().__init__()
        self._chosen: list[list[int]] = []
        self.groups = nn.ModuleList()
        for width in sorted({len(channels) for channels in inputs}):
            same_width = [channels for channels in inputs if len(channels) == width]
            self._chosen.append([channel for channels in same_width for channel in channels])
            self.groups.append(
                GroupedConv2d(width * len(same_width), len(same_width), kernel_size, groups=len(same_width))
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [conv(x[:, chosen]) for conv, chosen in zip(self.groups, self._chosen, strict=True)]
        return torch.cat(parts, dim=1)


class LeNet5(Network):
    """LeNet-5; see `lenet` for the arguments."""

    def __init__(self, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes)
        check_positive_int("in_channels", in_channels)
        self.input_size = (in_channels, 32, 32)
        c3_maps = len(_C3_INPUTS)
        self.c1 = nn.Sequential(GroupedConv2d(in_channels, _C1_MAPS, 5), ScaledTanh())
        self.s2 = nn.Sequential(Subsampling(_C1_MAPS), ScaledTanh())
        self.c3 = nn.Sequential(PartialConv2d(_C3_INPUTS, 5), ScaledTanh())
        self.s4 = nn.Sequential(Subsampling(c3_maps), ScaledTanh())
        self.c5 = nn.Sequential(GroupedConv2d(c3_maps, _C5_MAPS, 5), ScaledTanh())
        self.pool = nn.AdaptiveAvgPool2d(1)  # does nothing at 32x32, where C5 is one pixel
        self.f6 = nn.Sequential(nn.Linear(_C5_MAPS, _F6_UNITS), ScaledTanh())
        self.output = nn.Linear(_F6_UNITS, num_classes)
        self.trunk = ("c1", "s2", "c3", "s4", "c5")
        self.feature_info = FeatureInfo(
            [Feature("c1", _C1_MAPS, 1), Feature("c3", c3_maps, 2), Feature("c5", _C5_MAPS, 4)]
        )

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.f6(self.pool(x).flatten(1)))


@register_model
def lenet(num_classes: int = 10, in_channels: int = 1) -> LeNet5:
    """Build LeNet-5 (LeCun et al., 1998, http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf).

    It has the paper's 60,000 parameters up to F6, and 850 in the output layer.

    Args:
        num_classes: number of outputs.
        in_channels: channels of the input images.

    Returns:
        A network from images (N, in_channels, 32, 32), or larger, to logits (N, num_classes), in training mode.

    Raises:
        ValueError: if a count is below 1.
        TypeError: if a count is not an int.

    Example:
        >>> import torch, cnnext
        >>> model = cnnext.models.lenet()
        >>> sum(p.numel() for p in model.parameters())
        60850
        >>> model(torch.zeros(1, *model.input_size)).shape
        torch.Size([1, 10])
    """
    return LeNet5(num_classes, in_channels)
