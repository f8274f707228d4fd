"""What several families share: checks of arguments, the choice of a convolution, the initialisation of weights."""

from __future__ import annotations

from torch import nn

from cnnext.modules import DepthwiseConv2d, GroupedConv2d, PointwiseConv2d


def check_positive_int(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is an int, ValueError unless it is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    bias: bool = True,
) -> nn.Conv2d:
    """Build the cnnext module for a convolution: depthwise, 1x1, or any other."""
    if groups == in_channels > 1:
        return DepthwiseConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
    if kernel_size == groups == 1:
        return PointwiseConv2d(in_channels, out_channels, 1, stride, padding, bias=bias)
    return GroupedConv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)


def init_weights(model: nn.Module, classifier: nn.Conv2d | None = None) -> None:
    """Initialise convolutions as He et al. (https://arxiv.org/abs/1502.01852), batch norms as the identity.

    With batch norms the variance counts the fan-out, so that gradients keep their scale on the way back; without them
    the fan-in, so that activations keep theirs on the way there. Fans are those of one group. Linear layers, and the
    convolution that is the ``classifier`` if one is, start near zero.
    """
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            channels = module.out_channels if has_norms else module.in_channels
            fan = module.kernel_size[0] * module.kernel_size[1] * channels / module.groups
            nn.init.normal_(module.weight, std=0.01 if module is classifier else (2.0 / fan) ** 0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
