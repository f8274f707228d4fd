"""cnnext's Triton kernels: for GPUs where there is no CUDA build, or where it refuses."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch
from torch import Tensor

from cnnext.backends import operators
from cnnext.backends.call import ConvCall
from cnnext.triton_kernels import operators as triton_operators

name = "triton"
families = triton_operators.FAMILIES

#: Kernels run on CPU tensors in Triton's interpreter, if the variable was set before cnnext was imported. For tests: it
#: is thousands of times slower than a CPU kernel, so only a call that asks for "triton" by name gets it.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
_LEAST_CAPABILITY = (8, 0)

# The fused separable block makes the middle again for every tile of 128 outputs. Predicted, not measured: with two
# tiles it still wins, by the traffic of the middle that it saves.
_MOST_FUSED_OUTPUTS = 256


def _why_unavailable() -> str | None:
    try:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if not INTERPRETED and not torch.cuda.is_available():
            return "no CUDA device is available"
        # Only now is the import worth its time.
        importlib.import_module("triton")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton cannot be imported: {error}"
    return None


# Found out once, at import. NOTE: torch.compile traces what is called below, which an import would end.
_REASON = _why_unavailable()

# By the index of a device, why it cannot run the kernels. Asking for the first time starts CUDA, so not at import.
_device_reasons: dict[int, str | None] = {}


def unavailable() -> str | None:
    return _REASON


def _refuses_device(index: int) -> str | None:
    if index not in _device_reasons:
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        reason = f"compute capability {capability[0]}.{capability[1]} of cuda:{index} is below 8.0"
        _device_reasons[index] = None if capability >= _LEAST_CAPABILITY else reason
    return _device_reasons[index]


def refuses(call: ConvCall) -> str | None:
    input = call.input
    if input.is_cuda:
        reason = _refuses_device(input.device.index)
        if reason is not None:
            return reason
    elif not (INTERPRETED and input.is_cpu):
        return f"the input is on {input.device}"
    if input.dtype not in _DTYPES:
        return f"dtype {input.dtype} is not one of float32, float16, bfloat16"
    return operators.refuses(call)


def run(call: ConvCall) -> Tensor:
    """Runs the operator of `cnnext_triton`; see `operators.run`."""
    return operators.run(call, triton_operators.FAMILIES)


def _fuses(pointwise_weight: Tensor) -> bool:
    return pointwise_weight.shape[0] <= _MOST_FUSED_OUTPUTS


def explain_separable(call: ConvCall, pointwise_weight: Tensor) -> str:
    """How the block of `call` and a 1x1 convolution runs, and why."""
    outputs = pointwise_weight.shape[0]
    if _fuses(pointwise_weight):
        return f"one kernel: of {_MOST_FUSED_OUTPUTS} outputs at most, {outputs}"
    return f"two kernels: {outputs} outputs, for more than {_MOST_FUSED_OUTPUTS} the middle is made too often"


def run_separable(
    call: ConvCall, pointwise_weight: Tensor, pointwise_bias: Tensor | None, activation: int
) -> Tensor | None:
    """The depthwise convolution of `call`, then a 1x1 convolution and `activation`, in one kernel.

    Returns:
        None if that is not possible or not worthwhile; then the two run one after the other.
    """
    _, input, weight, bias, stride, padding, dilation, _, depthwise_activation = call
    operands = (weight, bias, pointwise_weight, pointwise_bias)
    if operators.needs_gradient(input, *operands):
        return None
    if any(t is not None and (t.dtype != input.dtype or t.device != input.device) for t in operands):
        return None
    if pointwise_weight.shape[1:] != (weight.shape[0], 1, 1) or not _fuses(pointwise_weight):
        return None
    return triton_operators.separable_conv2d(
        input,
        weight,
        bias,
        pointwise_weight,
        pointwise_bias,
        stride,
        padding,
        dilation,
        depthwise_activation,
        activation,
    )
