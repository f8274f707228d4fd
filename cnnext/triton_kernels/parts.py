"""The second stage of every weight gradient: adds what the parts of the pixels have summed, always in the same order.

    partials (parts, size) float32 -> grad_weight, grad_bias

`size` counts the filter's elements in the memory order of grad_weight, then K for the bias if it is asked for. A
program owns BLOCK_ELEMENTS elements; its rows of lanes walk through the parts side by side and are added in a tree.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnext.triton_kernels import launching
from cnnext.triton_kernels.device import lanes, program
from cnnext.triton_kernels.launching import Settings, settings
from cnnext.triton_kernels.problem import Problem, ceil_div, empty, is_wide

__all__ = ["Partials", "count_parts"]

# A part has at least so many pixels, and all parts together at most so many elements: then a reduction of few pixels
# into many elements, which has programs enough, is not split, and one of many pixels into few elements has about a
# thousand programs. The numbers are chosen, not measured.
_LEAST_PIXELS = 512
_MOST_ELEMENTS = 2**22
_MOST_PARTS = 1024


def count_parts(pixels: int, elements: int) -> int:
    """Into how many parts a sum over `pixels` is split for each of `elements`; a function of the problem alone."""
    return max(1, min(ceil_div(pixels, _LEAST_PIXELS), _MOST_ELEMENTS // elements, _MOST_PARTS))


@triton.jit
def sum_parts_kernel(
    partials,  # (parts, part_size) float32
    grad_weight,  # weight_size elements, dense
    grad_bias,  # part_size - weight_size elements, dense, if HAS_BIAS
    parts,
    part_size,
    weight_size,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_ELEMENTS: tl.constexpr,
):
    element = program(WIDE) * BLOCK_ELEMENTS + lanes(BLOCK_ELEMENTS, WIDE)
    sums = tl.zeros((BLOCK_PARTS, BLOCK_ELEMENTS), tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + lanes(BLOCK_PARTS, WIDE)
        mask = (part < parts)[:, None] & (element < part_size)[None, :]
        sums += tl.load(partials + (part[:, None] * part_size + element[None, :]), mask=mask, other=0.0)
    total = tl.sum(sums, axis=0)
    tl.store(grad_weight + element, total.to(grad_weight.dtype.element_ty), mask=element < weight_size)
    # NOTE: torch.compile looks at the stores to see what a kernel changes; without a bias there must be no store.
    if HAS_BIAS:
        is_bias = (element >= weight_size) & (element < part_size)
        tl.store(grad_bias + (element - weight_size), total.to(grad_bias.dtype.element_ty), mask=is_bias)


def sum_parts_settings(elements: int) -> tuple[Settings, ...]:
    """One choice: how the parts are added must not depend on anything but the problem."""
    return (settings(4, BLOCK_PARTS=16, BLOCK_ELEMENTS=128 if elements > 2**16 else 32),)


class Partials:
    """The workspace of one weight gradient, and the tensors that it ends in."""

    def __init__(self, problem: Problem, like: Tensor, with_bias: bool, channels_last: bool) -> None:
        weight_size = (problem.K, problem.C // problem.groups, problem.R, problem.S)
        self.grad_weight = empty(weight_size, like, channels_last)
        self.grad_bias = like.new_empty(problem.K if with_bias else 0)
        self.parts = count_parts(problem.output_pixels, self.grad_weight.numel())
        self.part_size = self.grad_weight.numel() + self.grad_bias.numel()
        self.part_pixels = ceil_div(problem.output_pixels, self.parts)
        self.workspace = like.new_empty((self.parts, self.part_size), dtype=torch.float32)

    def arguments(self) -> dict[str, Any]:
        """What a kernel needs to know to fill the workspace."""
        return {"partials": self.workspace, "part_pixels": self.part_pixels, "part_size": self.part_size}

    def sum(self) -> tuple[Tensor, Tensor]:
        """Adds the parts: (grad_weight, grad_bias)."""

        def programs(chosen: Settings) -> int:
            return ceil_div(self.part_size, chosen.blocks["BLOCK_ELEMENTS"])

        arguments = {
            "partials": self.workspace,
            "grad_weight": self.grad_weight,
            "grad_bias": self.grad_bias if self.grad_bias.numel() else self.grad_weight,
            "parts": self.parts,
            "part_size": self.part_size,
            "weight_size": self.grad_weight.numel(),
            "HAS_BIAS": self.grad_bias.numel() > 0,
            "WIDE": is_wide(self.workspace),
        }
        launching.run(sum_parts_kernel, sum_parts_settings(self.part_size), programs, arguments)
        return self.grad_weight, self.grad_bias

    def zeros(self) -> tuple[Tensor, Tensor]:
        """The sums over no pixels at all."""
        return self.grad_weight.zero_(), self.grad_bias.zero_()
