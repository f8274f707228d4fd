"""What a backend is asked to do, and what a backend is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cnnext.ops import Family, Implementations

__all__ = ["KERNEL_DTYPES", "Backend", "ConvCall"]

#: Dtypes that cnnext's own kernels take.
KERNEL_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})


class ConvCall(NamedTuple):
    """One call of a convolution, as cnnext.functional hands it to a backend.

    `input` is (N, C, H, W); `padding` is symmetric; `groups` is what F.conv2d would be called with; `activation` is an
    index into `cnnext.ops.ACTIVATIONS`.
    """

    family: str
    input: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    activation: int


class Backend(Protocol):
    """One way to run a convolution: a module of this package with these names."""

    name: str

    @property
    def families(self) -> Mapping[str, Family | Implementations]:
        """Its operators by family: forward, backward_input and backward_weight, with the arguments of `cnnext.ops`."""

    def unavailable(self) -> str | None:
        """Why this backend cannot run anything in this process, or None."""

    def refuses(self, call: ConvCall) -> str | None:
        """Why this backend cannot run `call`, or None. Only asked if it is available."""

    def run(self, call: ConvCall) -> Tensor:
        """The convolution of `call`, differentiable."""
