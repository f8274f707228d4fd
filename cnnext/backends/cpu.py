"""cnnext's C++ kernels for the CPU."""

from __future__ import annotations

from torch import Tensor

from cnnext import _extension, inference_ops, ops
from cnnext.backends import operators
from cnnext.backends.call import ConvCall

name = "cpu"
families = ops.FAMILIES
run = operators.run


def unavailable() -> str | None:
    return _extension.cpu.reason


def refuses(call: ConvCall) -> str | None:
    if not call.input.is_cpu:
        return f"the input is on {call.input.device}"
    return operators.refuses(call)


def run_separable(
    call: ConvCall, pointwise_weight: Tensor, pointwise_bias: Tensor | None, activation: int
) -> Tensor | None:
    """The depthwise convolution of `call`, then a 1x1 convolution and `activation`, in one operator.

    Returns:
        None where a gradient is needed; then the two run one after the other.
    """
    _, input, weight, bias, stride, padding, dilation, _, depthwise_activation = call
    if operators.needs_gradient(input, weight, bias, pointwise_weight, pointwise_bias):
        return None
    geometry = (pair[axis] for pair in (stride, padding, dilation) for axis in (0, -1))
    return inference_ops.SEPARABLE_CONV2D(
        *(input, weight, bias, pointwise_weight, pointwise_bias, None, None, *geometry),
        *(depthwise_activation, activation),
    )
