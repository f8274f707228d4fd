"""Convolution modules that stand in for torch.nn.Conv2d.

Each takes the constructor arguments of nn.Conv2d, initialises its parameters alike, and has the same `state_dict`, so
that a checkpoint of one loads into the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t

from cnnext import functional, ops

__all__ = ["DepthwiseConv2d", "DepthwiseSeparableConv2d", "GroupedConv2d", "PointwiseConv2d"]

_PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def _padded(conv: nn.Conv2d, input: Tensor) -> tuple[Tensor, Any]:
    """The input with any padding that is not zeros done, and the padding that is left for the convolution."""
    if conv.padding_mode == "zeros":
        return input, conv.padding
    return F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution: nn.Conv2d with as many groups as input channels.

    Args:
        in_channels: C.
        out_channels: K, a multiple of C.
        kernel_size: R x S, an int or (height, width).
        stride: as in nn.Conv2d.
        padding: as in nn.Conv2d.
        dilation: as in nn.Conv2d.
        groups: C, which is the default.
        bias: as in nn.Conv2d.
        padding_mode: as in nn.Conv2d.
        device: as in nn.Conv2d.
        dtype: as in nn.Conv2d.

    Shapes: input (N, C, H, W) or (C, H, W); output (N, K, P, Q) or (K, P, Q); weight (K, 1, R, S); bias (K).

    Raises:
        ValueError: `groups` is given and is not C, or what nn.Conv2d raises.

    >>> import torch
    >>> DepthwiseConv2d(8, 8, 3, padding=1)(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if groups is not None and groups != in_channels:
            raise ValueError(
                f"DepthwiseConv2d has as many groups as input channels ({in_channels}), but got groups={groups}; "
                "GroupedConv2d takes any number"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias,
            padding_mode,
            device,
            dtype,
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.depthwise_conv2d(input, weight, bias, self.stride, padding, self.dilation)


class GroupedConv2d(nn.Conv2d):
    """Grouped convolution, dense convolution included: nn.Conv2d on cnnext's kernels.

    Takes what nn.Conv2d takes and raises what it raises.

    Shapes: input (N, C, H, W) or (C, H, W); output (N, K, P, Q) or (K, P, Q); weight (K, C / groups, R, S); bias (K).

    >>> import torch
    >>> GroupedConv2d(8, 16, 3, groups=2)(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 16, 3, 3])
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.grouped_conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution: nn.Conv2d with a filter of one tap and one group.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: 1.
        stride: as in nn.Conv2d.
        padding: as in nn.Conv2d.
        dilation: as in nn.Conv2d.
        groups: 1.
        bias: as in nn.Conv2d.
        padding_mode: as in nn.Conv2d.
        device: as in nn.Conv2d.
        dtype: as in nn.Conv2d.

    Shapes: input (N, C, H, W) or (C, H, W); output (N, K, P, Q) or (K, P, Q); weight (K, C, 1, 1); bias (K).

    Raises:
        ValueError: `kernel_size` or `groups` is not 1, or what nn.Conv2d raises.

    >>> import torch
    >>> PointwiseConv2d(8, 16)(torch.zeros(1, 8, 5, 5)).shape
    torch.Size([1, 16, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t = 1,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: _PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if kernel_size not in (1, (1,), (1, 1), [1], [1, 1]):
            raise ValueError(
                f"PointwiseConv2d has a kernel_size of 1, but got {kernel_size}; GroupedConv2d takes any size"
            )
        if groups != 1:
            raise ValueError(f"PointwiseConv2d has one group, but got groups={groups}; GroupedConv2d takes any number")
        super().__init__(in_channels, out_channels, 1, stride, padding, dilation, 1, bias, padding_mode, device, dtype)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, padding = _padded(self, input)
        return functional.pointwise_conv2d(input, weight, bias, self.stride, padding, self.dilation)


_ACTIVATION_MODULES: dict[str | None, Callable[[], nn.Module]] = {
    None: nn.Identity,
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "mish": nn.Mish,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}


class DepthwiseSeparableConv2d(nn.Sequential):
    """Depthwise convolution, batch norm, activation, 1x1 convolution, batch norm, activation.

    The building block of MobileNet-V1 (Howard et al., arXiv:1704.04861). Stride, padding and dilation are those of the
    depthwise half; the batch norms make biases in the convolutions needless, so they are off unless asked for.

    Args:
        in_channels: C.
        out_channels: K.
        kernel_size: of the depthwise half.
        stride: as in nn.Conv2d.
        padding: as in nn.Conv2d.
        dilation: as in nn.Conv2d.
        bias: whether the two convolutions have one.
        padding_mode: as in nn.Conv2d, of the depthwise half.
        device: as in nn.Conv2d.
        dtype: as in nn.Conv2d.
        activation: one of `cnnext.ops.ACTIVATIONS`, or None.

    Shapes: input (N, C, H, W); output (N, K, P, Q).

    Raises:
        ValueError: unknown activation, or what nn.Conv2d raises.

    >>> import torch
    >>> DepthwiseSeparableConv2d(8, 16, 3, stride=2, padding=1)(torch.zeros(2, 8, 6, 6)).shape
    torch.Size([2, 16, 3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | str = 0,
        dilation: _size_2_t = 1,
        bias: bool = False,
        padding_mode: _PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        activation: str | None = "relu6",
    ) -> None:
        if activation not in _ACTIVATION_MODULES:
            expected = ", ".join(map(repr, ops.ACTIVATIONS))
            raise ValueError(f"unknown activation {activation!r}: expected None or one of {expected}")
        act = _ACTIVATION_MODULES[activation]
        factory = {"device": device, "dtype": dtype}
        super().__init__()
        self.depthwise = DepthwiseConv2d(
            in_channels,
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            bias=bias,
            padding_mode=padding_mode,
            **factory,
        )
        self.depthwise_norm = nn.BatchNorm2d(in_channels, **factory)
        self.depthwise_activation = act()
        self.pointwise = PointwiseConv2d(in_channels, out_channels, bias=bias, **factory)
        self.pointwise_norm = nn.BatchNorm2d(out_channels, **factory)
        self.pointwise_activation = act()
