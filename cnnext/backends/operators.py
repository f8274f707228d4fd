"""Calls cnnext's operators. Shared by the backends whose kernels are registered for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from cnnext import inference_ops, ops
from cnnext.backends.call import KERNEL_DTYPES, ConvCall


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


def dtype_seen(tensor: Tensor) -> torch.dtype:
    """The dtype in which the kernels will see `tensor`: autocast changes it."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.is_floating_point() and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd will want the derivatives of what is computed from these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def run(call: ConvCall, families: Mapping[str, ops.Family] = ops.FAMILIES) -> Tensor:
    """Runs the operator of the call's family; the activation is fused unless a gradient will be needed.

    A fused activation keeps nothing of what went into it, so its gradient would compute the convolution twice.
    """
    family, input, weight, bias, stride, padding, dilation, groups, activation = call
    fused = 0 if activation and needs_gradient(input, weight, bias) else activation
    operator = families[family].forward
    if family == "grouped":
        output = operator(input, weight, bias, stride, padding, dilation, groups, fused)
    else:
        output = operator(input, weight, bias, stride, padding, dilation, fused)
    return output if fused == activation else ops.apply_activation(output, activation)


def run_separable(
    call: ConvCall, pointwise_weight: Tensor, pointwise_bias: Tensor | None, activation: int
) -> Tensor | None:
    """The depthwise convolution of `call`, then a 1x1 convolution and `activation`, in one operator.

    Returns:
        None where a gradient is needed; then the two run one after the other.
    """
    _, input, weight, bias, stride, padding, dilation, _, depthwise_activation = call
    if needs_gradient(input, weight, bias, pointwise_weight, pointwise_bias):
        return None
    geometry = (pair[axis] for pair in (stride, padding, dilation) for axis in (0, -1))
    return inference_ops.SEPARABLE_CONV2D(
        *(input, weight, bias, pointwise_weight, pointwise_bias, None, None, *geometry),
        *(depthwise_activation, activation),
    )
