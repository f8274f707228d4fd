"""Grouped convolution with groups of fewer than 16 outputs: forward and input gradient on the FMA units.

    out[m, g, o] = act(bias[g, o] + sum_{i, r, s} source[m at tap (r, s), g, i] w[g, o, i, r, s])

A program owns pixels x groups x outputs of a group. For one tap and one input channel it loads a value for each (pixel,
group) and a factor for each (group, output), and adds their products: one load serves all outputs of a group.

tl.dot could do this on a block-diagonal filter, and is predicted faster for fp16 (16 wide blocks waste 4x at 4 outputs
a group, which the matrix units can afford, while 36 FMA an output at 3x3 take about as long as the memory). It is not
used because a zero off the diagonal times an infinity is NaN: one group's overflow would spoil its neighbours.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from cnnext.triton_kernels import launching
from cnnext.triton_kernels.device import (
    activate,
    along_channels,
    along_middle,
    along_pixels,
    lanes,
    program,
    split_pixel,
    tap_shift,
)
from cnnext.triton_kernels.launching import Settings, remembered, settings
from cnnext.triton_kernels.problem import Problem, ceil_div, next_power_of_2, unrolled_columns

__all__ = ["launch"]


@triton.jit
def grouped_narrow_kernel(
    source,  # forward (N, C, H, W), backward (N, K, P, Q)
    weight,  # (K, C / groups, R, S)
    bias,  # (K) if HAS_BIAS
    output,  # forward (N, K, P, Q), backward (N, C, H, W)
    images, source_rows, source_columns, output_rows, output_columns, groups, pad_h, pad_w,
    source_n, source_c, source_h, source_w, weight_g, weight_o, weight_i, weight_r, weight_s,
    output_n, output_c, output_h, output_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, GROUP_INPUTS: tl.constexpr, GROUP_OUTPUTS: tl.constexpr, BACKWARD: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLL: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_GROUPS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr,
):  # fmt: skip
    # A program's pixels are output pixels of one phase, as in depthwise.py.
    PHASES_H: tl.constexpr = STRIDE_H if BACKWARD else 1
    PHASES_W: tl.constexpr = STRIDE_W if BACKWARD else 1
    STEP_H: tl.constexpr = 1 if BACKWARD else STRIDE_H
    STEP_W: tl.constexpr = 1 if BACKWARD else STRIDE_W
    index = program(WIDE)
    group_tiles = tl.cdiv(groups, BLOCK_GROUPS)
    group = index % group_tiles * BLOCK_GROUPS + lanes(BLOCK_GROUPS, WIDE)
    index = index // group_tiles
    phase_h = index % PHASES_H
    phase_w = index // PHASES_H % PHASES_W
    pixel = index // (PHASES_H * PHASES_W) * BLOCK_PIXELS + lanes(BLOCK_PIXELS, WIDE)
    image, row, column = split_pixel(pixel, tl.cdiv(output_rows, PHASES_H), tl.cdiv(output_columns, PHASES_W))
    output_row = row * PHASES_H + phase_h
    output_column = column * PHASES_W + phase_w
    in_output = (image < images) & (output_row < output_rows) & (output_column < output_columns)
    in_groups = along_middle(group < groups)
    o = lanes(BLOCK_OUTPUTS, WIDE)
    in_filter = in_groups & along_channels(o < GROUP_OUTPUTS, CHANNELS_LAST)

    filters = weight + (along_middle(group * weight_g) + along_channels(o * weight_o, CHANNELS_LAST))
    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_GROUPS, BLOCK_OUTPUTS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_GROUPS, BLOCK_PIXELS), tl.float32)
    for i in range(GROUP_INPUTS):
        channel_offset = along_middle((group * GROUP_INPUTS + i) * source_c)
        for r in range(R):
            shift_h, reads_h = tap_shift(r, phase_h, pad_h, STRIDE_H, DILATION_H, BACKWARD)
            source_row = row * STEP_H + shift_h
            in_rows = (source_row >= 0) & (source_row < source_rows) & reads_h
            for s in tl.range(0, S, loop_unroll_factor=UNROLL):
                shift_w, reads_w = tap_shift(s, phase_w, pad_w, STRIDE_W, DILATION_W, BACKWARD)
                source_column = column * STEP_W + shift_w
                in_columns = (source_column >= 0) & (source_column < source_columns) & reads_w
                mask = along_pixels(in_output & in_rows & in_columns, CHANNELS_LAST) & in_groups
                pixel_offset = image * source_n + source_row * source_h + source_column * source_w
                place = along_pixels(pixel_offset, CHANNELS_LAST) + channel_offset
                values = tl.load(source + place, mask=mask, other=0.0)
                factors = tl.load(filters + (i * weight_i + r * weight_r + s * weight_s), mask=in_filter, other=0.0)
                sums += values.to(tl.float32) * factors.to(tl.float32)
    channel = along_middle(group * GROUP_OUTPUTS) + along_channels(o, CHANNELS_LAST)
    if HAS_BIAS:
        sums += tl.load(bias + channel, mask=in_filter, other=0.0).to(tl.float32)
    output_offset = image * output_n + output_row * output_h + output_column * output_w
    place = along_pixels(output_offset, CHANNELS_LAST) + channel * output_c
    mask = along_pixels(in_output, CHANNELS_LAST) & in_filter
    tl.store(output + place, activate(sums, ACTIVATION).to(output.dtype.element_ty), mask=mask)


@remembered
def narrow_settings(groups: int, group_outputs: int, phases: int, channels_last: bool) -> tuple[Settings, ...]:
    """Tiles of pixels x groups x outputs; in channels_last 64 channels side by side, in NCHW long runs of pixels.

    In NCHW the addresses of pixels that have phases need registers that a large tile has not.
    """
    block_outputs = next_power_of_2(group_outputs)
    most_groups = max(1, (64 if channels_last else 16) // block_outputs)
    block_groups = min(next_power_of_2(groups), most_groups)
    tiles = (1024, 2048, 4096) if phases > 1 and not channels_last else (2048, 1024, 4096)
    blocks = (tile // (block_groups * block_outputs) for tile in tiles)
    return tuple(
        settings(4, BLOCK_PIXELS=pixels, BLOCK_GROUPS=block_groups, BLOCK_OUTPUTS=block_outputs) for pixels in blocks
    )


def launch(
    problem: Problem, group_inputs: int, group_outputs: int, arguments: dict[str, Any], pixels: int, phases: int
) -> None:
    """Launches the kernel on the arguments that `grouped.correlate` has made."""

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(pixels, chosen.blocks["BLOCK_PIXELS"]) * phases
        return tiles * ceil_div(problem.groups, chosen.blocks["BLOCK_GROUPS"])

    candidates = narrow_settings(problem.groups, group_outputs, phases, arguments["CHANNELS_LAST"])
    arguments |= {"GROUP_INPUTS": group_inputs, "GROUP_OUTPUTS": group_outputs, "UNROLL": unrolled_columns(problem)}
    launching.run(grouped_narrow_kernel, candidates, programs, arguments)
