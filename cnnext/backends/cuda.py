"""cnnext's CUDA kernels."""

from __future__ import annotations

import torch

from cnnext import _extension
from cnnext.backends import operators
from cnnext.backends.call import ConvCall

name = "cuda"
run = operators.run


def unavailable() -> str | None:
    if _extension.cuda.reason is not None:
        return _extension.cuda.reason
    return None if torch.cuda.is_available() else "no CUDA device is available"


def refuses(call: ConvCall) -> str | None:
    if not call.input.is_cuda:
        return f"the input is on {call.input.device}"
    if call.family != "depthwise":
        return f"there is no CUDA kernel for {call.family} convolution"
    return operators.refuses(call)
