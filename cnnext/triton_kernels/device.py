"""What the kernels share on the device: tiles of pixels and channels, where a tap reads, and the activations.

Every tile has one axis of pixels and one of channels. In channels_last memory the channels are innermost, so a tile is
(pixels, channels); in NCHW the pixels of a row are, so it is (channels, pixels). Triton spreads the last axis over
neighbouring threads, hence `over_pixels` and `over_channels` instead of `[:, None]` in the kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activate",
    "along_channels",
    "along_middle",
    "along_pixels",
    "lanes",
    "over_channels",
    "over_pixels",
    "program",
    "split_pixel",
    "tap_shift",
    "taps_read",
]


@triton.jit
def program(WIDE: tl.constexpr):
    """Index of this program; everything computed from it has 64 bits if WIDE."""
    return tl.program_id(0).to(tl.int64 if WIDE else tl.int32)


@triton.jit
def lanes(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """0, ..., BLOCK - 1."""
    return tl.arange(0, BLOCK).to(tl.int64 if WIDE else tl.int32)


@triton.jit
def over_pixels(values, CHANNELS_LAST: tl.constexpr):
    """Values of pixels, to be broadcast over the channels of a tile."""
    if CHANNELS_LAST:
        return values[:, None]
    else:
        return values[None, :]


@triton.jit
def over_channels(values, CHANNELS_LAST: tl.constexpr):
    """Values of channels, to be broadcast over the pixels of a tile."""
    if CHANNELS_LAST:
        return values[None, :]
    else:
        return values[:, None]


# Tiles of three axes: taps or groups stand between the pixels and the channels.


@triton.jit
def along_pixels(values, CHANNELS_LAST: tl.constexpr):
    """Values of pixels as the outer axis in channels_last, the inner one in NCHW."""
    if CHANNELS_LAST:
        return values[:, None, None]
    else:
        return values[None, None, :]


@triton.jit
def along_channels(values, CHANNELS_LAST: tl.constexpr):
    """Values of channels as the inner axis in channels_last, the outer one in NCHW."""
    if CHANNELS_LAST:
        return values[None, None, :]
    else:
        return values[:, None, None]


@triton.jit
def along_middle(values):
    """Values of the middle axis."""
    return values[None, :, None]


@triton.jit
def split_pixel(pixel, rows, columns):
    """The image, row and column of a pixel counted through all images."""
    return pixel // (rows * columns), pixel // columns % rows, pixel % columns


@triton.jit
def tap_shift(tap, phase, padding, STRIDE: tl.constexpr, DILATION: tl.constexpr, BACKWARD: tl.constexpr):
    """Where tap `tap` reads, on one axis: (shift, whether it reads at all).

    Forward, output u reads input u * STRIDE + shift. Backward, the gradient of input u * STRIDE + phase reads the
    gradient of output u + shift, but only through the taps that reach a multiple of STRIDE: the same ones for all u,
    which is why the pixels of one phase share a program and no lane tests divisibility.
    """
    if BACKWARD:
        distance = phase + padding - tap * DILATION
        # Exact where it is used, so it does not matter which way a negative quotient is rounded.
        return distance // STRIDE, distance % STRIDE == 0
    else:
        return tap * DILATION - padding, phase >= 0  # always


@triton.jit
def taps_read(
    phase,
    padding,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    TAP_STEP: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Which taps read on one axis: every TAP_STEP-th from the first; (first, count).

    TAP_STEP is 1 forward and STRIDE / gcd(STRIDE, DILATION) backward: `tap_shift` repeats itself with that period.
    """
    first = phase * 0 + TAPS
    for tap in tl.static_range(TAP_STEP):
        _, reads = tap_shift(tap, phase, padding, STRIDE, DILATION, BACKWARD)
        first = tl.where(reads, tap, first)
    return first, (TAPS - first + TAP_STEP - 1) // TAP_STEP


# ---------------------------------------------------------------------------------------------------------- activations
# On float32, with the semantics of torch.nn.functional: NaN stays NaN, silu, mish and hardswish of -inf are NaN.


@triton.jit
def _sigmoid(x):
    # exp of a number that is not positive, so that neither tail overflows.
    z = tl.exp(-tl.abs(x))
    return tl.where(x < 0, z, 1.0) / (1.0 + z)


@triton.jit
def _tanh(x):
    # 1 - 2 / (exp(2 |x|) + 1) cancels near 0; there an odd polynomial (minimax on [-0.625, 0.625]) keeps the relative
    # accuracy.
    magnitude = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    square = x * x
    p = -5.69737516e-3 * square + 2.06325371e-2
    p = p * square - 5.37377931e-2
    p = p * square + 1.33314207e-1
    p = p * square - 3.33332807e-1
    small = x + x * (square * p)
    return tl.where(magnitude < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def _mish(x):
    # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2). Above 20 the factor rounds to 1; the cap keeps e * e finite.
    e = tl.exp(tl.where(x > 20.0, 20.0, x))
    q = e * (e + 2.0)
    return x * (q / (q + 2.0))


@triton.jit
def _relu6(x):
    # Comparisons that a NaN fails, so that it passes through.
    return tl.where(x < 0, 0.0, tl.where(x > 6.0, 6.0, x))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """Activation number ACTIVATION of `cnnext.ops.ACTIVATIONS`."""
    if ACTIVATION == 1:
        return tl.where(x < 0, 0.0, x)
    elif ACTIVATION == 2:
        return _relu6(x)
    elif ACTIVATION == 3:
        return tl.where(x < 0, 0.01 * x, x)
    elif ACTIVATION == 4:
        return _sigmoid(x)
    elif ACTIVATION == 5:
        return _tanh(x)
    elif ACTIVATION == 6:
        return _mish(x)
    elif ACTIVATION == 7:
        return x * _sigmoid(x)
    elif ACTIVATION == 8:
        return x * (_relu6(x + 3.0) / 6.0)
    else:
        return x
