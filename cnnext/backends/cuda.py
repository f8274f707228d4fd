"""cnnext's CUDA kernels."""

from __future__ import annotations

import torch

from cnnext import _extension, ops
from cnnext.backends import operators
from cnnext.backends.call import ConvCall

name = "cuda"
families = ops.FAMILIES
run = operators.run


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
