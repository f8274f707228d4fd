"""cnnext's C++ kernels for the CPU."""

from __future__ import annotations

from cnnext import _extension, ops
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
