"""1x1 convolution in Triton: a matrix product over the channels of every pixel, with bias and activation.

    forward          y[m, k]  = act(bias[k] + sum_c x[m, c] w[k, c])
    backward_input   dx[m, c] = sum_k dy[m, k] w[k, c]
    backward_weight  dw[k, c] = sum_m dy[m, k] x[m, c]

m counts pixels through all images. Where the pixels of an image lie at one distance from each other, in the source and
in the output, a row of the product is found by one division: always, unless there is a stride, a padding or a slice of
a wider image. Those, and the weight gradient, are the case of one tap of grouped.py.

A program owns a tile of pixels x outputs, (pixels, outputs) in channels_last and (outputs, pixels) in NCHW, as there.
Limit: the copy bandwidth up to some 300 channels in fp16, beyond that the matrix units (predicted).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from cnnext.ops import Geometry
from cnnext.triton_kernels import grouped, launching
from cnnext.triton_kernels.device import activate, lanes, over_channels, over_pixels, program
from cnnext.triton_kernels.launching import Settings
from cnnext.triton_kernels.problem import (
    Problem,
    ceil_div,
    check_bias,
    dense,
    empty,
    input_precision,
    is_wide,
    make_problem,
    result_is_channels_last,
)

__all__ = ["backward_input", "backward_weight", "forward"]

#: The product over pixels splits as that of any filter does.
backward_weight = grouped.backward_weight


@triton.jit
def pointwise_kernel(
    source,  # (images, inputs, plane_pixels), forward x, backward dy
    weight,  # (outputs, inputs)
    bias,  # (outputs) if HAS_BIAS
    output,  # (images, outputs, plane_pixels)
    pixels, plane_pixels, inputs, outputs,
    source_n, source_c, source_p, weight_o, weight_i, output_n, output_c, output_p,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, CHANNELS_LAST: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_OUTPUTS: tl.constexpr, BLOCK_DEPTH: tl.constexpr,
):  # fmt: skip
    index = program(WIDE)
    # Programs that read the same source pixels are neighbours, so that they meet in L2.
    output_tiles = tl.cdiv(outputs, BLOCK_OUTPUTS)
    o = index % output_tiles * BLOCK_OUTPUTS + lanes(BLOCK_OUTPUTS, WIDE)
    pixel = index // output_tiles * BLOCK_PIXELS + lanes(BLOCK_PIXELS, WIDE)
    image = pixel // plane_pixels
    place = pixel % plane_pixels
    in_pixels = over_pixels(pixel < pixels, CHANNELS_LAST)
    in_outputs = over_channels(o < outputs, CHANNELS_LAST)
    rows = source + over_pixels(image * source_n + place * source_p, CHANNELS_LAST)
    filters = weight + over_channels(o * weight_o, CHANNELS_LAST)
    if CHANNELS_LAST:
        sums = tl.zeros((BLOCK_PIXELS, BLOCK_OUTPUTS), tl.float32)
    else:
        sums = tl.zeros((BLOCK_OUTPUTS, BLOCK_PIXELS), tl.float32)
    for start in range(0, inputs, BLOCK_DEPTH):
        i = start + lanes(BLOCK_DEPTH, WIDE)
        in_depth = i < inputs
        values = tl.load(
            rows + over_channels(i * source_c, CHANNELS_LAST),
            mask=in_pixels & over_channels(in_depth, CHANNELS_LAST),
            other=0.0,
        )
        # The depth takes the place of the pixels in the tile of the filter.
        factors = tl.load(
            filters + over_pixels(i * weight_i, CHANNELS_LAST),
            mask=in_outputs & over_pixels(in_depth, CHANNELS_LAST),
            other=0.0,
        )
        if CHANNELS_LAST:
            sums = tl.dot(values, factors, sums, input_precision=PRECISION)
        else:
            sums = tl.dot(factors, values, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += over_channels(tl.load(bias + o, mask=o < outputs, other=0.0).to(tl.float32), CHANNELS_LAST)
    target = over_pixels(image * output_n + place * output_p, CHANNELS_LAST) + over_channels(
        o * output_c, CHANNELS_LAST
    )
    tl.store(output + target, activate(sums, ACTIVATION).to(output.dtype.element_ty), mask=in_pixels & in_outputs)


def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
    """act(conv(input, weight) + bias): input (N, C, H, W), weight (K, C, 1, 1), bias (K) -> (N, K, P, Q)."""
    problem = _make_problem(input.shape, weight.shape, geometry, (input, weight, bias))
    check_bias(bias, problem.K)
    channels_last = result_is_channels_last(input, weight)
    output = empty(problem.output_size, input, channels_last)
    _correlate(problem, dense(input, channels_last), weight, bias, output, activation, channels_last, backward=False)
    return output


def backward_input(
    grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
) -> Tensor:
    """The gradient of `forward` with respect to its input, of size `input_size`, in the memory format asked for."""
    problem = _make_problem(input_size, weight.shape, geometry, (grad_output, weight), grad_output.shape)
    grad_input = empty(problem.input_size, grad_output, channels_last)
    _correlate(problem, dense(grad_output, channels_last), weight, None, grad_input, 0, channels_last, backward=True)
    return grad_input


def _make_problem(input_size: Sequence[int], weight_size: Sequence[int], *rest: Any) -> Problem:
    if tuple(weight_size[2:]) != (1, 1):
        raise RuntimeError(f"pointwise_conv2d expects a weight of size [K, C, 1, 1], but got {[*weight_size]}")
    return make_problem(input_size, weight_size, *rest)


def _is_one_distance(tensor: Tensor) -> bool:
    """Whether all pixels of an image lie at one distance from each other."""
    return tensor.shape[2] == 1 or tensor.stride(2) == tensor.shape[3] * tensor.stride(3)


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
    moves_pixels = problem.stride != (1, 1) or problem.padding != (0, 0)
    if moves_pixels or not (_is_one_distance(source) and _is_one_distance(output)):
        grouped.correlate(problem, source, weight, bias, output, activation, channels_last, backward)
        return
    if output.numel() == 0:
        return
    inputs, outputs = source.shape[1], output.shape[1]
    plane_pixels = problem.H * problem.W
    pixels = problem.N * plane_pixels
    precision = input_precision(source.dtype)

    def programs(chosen: Settings) -> int:
        tiles = ceil_div(pixels, chosen.blocks["BLOCK_PIXELS"])
        return tiles * ceil_div(outputs, chosen.blocks["BLOCK_OUTPUTS"])

    weight_k, weight_c = weight.stride()[:2]
    arguments: dict[str, Any] = {
        "source": source,
        "weight": weight,
        "bias": weight if bias is None else bias,
        "output": output,
        "pixels": pixels,
        "plane_pixels": plane_pixels,
        "inputs": inputs,
        "outputs": outputs,
        "source_n": source.stride(0),
        "source_c": source.stride(1),
        "source_p": source.stride(3),
        "weight_o": weight_c if backward else weight_k,
        "weight_i": weight_k if backward else weight_c,
        "output_n": output.stride(0),
        "output_c": output.stride(1),
        "output_p": output.stride(3),
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation,
        "CHANNELS_LAST": channels_last,
        "PRECISION": precision,
        "WIDE": is_wide(source, weight, output),
    }
    # In NCHW three stages of copies spill on sm_120.
    long_steps = not channels_last and source.dtype.itemsize == 2
    candidates = grouped.product_settings(pixels, outputs, inputs, source.dtype, precision, long_steps)
    launching.run(pointwise_kernel, candidates, programs, arguments)
