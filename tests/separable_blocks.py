"""Depthwise-separable blocks that the tests try, and what they should give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from tests.cases import Case, case, generator
from tests.reference import Expected, expect_separable

__all__ = ["BLOCKS", "BlockOperands", "block", "expected_of", "operands_of"]


def block(
    name: str,
    size: tuple[int, int, int, int],
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    padding: int | tuple[int, int] = 1,
    **rest: Any,
) -> tuple[Case, int]:
    """The depthwise half as a case, and the output channels of the 1x1 half."""
    channels = size[1] * rest.pop("multiplier", 1)
    return case(f"separable_{name}", size, channels, kernel, stride, padding, groups=size[1], **rest), outputs


# A slice has 64 channels of 16 bits or 32 of float32, of which half are computed if there are no more. Tiles of outputs
# have 64, 128 and 256 channels, rectangles of 64 and 128 pixels.
BLOCKS = (
    block("one_vector", (1, 8, 5, 6), 8),
    block("half_a_slice", (2, 32, 9, 10), 40),
    block("two_slices_and_a_tail_of_one_vector", (1, 72, 7, 7), 72),
    block("a_tail_of_more_than_half", (1, 104, 6, 9), 136),
    block("one_slice_s2", (1, 64, 17, 15), 64, stride=2),
    block("three_slices_s2", (2, 136, 8, 9), 24, stride=2),
    block("5x5", (1, 40, 11, 12), 264, kernel=5, padding=2),
    block("5x5_s2", (1, 72, 13, 10), 16, kernel=5, stride=2, padding=2),
    block("wide", (1, 16, 3, 37), 8),
    block("tall", (1, 16, 37, 3), 8),
    block("unpadded", (1, 24, 8, 9), 16, padding=0),
    block("padding_beyond_filter_s2", (1, 8, 7, 6), 8, stride=2, padding=(4, 3)),
    block("uneven_padding_5x5", (1, 8, 9, 7), 8, kernel=5, padding=(0, 3)),
    block("rectangles_both_ways", (1, 8, 19, 18), 16),
)


@dataclass(frozen=True)
class BlockOperands:
    """The tensors of a block; biases and residual may be missing."""

    x: torch.Tensor
    depthwise_w: torch.Tensor
    depthwise_bias: torch.Tensor | None
    w: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None

    def bare(self) -> BlockOperands:
        return replace(self, depthwise_bias=None, bias=None, residual=None)


def operands_of(shape: tuple[Case, int], dtype: torch.dtype, integers: bool = True) -> BlockOperands:
    """Small integers, so that every sum is exact and the middle is in every dtype; or normally distributed values."""
    depthwise, outputs = shape
    n, middle, p, q = depthwise.output_shape
    seed = generator(f"{depthwise.name}/{integers}")

    def values(*size: int, largest: int = 1) -> torch.Tensor:
        if integers:
            return torch.randint(-largest, largest + 1, size, generator=seed).to(dtype)
        return torch.randn(size, generator=seed, dtype=torch.float64).to(dtype)

    return BlockOperands(
        values(*depthwise.input_shape, largest=2),
        values(*depthwise.weight_shape),
        values(middle, largest=3),
        values(outputs, middle, 1, 1),
        values(outputs, largest=3),
        values(n, outputs, p, q, largest=4),
    )


def expected_of(
    shape: tuple[Case, int], operands: BlockOperands, activations: tuple[str | None, str | None]
) -> Expected:
    o = operands
    first, second = activations
    return expect_separable(shape[0], o.x, (o.depthwise_w, o.depthwise_bias, first), (o.w, o.bias, second), o.residual)
