"""The host side of every kernel: checks, sizes, memory formats, precision. Imports no Triton.

`Problem` is what csrc/conv_params.h is for the C++ kernels, without the strides, which come from the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from cnnext.ops import Geometry, fake_forward, memory_format

__all__ = [
    "DTYPES",
    "Problem",
    "ceil_div",
    "check_bias",
    "dense",
    "empty",
    "filter_constants",
    "input_precision",
    "is_wide",
    "make_problem",
    "next_power_of_2",
    "result_is_channels_last",
    "strides_of",
    "suggests_channels_last",
    "unrolled_columns",
]

#: Dtypes that the kernels take; sums are float32.
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

# Offsets below this fit 32 bits even after the rounding up of pixels and channels to whole tiles.
_NARROW_LIMIT = 2**31 - 2**22


class Problem(NamedTuple):
    """Sizes of one convolution: input (N, C, H, W), filter (K, C / groups, R, S), output (N, K, P, Q)."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    groups: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def input_size(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def output_size(self) -> tuple[int, int, int, int]:
        return self.N, self.K, self.P, self.Q

    @property
    def taps(self) -> int:
        """Taps of the filter."""
        return self.R * self.S

    @property
    def output_pixels(self) -> int:
        """Pixels of all output images together."""
        return self.N * self.P * self.Q


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return values[0], values[-1]


def _length(size: int, taps: int, stride: int, padding: int, dilation: int) -> int:
    return (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1


def make_problem(
    input_size: Sequence[int],
    weight_size: Sequence[int],
    geometry: Geometry,
    operands: Sequence[Tensor | None],
    grad_output_size: Sequence[int] | None = None,
) -> Problem:
    """Checks a call and gathers its sizes.

    Args:
        input_size: (N, C, H, W).
        weight_size: (K, C / groups, R, S).
        geometry: stride, padding, dilation and groups.
        operands: the tensors of the call, which must agree in dtype and device.
        grad_output_size: (N, K, P, Q) if the call has one.

    Raises:
        RuntimeError: the sizes do not fit each other, in the words of F.conv2d; or the tensors do not.
    """
    n, c, h, w = input_size
    k, channels_per_group, r, s = weight_size
    stride, padding, dilation = (_pair(values) for values in geometry[:3])
    groups = geometry.groups
    if min(*stride, *dilation) <= 0 or min(padding) < 0:
        raise RuntimeError(
            f"non-positive stride, non-positive dilation or negative padding is not supported, but got {geometry}"
        )
    fits = groups > 0 and c == channels_per_group * groups and k % groups == 0 and min(c, h, w, k, r, s) > 0
    p = _length(h, r, stride[0], padding[0], dilation[0]) if fits else 0
    q = _length(w, s, stride[1], padding[1], dilation[1]) if fits else 0
    if p <= 0 or q <= 0:
        # ATen says what is wrong.
        fake_forward(torch.empty(input_size, device="meta"), torch.empty(weight_size, device="meta"), None, geometry, 0)
        raise RuntimeError(f"the Triton kernels do not take input {[*input_size]} with weight {[*weight_size]}")
    first = operands[0]
    assert first is not None
    for tensor in operands:
        if tensor is not None and (tensor.dtype != first.dtype or tensor.device != first.device):
            raise RuntimeError(
                f"expected tensors of one dtype on one device, but got {first.dtype} on {first.device} and "
                f"{tensor.dtype} on {tensor.device}"
            )
    if first.dtype not in DTYPES:
        raise RuntimeError(f"the Triton kernels take float32, float16 and bfloat16, but got {first.dtype}")
    if grad_output_size is not None and tuple(grad_output_size) != (n, k, p, q):
        raise RuntimeError(f"expected a gradient of size {[n, k, p, q]}, but got {[*grad_output_size]}")
    return Problem(n, c, h, w, k, r, s, p, q, groups, stride, padding, dilation)


def check_bias(bias: Tensor | None, channels: int) -> None:
    """Raises RuntimeError unless `bias` is None or of shape (channels,)."""
    if bias is not None and bias.shape != (channels,):
        raise RuntimeError(f"expected a bias of size [{channels}], but got {[*bias.shape]}")


def dense(tensor: Tensor, channels_last: bool) -> Tensor:
    """`tensor` itself if the innermost dimension of that memory format is dense in it, else a copy in the format."""
    if tensor.stride(1 if channels_last else 3) == 1:
        return tensor
    return tensor.contiguous(memory_format=memory_format(channels_last))


def is_wide(*tensors: Tensor) -> bool:
    """Whether offsets into any of the tensors need 64 bits."""
    return any(
        sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) >= _NARROW_LIMIT
        for tensor in tensors
    )


def empty(size: Sequence[int], like: Tensor, channels_last: bool) -> Tensor:
    """Memory for a result, with the dtype and on the device of `like`."""
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=memory_format(channels_last))


def suggests_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes the tensor for channels_last."""
    channels_last = tensor.is_contiguous(memory_format=torch.channels_last)
    if channels_last != tensor.is_contiguous():
        return channels_last
    # A slice, or both at once. torch has this function in Python, which costs as much as the rest of a launch.
    return suggest_memory_format(tensor) == torch.channels_last


def result_is_channels_last(input: Tensor, weight: Tensor) -> bool:
    """The memory format of the output, by the rule of F.conv2d."""
    return suggests_channels_last(input) or suggests_channels_last(weight)


def strides_of(name: str, tensor: Tensor) -> dict[str, int]:
    """The strides of a (N, C, H, W) tensor as arguments of a kernel."""
    return dict(zip((f"{name}_n", f"{name}_c", f"{name}_h", f"{name}_w"), tensor.stride(), strict=True))


def filter_constants(problem: Problem) -> dict[str, int]:
    """The geometry that a kernel is compiled for."""
    return {
        "R": problem.R,
        "S": problem.S,
        "STRIDE_H": problem.stride[0],
        "STRIDE_W": problem.stride[1],
        "DILATION_H": problem.dilation[0],
        "DILATION_W": problem.dilation[1],
    }


def input_precision(dtype: torch.dtype) -> str:
    """How tl.dot multiplies: "tf32" where PyTorch's convolutions may, else "ieee".

    `torch.backends.cudnn.allow_tf32` and `torch.backends.cudnn.conv.fp32_precision` are two faces of one setting.
    """
    allowed = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if dtype == torch.float32 and allowed == "tf32" else "ieee"


def unrolled_columns(problem: Problem) -> int:
    """How many taps of a row a kernel has in one turn of its loop.

    A whole row has enough loads in flight; a whole filter would hold them in more registers than there are. The rows of
    large filters go by in pieces, or compiling would take seconds.
    """
    return problem.S if problem.S <= 7 else 4


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up. That of Triton takes microseconds on the host."""
    return -(-dividend // divisor)


def next_power_of_2(value: int) -> int:
    """The least power of 2 that is not below `value`."""
    return 1 << (value - 1).bit_length()
