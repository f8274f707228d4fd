"""cnnext's C++ kernels for the CPU."""

from __future__ import annotations

from torch import Tensor

from cnnext import _extension, ops
from cnnext.backends import operators
from cnnext.backends.call import ConvCall

name = "cpu"
families = ops.FAMILIES
run = operators.run
run_separable = operators.run_separable


def unavailable() -> str | None:
    return _extension.cpu.reason


def refuses(call: ConvCall) -> str | None:
    if not call.input.is_cpu:
        return f"the input is on {call.input.device}"
    return operators.refuses(call)


def explain_separable(call: ConvCall, pointwise_weight: Tensor) -> str:
    """How the block of `call` and a 1x1 convolution runs, and why."""
    return "one kernel, in which the middle stays in cache"
