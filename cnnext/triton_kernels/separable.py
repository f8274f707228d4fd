"""Depthwise -> 1x1 in one Triton kernel, for inference: both epilogues, and the middle never leaves the processor.

    middle[m, j] = round(act1(bias1[j] + sum_{r, s} x[n, j / M, p sh - ph + r dh, q sw - pw + s dw] w1[j, r, s]))
    y[m, k]      = act2(bias2[k] + sum_j middle[m, j] w2[k, j])

m = (n, p, q) counts output pixels, j the middle channels, M is the depthwise multiplier; `round` is to the dtype of x,
as the two convolutions would do apart.

A program owns a tile of pixels x outputs. It walks along j in blocks: the depthwise sums of a block are made in
registers on the FMA units, rounded, and multiplied into the sums of the outputs on the matrix units. The traffic falls
from in + middle + middle + out to in + out, but each tile of outputs makes the middle again: fusing pays where one
tile, or two, hold all outputs (cnnext/backends/triton.py decides; predicted, not measured).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnext.ops import Geometry
from cnnext.triton_kernels import launching
from cnnext.triton_kernels.device import (
    activate,
    lanes,
    over_channels,
    over_pixels,
    program,
    split_pixel,
    tap_shift,
)
from cnnext.triton_kernels.launching import Settings, remembered, settings, unique
from cnnext.triton_kernels.problem import (
    ceil_div,
    check_bias,
    dense,
    empty,
    filter_constants,
    input_precision,
    is_wide,
    make_problem,
    next_power_of_2,
    result_is_channels_last,
    strides_of,
    suggests_channels_last,
    unrolled_columns,
)

__all__ = ["forward"]


@triton.jit
def separable_kernel(
    source,  # (N, C, H, W)
    first_weight,  # (middle, 1, R, S)
    first_bias,  # (middle) if HAS_FIRST_BIAS
    second_weight,  # (outputs, middle)
    second_bias,  # (outputs) if HAS_SECOND_BIAS
    output,  # (N, outputs, P, Q)
    pixels, source_rows, source_columns, rows, columns, middle, outputs, pad_h, pad_w,
    source_n, source_c, source_h, source_w, first_j, first_r, first_s, second_o, second_j,
    output_n, output_c, output_h, output_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLIER: tl.constexpr, HAS_FIRST_BIAS: tl.constexpr, HAS_SECOND_BIAS: tl.constexpr,
    FIRST_ACTIVATION: tl.constexpr, SECOND_ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_MIDDLE: tl.constexpr,
):  # fmt: skip
    index = program(WIDE)
    output_tiles = tl.cdiv(outputs, BLOCK_OUTPUTS)
    o = index % output_tiles * BLOCK_OUTPUTS + lanes(BLOCK_OUTPUTS, WIDE)
    pixel = index // output_tiles * BLOCK_PIXELS + lanes(BLOCK_PIXELS, WIDE)
    image, row, column = split_pixel(pixel, rows, columns)
    in_pixels = pixel < pixels
    in_outputs = o < outputs
    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_PIXELS), tl.float32)
    for start in range(0, middle, BLOCK_MIDDLE):
        j = start + lanes(BLOCK_MIDDLE, WIDE)
        in_middle = j < middle
        channel_offset = over_channels(j // MULTIPLIER * source_c, CHANNELS_LAST)
        inside = over_pixels(in_pixels, CHANNELS_LAST) & over_channels(in_middle, CHANNELS_LAST)
        if CHANNELS_LAST:
            middle_sums = tl.zeros((BLOCK_PIXELS, BLOCK_MIDDLE), tl.float32)
        else:
            middle_sums = tl.zeros((BLOCK_MIDDLE, BLOCK_PIXELS), tl.float32)
        for r in range(R):
            source_row = row * STRIDE_H + tap_shift(r, 0, pad_h, STRIDE_H, DILATION_H, False)[0]
            in_rows = (source_row >= 0) & (source_row < source_rows)
            for s in tl.range(0, S, loop_unroll_factor=UNROLL):
                source_column = column * STRIDE_W + tap_shift(s, 0, pad_w, STRIDE_W, DILATION_W, False)[0]
                in_columns = (source_column >= 0) & (source_column < source_columns)
                pixel_offset = image * source_n + source_row * source_h + source_column * source_w
                values = tl.load(
                    source + (over_pixels(pixel_offset, CHANNELS_LAST) + channel_offset),
                    mask=inside & over_pixels(in_rows & in_columns, CHANNELS_LAST),
                    other=0.0,
                )
                taps = first_weight + (j * first_j + r * first_r + s * first_s)
                factors = tl.load(taps, mask=in_middle, other=0.0)
                middle_sums += values.to(tl.float32) * over_channels(factors.to(tl.float32), CHANNELS_LAST)
        if HAS_FIRST_BIAS:
            bias = tl.load(first_bias + j, mask=in_middle, other=0.0).to(tl.float32)
            middle_sums += over_channels(bias, CHANNELS_LAST)
        # Lanes beyond the last middle channel hold act1(0), which the zeros of the filter take out.
        middle_values = activate(middle_sums, FIRST_ACTIVATION).to(second_weight.dtype.element_ty)
        # The middle takes the place of the pixels in the tile of the filter.
        factors = tl.load(
            second_weight + (over_channels(o * second_o, CHANNELS_LAST) + over_pixels(j * second_j, CHANNELS_LAST)),
            mask=over_channels(in_outputs, CHANNELS_LAST) & over_pixels(in_middle, CHANNELS_LAST),
            other=0.0,
        )
        if CHANNELS_LAST:
            sums = tl.dot(middle_values, factors, sums, input_precision=PRECISION)
        else:
            sums = tl.dot(factors, middle_values, sums, input_precision=PRECISION)
    if HAS_SECOND_BIAS:
        bias = tl.load(second_bias + o, mask=in_outputs, other=0.0).to(tl.float32)
        sums += over_channels(bias, CHANNELS_LAST)
    output_offset = image * output_n + row * output_h + column * output_w
    place = over_pixels(output_offset, CHANNELS_LAST) + over_channels(o * output_c, CHANNELS_LAST)
    mask = over_pixels(in_pixels, CHANNELS_LAST) & over_channels(in_outputs, CHANNELS_LAST)
    tl.store(output + place, activate(sums, SECOND_ACTIVATION).to(output.dtype.element_ty), mask=mask)


@remembered
def separable_settings(outputs: int, dtype: torch.dtype, precision: str) -> tuple[Settings, ...]:
    """Tiles: as many outputs as the sums find registers for, because each tile of outputs makes the middle again.

    Of float32 half as many middle channels fit the registers as of the others.
    """
    if dtype == torch.float32 and precision == "ieee":
        shapes = [(32, 64, 16, 4), (32, 32, 16, 4)]
    elif outputs <= 32:
        shapes = [(32, 32, 16, 4), (64, 32, 16, 4)] if dtype == torch.float32 else [(32, 32, 32, 4), (64, 32, 32, 4)]
    elif dtype == torch.float32:
        shapes = [(64, 128, 16, 8), (64, 64, 16, 4), (32, 128, 32, 8)]
    else:
        shapes = [(64, 128, 32, 8), (64, 64, 32, 4), (32, 256, 32, 8)]
    return unique(
        settings(
            warps,
            2,
            BLOCK_PIXELS=block_pixels,
            BLOCK_OUTPUTS=max(32, min(block_outputs, next_power_of_2(outputs))),
            BLOCK_MIDDLE=block_middle,
        )
        for block_pixels, block_outputs, block_middle, warps in shapes
    )


def forward(
    input: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor | None,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor | None,
    geometry: Geometry,
    depthwise_activation: int,
    pointwise_activation: int,
) -> Tensor:
    """Input (N, C, H, W), weights (M, 1, R, S) and (K, M, 1, 1), biases (M) and (K) -> (N, K, P, Q)."""
    operands = (input, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    problem = make_problem(input.shape, depthwise_weight.shape, geometry, operands)
    check_bias(depthwise_bias, problem.K)
    one_tap = Geometry((1, 1), (0, 0), (1, 1), 1)
    second = make_problem(problem.output_size, pointwise_weight.shape, one_tap, operands)
    check_bias(pointwise_bias, second.K)
    channels_last = result_is_channels_last(input, depthwise_weight) or suggests_channels_last(pointwise_weight)
    output = empty(second.output_size, input, channels_last)
    if output.numel() == 0:
        return output
    source = dense(input, channels_last)
    precision = input_precision(input.dtype)

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(problem.output_pixels, chosen.blocks["BLOCK_PIXELS"])
        return tiles * ceil_div(second.K, chosen.blocks["BLOCK_OUTPUTS"])

    arguments: dict[str, Any] = {
        "source": source,
        "first_weight": depthwise_weight,
        "first_bias": depthwise_weight if depthwise_bias is None else depthwise_bias,
        "second_weight": pointwise_weight,
        "second_bias": pointwise_weight if pointwise_bias is None else pointwise_bias,
        "output": output,
        "pixels": problem.output_pixels,
        "source_rows": problem.H,
        "source_columns": problem.W,
        "rows": problem.P,
        "columns": problem.Q,
        "middle": problem.K,
        "outputs": second.K,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[1],
        **strides_of("source", source),
        "first_j": depthwise_weight.stride(0),
        "first_r": depthwise_weight.stride(2),
        "first_s": depthwise_weight.stride(3),
        "second_o": pointwise_weight.stride(0),
        "second_j": pointwise_weight.stride(1),
        **strides_of("output", output),
        **filter_constants(problem),
        "MULTIPLIER": problem.K // problem.C,
        "HAS_FIRST_BIAS": depthwise_bias is not None,
        "HAS_SECOND_BIAS": pointwise_bias is not None,
        "FIRST_ACTIVATION": depthwise_activation,
        "SECOND_ACTIVATION": pointwise_activation,
        "CHANNELS_LAST": channels_last,
        "PRECISION": precision,
        "UNROLL": unrolled_columns(problem),
        "WIDE": is_wide(source, pointwise_weight, output),
    }
    launching.run(separable_kernel, separable_settings(second.K, input.dtype, precision), programs, arguments)
    return output
