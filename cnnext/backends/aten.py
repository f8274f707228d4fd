"""PyTorch's own convolution: takes everything that F.conv2d takes."""

from __future__ import annotations

import torch
from torch import Tensor

from cnnext import ops
from cnnext.backends.call import ConvCall

name = "aten"
families = ops.ATEN


def unavailable() -> str | None:
    return None


def refuses(call: ConvCall) -> str | None:
    return None


def run(call: ConvCall) -> Tensor:
    _, input, weight, bias, stride, padding, dilation, groups, activation = call
    output = torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return ops.apply_activation(output, activation) if activation else output
