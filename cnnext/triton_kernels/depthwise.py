"""Depthwise convolution in Triton: forward, input gradient, weight and bias gradient.

    forward         y[n, k, p, q]  = act(bias[k] + sum_{r, s} x[n, k / M, p sh - ph + r dh, q sw - pw + s dw]
                                                         w[k, r, s])
    backward_input  dx[n, c, h, w] = sum_{m, r, s} dy[n, c M + m, (h + ph - r dh) / sh, (w + pw - s dw) / sw]
                                                   w[c M + m, r, s]    over the taps for which both quotients are whole
    backward_weight dw[k, r, s]    = sum_{n, p, q} dy[n, k, p, q] x[n, k / M, p sh - ph + r dh, q sw - pw + s dw]

M is the channel multiplier K / C. Sums are float32.

The first two are one kernel. A program owns a tile of pixels x channels and adds up the taps in registers; it reads
each source element once a tap, from L1 after the first time. Limit: the copy bandwidth for 3x3 in channels_last, the
load instructions for larger filters and for NCHW, where neighbouring taps lie no whole vector apart (predicted).

The weight gradient reads x and dy once: a program owns channels x taps and a part of the pixels, and keeps one
accumulator for each of (pixel lane, tap, channel). The parts, whose number follows from the problem alone, are added in
a fixed order by a second kernel, so results do not change from run to run or from card to card.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cnnext.ops import Geometry
from cnnext.triton_kernels import launching
from cnnext.triton_kernels.device import (
    activate,
    along_channels,
    along_middle,
    along_pixels,
    lanes,
    over_channels,
    over_pixels,
    program,
    split_pixel,
    tap_shift,
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
    is_wide,
    make_problem,
    next_power_of_2,
    result_is_channels_last,
    strides_of,
    suggests_channels_last,
    unrolled_columns,
)

__all__ = ["backward_input", "backward_weight", "forward"]


@triton.jit
def depthwise_correlate_kernel(
    source,  # forward (N, C, H, W), backward (N, K, P, Q)
    weight,  # (K, 1, R, S)
    bias,  # (K) if HAS_BIAS
    output,  # forward (N, K, P, Q), backward (N, C, H, W)
    images, source_rows, source_columns, output_rows, output_columns, output_channels, pad_h, pad_w,
    source_n, source_c, source_h, source_w, weight_k, weight_r, weight_s, output_n, output_c, output_h, output_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLIER: tl.constexpr, BACKWARD: tl.constexpr, HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, UNROLL: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    # A program's pixels are output pixels of one phase: (p, q), or (h, w) = (row, column) * stride + phase.
    PHASES_H: tl.constexpr = STRIDE_H if BACKWARD else 1
    PHASES_W: tl.constexpr = STRIDE_W if BACKWARD else 1
    STEP_H: tl.constexpr = 1 if BACKWARD else STRIDE_H
    STEP_W: tl.constexpr = 1 if BACKWARD else STRIDE_W
    index = program(WIDE)
    channel_tiles = tl.cdiv(output_channels, BLOCK_CHANNELS)
    channel = index % channel_tiles * BLOCK_CHANNELS + lanes(BLOCK_CHANNELS, WIDE)
    index = index // channel_tiles
    phase_h = index % PHASES_H
    phase_w = index // PHASES_H % PHASES_W
    pixel = index // (PHASES_H * PHASES_W) * BLOCK_PIXELS + lanes(BLOCK_PIXELS, WIDE)
    image, row, column = split_pixel(pixel, tl.cdiv(output_rows, PHASES_H), tl.cdiv(output_columns, PHASES_W))
    output_row = row * PHASES_H + phase_h
    output_column = column * PHASES_W + phase_w
    in_output = (image < images) & (output_row < output_rows) & (output_column < output_columns)
    in_channels = channel < output_channels
    inside = over_pixels(in_output, CHANNELS_LAST) & over_channels(in_channels, CHANNELS_LAST)

    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_CHANNELS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    # Forward, an output channel has one source channel; backward, it has MULTIPLIER of them, each with its own filter.
    for m in range(MULTIPLIER if BACKWARD else 1):
        source_channel = channel * MULTIPLIER + m if BACKWARD else channel // MULTIPLIER
        filter_channel = source_channel if BACKWARD else channel
        for r in range(R):
            shift_h, reads_h = tap_shift(r, phase_h, pad_h, STRIDE_H, DILATION_H, BACKWARD)
            source_row = row * STEP_H + shift_h
            in_rows = (source_row >= 0) & (source_row < source_rows) & reads_h
            for s in tl.range(0, S, loop_unroll_factor=UNROLL):
                shift_w, reads_w = tap_shift(s, phase_w, pad_w, STRIDE_W, DILATION_W, BACKWARD)
                source_column = column * STEP_W + shift_w
                in_columns = (source_column >= 0) & (source_column < source_columns) & reads_w
                mask = inside & over_pixels(in_rows & in_columns, CHANNELS_LAST)
                pixel_offset = image * source_n + source_row * source_h + source_column * source_w
                place = over_pixels(pixel_offset, CHANNELS_LAST) + over_channels(
                    source_channel * source_c, CHANNELS_LAST
                )
                values = tl.load(source + place, mask=mask, other=0.0).to(tl.float32)
                taps = weight + (filter_channel * weight_k + r * weight_r + s * weight_s)
                factors = tl.load(taps, mask=in_channels, other=0.0).to(tl.float32)
                sums += values * over_channels(factors, CHANNELS_LAST)
    if HAS_BIAS:
        sums += over_channels(tl.load(bias + channel, mask=in_channels, other=0.0).to(tl.float32), CHANNELS_LAST)
    output_offset = image * output_n + output_row * output_h + output_column * output_w
    place = over_pixels(output_offset, CHANNELS_LAST) + over_channels(channel * output_c, CHANNELS_LAST)
    tl.store(output + place, activate(sums, ACTIVATION).to(output.dtype.element_ty), mask=inside)


@triton.jit
def depthwise_backward_weight_kernel(
    grad_output,  # (N, K, P, Q)
    source,  # (N, C, H, W)
    partials,  # (parts, K * R * S + K) float32, the last K for the bias if HAS_BIAS
    pixels, rows, columns, source_rows, source_columns, output_channels, pad_h, pad_w, part_pixels, part_size,
    grad_n, grad_c, grad_h, grad_w, source_n, source_c, source_h, source_w,
    R: tl.constexpr, S: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr, MULTIPLIER: tl.constexpr, HAS_BIAS: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_TAPS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    TAP_TILES: tl.constexpr = (R * S + BLOCK_TAPS - 1) // BLOCK_TAPS
    index = program(WIDE)
    tap_tile = index % TAP_TILES
    tap = tap_tile * BLOCK_TAPS + lanes(BLOCK_TAPS, WIDE)
    index = index // TAP_TILES
    channel_tiles = tl.cdiv(output_channels, BLOCK_CHANNELS)
    channel = index % channel_tiles * BLOCK_CHANNELS + lanes(BLOCK_CHANNELS, WIDE)
    part = index // channel_tiles
    in_channels = channel < output_channels
    in_taps = tap < R * S
    shift_h = tap // S * DILATION_H - pad_h
    shift_w = tap % S * DILATION_W - pad_w
    tap_offset = along_middle(shift_h * source_h + shift_w * source_w)
    source_channel = along_channels(channel // MULTIPLIER * source_c, CHANNELS_LAST)
    grad_channel = along_channels(channel * grad_c, CHANNELS_LAST)
    inside = along_middle(in_taps) & along_channels(in_channels, CHANNELS_LAST)

    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_TAPS, BLOCK_CHANNELS), tl.float32)
        bias_sums = tl.zeros((BLOCK_PIXELS, 1, BLOCK_CHANNELS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_CHANNELS, BLOCK_TAPS, BLOCK_PIXELS), tl.float32)
        bias_sums = tl.zeros((BLOCK_CHANNELS, 1, BLOCK_PIXELS), tl.float32)
    first = part * part_pixels
    last = tl.minimum(first + part_pixels, pixels)
    for start in range(first, last, BLOCK_PIXELS):
        pixel = start + lanes(BLOCK_PIXELS, WIDE)
        in_part = pixel < last
        image, row, column = split_pixel(pixel, rows, columns)
        # NOTE: with an axis for the taps from the start; a tile of two axes would change threads through shared memory.
        grad_offset = along_pixels(image * grad_n + row * grad_h + column * grad_w, CHANNELS_LAST)
        grad_mask = along_pixels(in_part, CHANNELS_LAST) & along_channels(in_channels, CHANNELS_LAST)
        gradients = tl.load(grad_output + (grad_offset + grad_channel), mask=grad_mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            bias_sums += gradients
        source_row = along_pixels(row * STRIDE_H, CHANNELS_LAST) + along_middle(shift_h)
        source_column = along_pixels(column * STRIDE_W, CHANNELS_LAST) + along_middle(shift_w)
        in_rows = (source_row >= 0) & (source_row < source_rows)
        in_columns = (source_column >= 0) & (source_column < source_columns)
        mask = in_rows & in_columns & along_pixels(in_part, CHANNELS_LAST) & inside
        pixel_offset = image * source_n + row * STRIDE_H * source_h + column * STRIDE_W * source_w
        place = along_pixels(pixel_offset, CHANNELS_LAST) + tap_offset + source_channel
        values = tl.load(source + place, mask=mask, other=0.0).to(tl.float32)
        sums += values * gradients

    # The lanes along the pixels are added last, in a tree that is always the same.
    partial = partials + part * part_size
    if CHANNELS_LAST:
        weight_sums = tl.trans(tl.sum(sums, axis=0))
        channel_sums = tl.sum(tl.sum(bias_sums, axis=0), axis=0)
    else:
        weight_sums = tl.sum(sums, axis=2)
        channel_sums = tl.sum(tl.sum(bias_sums, axis=2), axis=1)
    place = channel[:, None] * (R * S) + tap[None, :]
    tl.store(partial + place, weight_sums, mask=in_channels[:, None] & in_taps[None, :])
    if HAS_BIAS:
        tl.store(partial + output_channels * (R * S) + channel, channel_sums, mask=in_channels & (tap_tile == 0))


# ------------------------------------------------------------------------------------------------------------- settings


@remembered
def correlate_settings(channels: int, pixels: int, columns: int, channels_last: bool) -> tuple[Settings, ...]:
    """Tiles of the forward pass and the input gradient.

    In channels_last a warp should read whole 128-byte lines of channels, and the factors, which are loaded one by one,
    should serve several pixels. In NCHW a warp should read long runs of pixels. Where no vector can be loaded, the
    addresses leave no registers for a large tile; for filters of many columns ptxas spills those of a small one.
    """
    if channels_last:
        block_channels = min(next_power_of_2(channels), 64)
        tiles = (2048, 1024, 4096) if channels % 16 == 0 else (512, 1024)
    else:
        block_channels = min(next_power_of_2(channels), 4)
        tiles = (512, 1024, 2048) if columns <= 5 else (1024, 512, 2048)
    blocks = ((min(tile // block_channels, next_power_of_2(pixels)), block_channels) for tile in tiles)
    return unique(settings(4, BLOCK_PIXELS=pixels, BLOCK_CHANNELS=channels) for pixels, channels in blocks)


@remembered
def backward_weight_settings(channels: int, taps: int, channels_last: bool) -> tuple[Settings, ...]:
    """Tiles of the weight gradient: pixels x taps x channels accumulators, at most 64 registers a thread."""
    block_taps = min(next_power_of_2(taps), 32)
    block_channels = min(next_power_of_2(channels), 32 if channels_last else 4)
    blocks = (max(1, tile // (block_taps * block_channels)) for tile in (4096, 2048, 8192))
    return unique(
        settings(4, BLOCK_PIXELS=pixels, BLOCK_TAPS=block_taps, BLOCK_CHANNELS=block_channels) for pixels in blocks
    )


# -------------------------------------------------------------------------------------------------------------- entries


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
    """act(conv(input, weight) + bias): input (N, C, H, W), weight (K, 1, R, S), bias (K) -> (N, K, P, Q)."""
    problem = make_problem(input.shape, weight.shape, geometry, (input, weight, bias))
    check_bias(bias, problem.K)
    channels_last = result_is_channels_last(input, weight)
    output = empty(problem.output_size, input, channels_last)
    _correlate(problem, dense(input, channels_last), weight, bias, output, activation, channels_last, backward=False)
    return output


def backward_input(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    """The gradient of `forward` with respect to its input, of size `input_size`, in the memory format asked for."""
    problem = make_problem(input_size, weight.shape, geometry, (grad_output, weight), grad_output.shape)
    grad_input = empty(problem.input_size, grad_output, channels_last)
    _correlate(problem, dense(grad_output, channels_last), weight, None, grad_input, 0, channels_last, backward=True)
    return grad_input


def _correlate(
    problem: Problem,
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    activation: int,
    channels_last: bool,
    backward: bool,
) -> None:
    if output.numel() == 0:
        return
    images, channels, rows, columns = output.shape
    phases_h, phases_w = problem.stride if backward else (1, 1)
    pixels = images * ceil_div(rows, phases_h) * ceil_div(columns, phases_w)

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(pixels, chosen.blocks["BLOCK_PIXELS"]) * phases_h * phases_w
        return tiles * ceil_div(channels, chosen.blocks["BLOCK_CHANNELS"])

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
        "output_channels": channels,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[1],
        **strides_of("source", source),
        "weight_k": weight.stride(0),
        "weight_r": weight.stride(2),
        "weight_s": weight.stride(3),
        **strides_of("output", output),
        **filter_constants(problem),
        "MULTIPLIER": problem.K // problem.C,
        "BACKWARD": backward,
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
        "CHANNELS_LAST": channels_last,
        "UNROLL": unrolled_columns(problem),
        "WIDE": is_wide(source, output),
    }
    candidates = correlate_settings(channels, pixels, problem.S, channels_last)
    launching.run(depthwise_correlate_kernel, candidates, programs, arguments)


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
    # Both tensors are read in one layout; the gradient is copied if it lies otherwise.
    channels_inner = suggests_channels_last(input)
    source, gradients = dense(input, channels_inner), dense(grad_output, channels_inner)

    def programs(chosen: Settings) -> int:
        tap_tiles = ceil_div(problem.taps, chosen.blocks["BLOCK_TAPS"])
        return partials.parts * tap_tiles * ceil_div(problem.K, chosen.blocks["BLOCK_CHANNELS"])

    arguments: dict[str, Any] = {
        "grad_output": gradients,
        "source": source,
        **partials.arguments(),
        "pixels": problem.output_pixels,
        "rows": problem.P,
        "columns": problem.Q,
        "source_rows": problem.H,
        "source_columns": problem.W,
        "output_channels": problem.K,
        "pad_h": problem.padding[0],
        "pad_w": problem.padding[1],
        **strides_of("grad", gradients),
        **strides_of("source", source),
        **filter_constants(problem),
        "MULTIPLIER": problem.K // problem.C,
        "HAS_BIAS": with_bias,
        "CHANNELS_LAST": channels_inner,
        "WIDE": is_wide(gradients, source, partials.workspace),
    }
    candidates = backward_weight_settings(problem.K, problem.taps, channels_inner)
    launching.run(depthwise_backward_weight_kernel, candidates, programs, arguments)
    return partials.sum()
