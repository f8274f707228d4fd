"""Grouped and dense convolution in Triton, as implicit matrix products: forward, input gradient, weight gradient.

    forward, backward_input   out[m, o] = act(bias[o] + sum_{r, s, i} source[m at tap (r, s), i] w[o, i, r, s])
    backward_weight           dw[o, j]  = sum_m dy[m, o] x[m at the tap of j, channel of j],    j = (r, s, i)

m counts pixels through all images; o and i are channels of one group. A program owns a tile of m x o (of o x j) of one
group; the depth of the product, (r, s, i) or m, goes by in blocks through tl.dot: fp16 and bf16 on the matrix units
with float32 sums, float32 too where TF32 is allowed, else by FMA. Forward and input gradient are one kernel.

In channels_last a tile is (pixels, channels), in NCHW it is (channels, pixels) and the factors change sides, so that
loads and stores run along the dense dimension in both.

Groups with fewer than 16 input channels would fill a block of the depth badly; there (FLAT) the taps and channels are
counted through, so that a block holds several taps. Groups with fewer than 16 outputs have a kernel of their own, see
grouped_narrow.py.

The weight gradient is split along m into parts whose number follows from the problem; parts.py adds them. Narrow groups
share a tile: products across groups are computed on the matrix units, which have room, and never stored or added up.

Limits: the copy bandwidth for few channels, the matrix units for many (predicted; the float32 FMA path is far below
both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cnnext.ops import Geometry
from cnnext.triton_kernels import grouped_narrow, launching
from cnnext.triton_kernels.device import (
    activate,
    lanes,
    over_channels,
    over_pixels,
    program,
    split_pixel,
    tap_shift,
    taps_read,
)
from cnnext.triton_kernels.launching import Settings, remembered, settings, unique
from cnnext.triton_kernels.parts import Partials
from cnnext.triton_kernels.problem import (
    Problem,
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
)

__all__ = ["backward_input", "backward_weight", "forward"]

# The least side of a tile that tl.dot fills.
_LEAST_BLOCK = 16


@triton.jit
def grouped_correlate_kernel(
    source,  # forward (N, C, H, W), backward (N, K, P, Q)
    weight,  # (K, C / groups, R, S)
    bias,  # (K) if HAS_BIAS
    output,  # forward (N, K, P, Q), backward (N, C, H, W)
    images, source_rows, source_columns, output_rows, output_columns, groups, group_inputs, group_outputs, pad_h, pad_w,
    source_n, source_c, source_h, source_w, weight_g, weight_o, weight_i, weight_r, weight_s,
    output_n, output_c, output_h, output_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, TAP_STEP_H: tl.constexpr, TAP_STEP_W: tl.constexpr, BACKWARD: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, FLAT: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    # A program's pixels are output pixels of one phase, as in depthwise.py.
    PHASES_H: tl.constexpr = STRIDE_H if BACKWARD else 1
    PHASES_W: tl.constexpr = STRIDE_W if BACKWARD else 1
    STEP_H: tl.constexpr = 1 if BACKWARD else STRIDE_H
    STEP_W: tl.constexpr = 1 if BACKWARD else STRIDE_W
    index = program(WIDE)
    # Programs that read the same source pixels are neighbours, so that they meet in L2.
    output_tiles = tl.cdiv(group_outputs, BLOCK_OUTPUTS)
    o = index % output_tiles * BLOCK_OUTPUTS + lanes(BLOCK_OUTPUTS, WIDE)
    index = index // output_tiles
    group = index % groups
    index = index // groups
    phase_h = index % PHASES_H
    phase_w = index // PHASES_H % PHASES_W
    pixel = index // (PHASES_H * PHASES_W) * BLOCK_PIXELS + lanes(BLOCK_PIXELS, WIDE)
    image, row, column = split_pixel(pixel, tl.cdiv(output_rows, PHASES_H), tl.cdiv(output_columns, PHASES_W))
    output_row = row * PHASES_H + phase_h
    output_column = column * PHASES_W + phase_w
    in_output = (image < images) & (output_row < output_rows) & (output_column < output_columns)
    in_outputs = o < group_outputs

    first_r, count_r = taps_read(phase_h, pad_h, R, STRIDE_H, DILATION_H, TAP_STEP_H, BACKWARD)
    first_s, count_s = taps_read(phase_w, pad_w, S, STRIDE_W, DILATION_W, TAP_STEP_W, BACKWARD)
    depth_blocks = tl.cdiv(group_inputs, BLOCK_DEPTH)
    taps = count_r * count_s
    steps = tl.cdiv(taps * group_inputs, BLOCK_DEPTH) if FLAT else taps * depth_blocks
    image_offset = image * source_n + group * group_inputs * source_c
    output_filter = group * weight_g + o * weight_o
    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_PIXELS), tl.float32)
    for step in range(steps):
        if FLAT:
            depth = step * BLOCK_DEPTH + lanes(BLOCK_DEPTH, WIDE)
            i = depth % group_inputs
            tap = depth // group_inputs
            in_depth = tap < taps
        else:
            i = step % depth_blocks * BLOCK_DEPTH + lanes(BLOCK_DEPTH, WIDE)
            tap = step // depth_blocks
            in_depth = i < group_inputs
        r = first_r + tap // count_s * TAP_STEP_H
        s = first_s + tap % count_s * TAP_STEP_W
        shift_h, _ = tap_shift(r, phase_h, pad_h, STRIDE_H, DILATION_H, BACKWARD)
        shift_w, _ = tap_shift(s, phase_w, pad_w, STRIDE_W, DILATION_W, BACKWARD)
        if FLAT:  # one shift for each lane of the depth
            source_row = over_pixels(row * STEP_H, CHANNELS_LAST) + over_channels(shift_h, CHANNELS_LAST)
            source_column = over_pixels(column * STEP_W, CHANNELS_LAST) + over_channels(shift_w, CHANNELS_LAST)
        else:
            source_row = over_pixels(row * STEP_H + shift_h, CHANNELS_LAST)
            source_column = over_pixels(column * STEP_W + shift_w, CHANNELS_LAST)
        in_rows = (source_row >= 0) & (source_row < source_rows)
        in_columns = (source_column >= 0) & (source_column < source_columns)
        inside = over_pixels(in_output, CHANNELS_LAST) & over_channels(in_depth, CHANNELS_LAST)
        pixel_offset = over_pixels(image_offset, CHANNELS_LAST) + source_row * source_h + source_column * source_w
        place = pixel_offset + over_channels(i * source_c, CHANNELS_LAST)
        values = tl.load(source + place, mask=in_rows & in_columns & inside, other=0.0)
        # The depth takes the place of the pixels in the tile of the filter.
        filter_place = over_channels(output_filter, CHANNELS_LAST) + over_pixels(
            i * weight_i + r * weight_r + s * weight_s, CHANNELS_LAST
        )
        filter_mask = over_channels(in_outputs, CHANNELS_LAST) & over_pixels(in_depth, CHANNELS_LAST)
        factors = tl.load(weight + filter_place, mask=filter_mask, other=0.0)
        if CHANNELS_LAST:
            sums = tl.dot(values, factors, sums, input_precision=PRECISION)
        else:
            sums = tl.dot(factors, values, sums, input_precision=PRECISION)
    channel = group * group_outputs + o
    if HAS_BIAS:
        sums += over_channels(tl.load(bias + channel, mask=in_outputs, other=0.0).to(tl.float32), CHANNELS_LAST)
    output_offset = image * output_n + output_row * output_h + output_column * output_w
    place = over_pixels(output_offset, CHANNELS_LAST) + over_channels(channel * output_c, CHANNELS_LAST)
    mask = over_pixels(in_output, CHANNELS_LAST) & over_channels(in_outputs, CHANNELS_LAST)
    tl.store(output + place, activate(sums, ACTIVATION).to(output.dtype.element_ty), mask=mask)


@triton.jit
def grouped_backward_weight_kernel(
    grad_output,  # (N, K, P, Q)
    source,  # (N, C, H, W)
    partials,  # (parts, K * C / groups * R * S + K) float32, the last K for the bias if HAS_BIAS
    pixels, rows, columns, source_rows, source_columns, groups, group_inputs, group_outputs, pad_h, pad_w,
    part_pixels, part_size, grad_n, grad_c, grad_h, grad_w, source_n, source_c, source_h, source_w,
    weight_k, weight_c, weight_r, weight_s, weight_size,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, GROUPS_A_TILE: tl.constexpr, HAS_BIAS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_OUTPUTS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    # o and i are channels of GROUPS_A_TILE groups side by side; column j is the pair of a tap and i.
    tile_inputs = group_inputs * GROUPS_A_TILE
    tile_outputs = group_outputs * GROUPS_A_TILE
    index = program(WIDE)
    column_tiles = tl.cdiv(R * S * tile_inputs, BLOCK_COLUMNS)
    column_tile = index % column_tiles
    j = column_tile * BLOCK_COLUMNS + lanes(BLOCK_COLUMNS, WIDE)
    index = index // column_tiles
    output_tiles = tl.cdiv(tile_outputs, BLOCK_OUTPUTS)
    o = index % output_tiles * BLOCK_OUTPUTS + lanes(BLOCK_OUTPUTS, WIDE)
    index = index // output_tiles
    first_group = index % (groups // GROUPS_A_TILE) * GROUPS_A_TILE
    part = index // (groups // GROUPS_A_TILE)
    i = j % tile_inputs
    tap = j // tile_inputs
    in_taps = tap < R * S
    in_outputs = o < tile_outputs
    channel = first_group * group_outputs + o
    shift_h = tap // S * DILATION_H - pad_h
    shift_w = tap % S * DILATION_W - pad_w
    column_offset = (first_group * group_inputs + i) * source_c

    sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_COLUMNS), tl.float32)
    if CHANNELS_LAST:
        bias_sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), tl.float32)
    else:
        bias_sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_PIXELS), tl.float32)
    first = part * part_pixels
    last = tl.minimum(first + part_pixels, pixels)
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + lanes(BLOCK_PIXELS, WIDE)
        in_part = pixel < last
        image, row, column = split_pixel(pixel, rows, columns)
        grad_place = over_pixels(image * grad_n + row * grad_h + column * grad_w, CHANNELS_LAST) + over_channels(
            channel * grad_c, CHANNELS_LAST
        )
        grad_mask = over_pixels(in_part, CHANNELS_LAST) & over_channels(in_outputs, CHANNELS_LAST)
        gradients = tl.load(grad_output + grad_place, mask=grad_mask, other=0.0)
        source_row = over_pixels(row * STRIDE_H, CHANNELS_LAST) + over_channels(shift_h, CHANNELS_LAST)
        source_column = over_pixels(column * STRIDE_W, CHANNELS_LAST) + over_channels(shift_w, CHANNELS_LAST)
        in_rows = (source_row >= 0) & (source_row < source_rows)
        in_columns = (source_column >= 0) & (source_column < source_columns)
        inside = over_pixels(in_part, CHANNELS_LAST) & over_channels(in_taps, CHANNELS_LAST)
        pixel_offset = over_pixels(image * source_n, CHANNELS_LAST) + source_row * source_h + source_column * source_w
        place = pixel_offset + over_channels(column_offset, CHANNELS_LAST)
        values = tl.load(source + place, mask=in_rows & in_columns & inside, other=0.0)
        if CHANNELS_LAST:
            sums = tl.dot(tl.trans(gradients), values, sums, input_precision=PRECISION)
        else:
            sums = tl.dot(gradients, tl.trans(values), sums, input_precision=PRECISION)
        if HAS_BIAS:
            bias_sums += gradients.to(tl.float32)
    partial = partials + part * part_size
    same_group = (o // group_outputs)[:, None] == (i // group_inputs)[None, :]
    within = i % group_inputs * weight_c + tap // S * weight_r + tap % S * weight_s
    place = (channel * weight_k)[:, None] + within[None, :]
    tl.store(partial + place, sums, mask=same_group & in_outputs[:, None] & in_taps[None, :])
    if HAS_BIAS:
        channel_sums = tl.sum(bias_sums, axis=0 if CHANNELS_LAST else 1)
        tl.store(partial + weight_size + channel, channel_sums, mask=in_outputs & (column_tile == 0))


# ------------------------------------------------------------------------------------------------------------- settings


def _side(extent: int, most: int) -> int:
    return max(_LEAST_BLOCK, min(most, next_power_of_2(extent)))


@remembered
def product_settings(
    pixels: int, outputs: int, depth: int, dtype: torch.dtype, precision: str, long_steps: bool = False
) -> tuple[Settings, ...]:
    """Tiles of a product of (pixels x depth) and (depth x outputs), which a kernel of this package loops over.

    The matrix units want large tiles; few pixels want small ones, to have programs for every processor. FMA wants tiles
    whose sums fit the registers along with both factors.
    """
    if dtype == torch.float32 and precision == "ieee":
        shapes = [(64, 32, 16, 4, 3), (32, 32, 16, 4, 3), (32, 64, 16, 4, 3)]
    elif pixels * outputs >= 2**21:
        shapes = [(128, 64, 32, 4, 3), (128, 128, 32, 8, 3), (64, 64, 32, 4, 3)]
    else:
        shapes = [(64, 64, 32, 4, 3), (64, 32, 32, 4, 4), (128, 64, 32, 4, 3)]
    if long_steps:  # twice as deep, with one copy on its way instead of two: as many bytes, in fewer registers
        shapes = [(pixels, outputs, 2 * depth, warps, 2) for pixels, outputs, depth, warps, _ in shapes]
    return unique(
        settings(
            warps,
            stages,
            BLOCK_PIXELS=_side(pixels, block_pixels),
            BLOCK_OUTPUTS=_side(outputs, block_outputs),
            BLOCK_DEPTH=_side(depth, block_depth),
        )
        for block_pixels, block_outputs, block_depth, warps, stages in shapes
    )


@remembered
def backward_weight_settings(outputs: int, columns: int, dtype: torch.dtype, precision: str) -> tuple[Settings, ...]:
    """Tiles of the weight gradient: outputs x (taps x inputs), along blocks of pixels."""
    if dtype == torch.float32 and precision == "ieee":
        shapes = [(32, 32, 16, 4, 2), (64, 32, 16, 4, 2)]
    else:
        shapes = [(64, 64, 32, 4, 3), (32, 64, 32, 4, 3), (64, 128, 32, 8, 3)]
    return unique(
        settings(
            warps,
            stages,
            BLOCK_OUTPUTS=_side(outputs, block_outputs),
            BLOCK_COLUMNS=_side(columns, block_columns),
            BLOCK_PIXELS=block_pixels,
        )
        for block_outputs, block_columns, block_pixels, warps, stages in shapes
    )


def groups_a_tile(groups: int, group_inputs: int, group_outputs: int) -> int:
    """How many groups share a tile of the weight gradient: as many as fill its least side, and divide the groups."""
    most = _LEAST_BLOCK // max(group_inputs, group_outputs)
    return next((count for count in range(min(most, groups), 1, -1) if groups % count == 0), 1)


# -------------------------------------------------------------------------------------------------------------- entries


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
    """act(conv(input, weight) + bias): input (N, C, H, W), weight (K, C / groups, R, S), bias (K) -> (N, K, P, Q)."""
    problem = make_problem(input.shape, weight.shape, geometry, (input, weight, bias))
    check_bias(bias, problem.K)
    channels_last = result_is_channels_last(input, weight)
    output = empty(problem.output_size, input, channels_last)
    correlate(problem, dense(input, channels_last), weight, bias, output, activation, channels_last, backward=False)
    return output


def backward_input(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    """The gradient of `forward` with respect to its input, of size `input_size`, in the memory format asked for."""
    problem = make_problem(input_size, weight.shape, geometry, (grad_output, weight), grad_output.shape)
    grad_input = empty(problem.input_size, grad_output, channels_last)
    correlate(problem, dense(grad_output, channels_last), weight, None, grad_input, 0, channels_last, backward=True)
    return grad_input


def correlate(
    problem: Problem,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    activation: int,
    channels_last: bool,
    backward: bool,
) -> None:
    """Fills `output`; `source` and `output` are dense in the memory format that `channels_last` says."""
    if output.numel() == 0:
        return
    images, channels, rows, columns = output.shape
    group_outputs, group_inputs = channels // problem.groups, source.shape[1] // problem.groups
    if problem.taps > 1 and weight.shape[1] > 1:
        # A tile of the filter holds many channels of few taps; they should lie side by side.
        weight = weight.contiguous(memory_format=torch.channels_last)
    weight_k, weight_c, weight_r, weight_s = weight.stride()
    phases_h, phases_w = problem.stride if backward else (1, 1)
    tap_step_h, tap_step_w = (
        stride // math.gcd(stride, dilation) if backward else 1
        for stride, dilation in zip(problem.stride, problem.dilation, strict=True)
    )
    pixels = images * ceil_div(rows, phases_h) * ceil_div(columns, phases_w)
    arguments: dict[str, Any] = {
        "source": source,
        "weight": weight,
        "bias": weight if bias is None else bias,
        "output": output,
        "images": images,
        "source_rows": source.shape[2],
        "source_columns": source.shape[3],
        "output_rows": rows,
        "output_columns": columns,
        "groups": problem.groups,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[1],
        **strides_of("source", source),
        "weight_g": weight_k * (problem.K // problem.groups),
        "weight_o": weight_c if backward else weight_k,
        "weight_i": weight_k if backward else weight_c,
        "weight_r": weight_r,
        "weight_s": weight_s,
        **strides_of("output", output),
        **filter_constants(problem),
        "BACKWARD": backward,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
        "CHANNELS_LAST": channels_last,
        "WIDE": is_wide(source, weight, output),
    }
    phases = phases_h * phases_w
    if problem.groups > 1 and group_outputs < _LEAST_BLOCK:
        grouped_narrow.launch(problem, group_inputs, group_outputs, arguments, pixels, phases)
        return
    precision = input_precision(source.dtype)

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(pixels, chosen.blocks["BLOCK_PIXELS"]) * phases * problem.groups
        return tiles * ceil_div(group_outputs, chosen.blocks["BLOCK_OUTPUTS"])

    flat = group_inputs < _LEAST_BLOCK
    depth = group_inputs * problem.taps if flat else group_inputs
    candidates = product_settings(pixels, group_outputs, depth, source.dtype, precision)
    arguments |= {
        "group_inputs": group_inputs,
        "group_outputs": group_outputs,
        "TAP_STEP_H": tap_step_h,
        "TAP_STEP_W": tap_step_w,
        "FLAT": flat,
        "PRECISION": precision,
    }
    launching.run(grouped_correlate_kernel, candidates, programs, arguments)


def backward_weight(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Sequence[int],
    geometry: Geometry,
    with_bias: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients of `forward` with respect to weight and bias; the second has no elements unless `with_bias`."""
    problem = make_problem(input.shape, weight_size, geometry, (grad_output, input), grad_output.shape)
    partials = Partials(problem, input, with_bias, channels_last)
    if problem.N == 0:
        return partials.zeros()
    channels_inner = suggests_channels_last(input)
    source, gradients = dense(input, channels_inner), dense(grad_output, channels_inner)
    group_inputs, group_outputs = problem.C // problem.groups, problem.K // problem.groups
    side_by_side = groups_a_tile(problem.groups, group_inputs, group_outputs)
    tile_outputs, tile_columns = group_outputs * side_by_side, group_inputs * side_by_side * problem.taps
    precision = input_precision(source.dtype)

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(tile_outputs, chosen.blocks["BLOCK_OUTPUTS"]) * partials.parts
        return tiles * ceil_div(tile_columns, chosen.blocks["BLOCK_COLUMNS"]) * (problem.groups // side_by_side)

    weight_strides = partials.grad_weight.stride()
    arguments: dict[str, Any] = {
        "grad_output": gradients,
        "source": source,
        **partials.arguments(),
        "pixels": problem.output_pixels,
        "rows": problem.P,
        "columns": problem.Q,
        "source_rows": problem.H,
        "source_columns": problem.W,
        "groups": problem.groups,
        "group_inputs": group_inputs,
        "group_outputs": group_outputs,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[1],
        **strides_of("grad", gradients),
        **strides_of("source", source),
        **dict(zip(("weight_k", "weight_c", "weight_r", "weight_s"), weight_strides, strict=True)),
        "weight_size": partials.grad_weight.numel(),
        **filter_constants(problem),
        "GROUPS_A_TILE": side_by_side,
        "HAS_BIAS": with_bias,
        "CHANNELS_LAST": channels_inner,
        "PRECISION": precision,
        "WIDE": is_wide(gradients, source, partials.workspace),
    }
    candidates = backward_weight_settings(tile_outputs, tile_columns, source.dtype, precision)
    launching.run(grouped_backward_weight_kernel, candidates, programs, arguments)
    return partials.sum()
