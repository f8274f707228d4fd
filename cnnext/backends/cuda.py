"""cnnext's CUDA kernels."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cnnext import _extension, ops
from cnnext.backends import operators
from cnnext.backends.call import ConvCall

name = "cuda"
families = ops.FAMILIES
run = operators.run
run_separable = operators.run_separable

#: DType of csrc/conv_params.h.
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


def unavailable() -> str | None:
    if _extension.cuda.reason is not None:
        return _extension.cuda.reason
    return None if torch.cuda.is_available() else "no CUDA device is available"


def refuses(call: ConvCall) -> str | None:
    if not call.input.is_cuda:
        return f"the input is on {call.input.device}"
    return operators.refuses(call)


def allows_tf32() -> bool:
    """Whether PyTorch lets a float32 convolution round its factors to TF32. Called from the kernels' binding."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # convolutions and recurrent layers were set apart, through the attribute below
        return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


@functools.cache
def _explain_separable() -> Callable[..., bytes]:
    function = _extension.cuda.library().cnnext_cuda_explain_separable
    function.restype = ctypes.c_char_p
    return function


def explain_separable(call: ConvCall, pointwise_weight: Tensor) -> str:
    """How the block of `call` and a 1x1 convolution runs, in one kernel or two, and why: the planner's own words."""
    text = _explain_separable()(_separable_values(call, pointwise_weight, call.input.device.index))
    return text.decode()


def _separable_values(call: ConvCall, pointwise_weight: Tensor, device: int) -> ctypes.Array[ctypes.c_int64]:
    """The block as `cnnext_cuda_explain_separable` (csrc/bindings/cuda.cpp) takes it."""
    _, input, weight, _, stride, padding, dilation, _, _ = call
    channels_last = ops.channels_last_result(input, weight) or ops.channels_last_result(input, pointwise_weight)
    strides: Sequence[int] = input.stride()
    if strides[1 if channels_last else 3] != 1:  # the binding makes a dense copy
        form = ops.memory_format(channels_last)
        strides = torch.empty(input.shape, device="meta", memory_format=form).stride()
    addresses = (tensor.data_ptr() for tensor in (input, weight, pointwise_weight))
    values = (
        *(device, *input.shape, weight.shape[0], *weight.shape[2:]),
        *(pair[axis] for pair in (stride, padding, dilation) for axis in (0, -1)),
        *(pointwise_weight.shape[0], *strides, channels_last, _DTYPES[operators.dtype_seen(input)]),
        *(math.gcd(16, *addresses), allows_tf32()),
    )
    return (ctypes.c_int64 * len(values))(*values)
