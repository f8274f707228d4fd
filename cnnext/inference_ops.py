"""The operators of inference: convolutions with everything fused behind them that `cnnext.fuse` puts there.

    cnnext::fused_conv2d(input, weight, bias, residual, packed_weight, *geometry, groups, activation, channels_last)
    cnnext::separable_conv2d(input, depthwise_weight, depthwise_bias, weight, bias, residual, packed_weight,
                             *geometry, depthwise_activation, activation)

The first computes activation(conv(input, weight) + bias + residual), the second a depthwise convolution, its bias and
activation, and then the same with a 1x1 convolution. `geometry` is stride, padding and dilation, each as height and
width: six numbers, because unpacking three lists takes longer than all the rest of a small call. That of the second
operator is of its depthwise half.

Shapes: input (N, C, H, W); weight (K, C / groups, R, S), or (K, M, 1, 1) behind a depthwise_weight (M, 1, R, S);
biases (K) and (M); residual and output (N, K, P, Q). `activation` is an index into `cnnext.ops.ACTIVATIONS`.
With `channels_last` the output is channels_last whatever the input is.
`packed_weight` is what `pack_filter` makes of the weight, or None: CPU kernels read it in place of the weight.

They have no gradient, and no autograd kernel to say so, whose way through Python would double the cost of a small call:
`cnnext.fusion.modules` takes the operators of `cnnext.ops` where a gradient is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnext import ops

__all__ = ["FUSED_CONV2D", "SEPARABLE_CONV2D", "pack_filter"]

#: Output channels of a panel of a packed filter: kPackedColumns of csrc/cpu/kernels.h.
_PACKED_COLUMNS = 64


def pack_filter(weight: Tensor, groups: int = 1) -> Tensor:
    """A filter in the order in which the CPU kernels for matrix products read it (csrc/cpu/packed_filter.h).

    Args:
        weight: (K, C / groups, R, S), float32, float64, float16 or bfloat16.
        groups: a divisor of K.

    Returns:
        One dimension, float64 for a float64 weight and float32 for others: (groups, panels of 64 output channels,
        R * S, C / groups, 64), with zeros beyond the last output channel.

    >>> pack_filter(torch.ones(3, 5, 1, 1)).shape
    torch.Size([320])
    """
    accumulators = weight.detach().to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    outputs = weight.shape[0] // groups
    panels = -(-outputs // _PACKED_COLUMNS)
    rows = accumulators.reshape(groups, outputs, weight.shape[1], weight.shape[2] * weight.shape[3])
    rows = F.pad(rows, (0, 0, 0, 0, 0, panels * _PACKED_COLUMNS - outputs))
    return rows.unflatten(1, (panels, _PACKED_COLUMNS)).permute(0, 1, 4, 3, 2).reshape(-1)


def _lists(numbers: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Stride, padding and dilation as the operators of `cnnext.ops` take them."""
    return numbers[0:2], numbers[2:4], numbers[4:6]


_POINTWISE_GEOMETRY = (1, 1, 0, 0, 1, 1)


def _fused_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, packed: Tensor | None, *numbers: int
) -> Tensor:
    *geometry, groups, activation, channels_last = numbers
    fused = activation if residual is None else 0
    output = ops.FAMILIES["grouped"].forward(input, weight, bias, *_lists(geometry), groups, fused)
    if channels_last:
        output = output.contiguous(memory_format=torch.channels_last)
    return output if residual is None else ops.apply_activation(output + residual, activation)


def _separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    packed: Tensor | None,
    *numbers: int,
) -> Tensor:
    *geometry, first, second = numbers
    middle = ops.FAMILIES["depthwise"].forward(input, depthwise_weight, depthwise_bias, *_lists(geometry), first)
    return _fused_conv2d(middle, weight, bias, residual, packed, *_POINTWISE_GEOMETRY, 1, second, False)


def _fake_fused_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, packed: Tensor | None, *numbers: int
) -> Tensor:
    *geometry, groups, activation, channels_last = numbers
    output = ops.fake_forward(input, weight, bias, ops.Geometry(*_lists(geometry), groups), activation)
    return torch.empty_like(output, memory_format=torch.channels_last) if channels_last else output


def _fake_separable_conv2d(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    packed: Tensor | None,
    *numbers: int,
) -> Tensor:
    *geometry, first, second = numbers
    depthwise = ops.Geometry(*_lists(geometry), input.shape[1])
    middle = ops.fake_forward(input, depthwise_weight, depthwise_bias, depthwise, first)
    return ops.fake_forward(middle, weight, bias, ops.Geometry(*_lists(_POINTWISE_GEOMETRY), 1), second)


_LIBRARY = torch.library.Library("cnnext", "FRAGMENT")
_GEOMETRY = ", ".join(f"SymInt {name}_{axis}" for name in ("stride", "padding", "dilation") for axis in ("h", "w"))


def _declare(name: str, arguments: str, kernel: Any, fake: Any) -> Any:
    _LIBRARY.define(f"{name}({arguments}) -> Tensor", tags=ops.TAGS)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"cnnext::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.cnnext, name).default
    ops.register_autocast(_LIBRARY, operator, "cpu", torch._C.DispatchKey.AutocastCPU)
    ops.register_autocast(_LIBRARY, operator, "cuda", torch._C.DispatchKey.AutocastCUDA)
    return operator


FUSED_CONV2D = _declare(
    "fused_conv2d",
    "Tensor input, Tensor weight, Tensor? bias, Tensor? residual, Tensor? packed_weight, "
    f"{_GEOMETRY}, SymInt groups, int activation, bool channels_last",
    _fused_conv2d,
    _fake_fused_conv2d,
)
SEPARABLE_CONV2D = _declare(
    "separable_conv2d",
    "Tensor input, Tensor depthwise_weight, Tensor? depthwise_bias, Tensor weight, Tensor? bias, Tensor? residual, "
    f"Tensor? packed_weight, {_GEOMETRY}, int depthwise_activation, int activation",
    _separable_conv2d,
    _fake_separable_conv2d,
)
