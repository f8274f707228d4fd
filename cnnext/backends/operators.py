"""Calls cnnext's operators. Shared by the backends whose kernels are registered for them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cnnext import ops
from cnnext.backends.call import KERNEL_DTYPES, ConvCall

_DEPTHWISE = ops.FAMILIES["depthwise"].forward
_GROUPED = ops.FAMILIES["grouped"].forward
_POINTWISE = ops.FAMILIES["pointwise"].forward


def refuses(call: ConvCall) -> str | None:
    """What no kernel behind the operators can take."""
    input = call.input
    if input.dtype not in KERNEL_DTYPES:
        return f"dtype {input.dtype} is not one of float32, float64, float16, bfloat16"
    if input.layout is not torch.strided:
        return f"layout {input.layout} is not torch.strided"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if input.numel() == 0:
        return "the input is empty"
    return None


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def run(call: ConvCall) -> Tensor:
    """Runs the operator; the activation is fused unless a gradient will be needed.

    A fused activation keeps nothing of what went into it, so its gradient would compute the convolution twice.
    """
    family, input, weight, bias, stride, padding, dilation, groups, activation = call
    fused = 0 if activation and _needs_gradient(input, weight, bias) else activation
    if family == "depthwise":
        output = _DEPTHWISE(input, weight, bias, stride, padding, dilation, fused)
    elif family == "pointwise":
        output = _POINTWISE(input, weight, bias, stride, padding, dilation, fused)
    else:
        output = _GROUPED(input, weight, bias, stride, padding, dilation, groups, fused)
    return output if fused == activation else ops.apply_activation(output, activation)
