"""Sweeps the CPU kernels of inference of one instruction set, called directly, and says what failed.

    python -m tests.fused_sweep --isa avx2 [--kernel separable] [--library PATH]

As tests/kernel_sweep.py: operands lie under guard, outputs in poisoned memory, and every value is an integer that each
dtype holds exactly, so results are compared to the bit. Exit status 0: all is right; 1: something failed, as printed;
77: this machine does not have the instruction set.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cnnext.inference_ops import pack_filter
from cnnext.ops import ACTIVATIONS
from tests.cases import Case, case, generator
from tests.kernel_library import (
    LAYOUT_NUMBERS,
    PARALLEL,
    SPLITS,
    ConvParams,
    Parallel,
    Runner,
    Strides4,
    dense_strides,
    start_sweep,
    sweep_parser,
)
from tests.reference import DTYPES, activate

KERNELS = ("conv", "add_residual", "separable")

# Rectangles of whole rows and of parts of one, blocks of the depth, panels shared out among threads, tails of each.
SEPARABLE_CASES = (
    case("one_pixel", (1, 1, 1, 1), 1, 1, groups=1),
    case("mobilenet_14", (1, 48, 14, 14), 70, 3, padding=1, groups=48),
    case("mobilenet_14_s2", (2, 33, 15, 13), 24, 3, stride=2, padding=1, groups=33),
    case("panels_shared_out", (1, 40, 7, 7), 200, 5, padding=2, groups=40),
    case("depth_beyond_one_block", (1, 1030, 3, 4), 9, 3, padding=1, groups=1030),
    case("row_beyond_one_rectangle", (1, 520, 3, 131), 5, 3, stride=(1, 1), padding=1, groups=520),
    case("row_beyond_one_rectangle_s2", (1, 520, 3, 263), 5, 3, stride=(1, 2), padding=1, groups=520),
    case("dilated", (2, 8, 11, 9), 17, 3, padding=2, dilation=2, groups=8),
)
CONV_CASES = (
    case("pointwise", (2, 24, 7, 9), 70, 1),
    case("pointwise_few_pixels", (1, 24, 2, 3), 70, 1),
    case("dense", (1, 20, 9, 8), 65, 3, padding=1),
    case("dense_depth_beyond_one_block", (1, 130, 5, 5), 20, 3, padding=1),
    case("stem", (2, 3, 37, 35), 32, 3, stride=2, padding=1),
    case("grouped", (1, 96, 6, 7), 128, 3, padding=1, groups=2),
    case("narrow_groups", (1, 16, 6, 7), 16, 3, padding=1, groups=4),
)
CASES = {"conv": CONV_CASES, "add_residual": CONV_CASES, "separable": SEPARABLE_CASES}


class FusedOperands(ctypes.Structure):
    """csrc/cpu/kernels.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("x_layout", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in ("w", "packed_w", "bias", "residual")),
        ("residual_strides", Strides4),
        ("y", ctypes.c_void_p),
    ]


class SeparableParams(ctypes.Structure):
    """csrc/cpu/kernels.h."""

    _fields_ = [
        ("depthwise", ConvParams),
        ("pointwise", ConvParams),
        ("depthwise_w", ctypes.c_void_p),
        ("depthwise_bias", ctypes.c_void_p),
    ]


@dataclass(frozen=True)
class Variant:
    """How a case is run."""

    dtype: torch.dtype
    layout: str
    x_layout: str
    gap: int
    split: str
    residual: bool
    packed: bool
    biased: bool


def _variants(kernel: str) -> Iterator[Variant]:
    """Every dtype with every layout; the other choices take turns, so that each pair of them occurs."""
    turns = itertools.cycle(itertools.product((True, False), (True, False), (0, 3), (True, True, False)))
    splits = itertools.cycle(SPLITS)
    layouts = (("nhwc", "nhwc"),) if kernel == "separable" else (("nhwc", "nhwc"), ("nchw", "nchw"), ("nhwc", "nchw"))
    for dtype, (layout, x_layout) in itertools.product(DTYPES, layouts):
        for _ in range(6):
            residual, packed, gap, biased = next(turns)
            residual |= kernel == "add_residual"
            yield Variant(dtype, layout, x_layout, gap, next(splits), residual, packed, biased)


class FusedRunner(Runner):
    """Runs a kernel on one case and compares its output with float64."""

    def check(self, kernel: str, entry: Case, variant: Variant, activation: int) -> None:
        seed = generator(f"{kernel}/{entry}")

        def integers(*shape: int, limit: int = 2) -> torch.Tensor:
            return torch.randint(-limit, limit + 1, shape, generator=seed).to(variant.dtype)

        n, k, p, q = entry.output_shape
        middle = entry.c if kernel == "separable" else k
        x = integers(*entry.input_shape)
        # Few products are not zero, so that sums stay exact in bfloat16.
        w = integers(middle, entry.c // entry.groups, entry.r, entry.s, limit=1)
        w = w * (torch.rand(w.shape, generator=seed) < min(1.0, 24 / w[0].numel()))
        bias = integers(middle) if variant.biased else None
        geometry = {"stride": entry.stride, "padding": entry.padding, "dilation": entry.dilation}
        value = F.conv2d(
            x.double(), w.double(), None if bias is None else bias.double(), **geometry, groups=entry.groups
        )
        pointwise, pointwise_bias = w, bias
        if kernel == "separable":
            value = activate(value, "relu6").to(variant.dtype).double()
            pointwise = integers(k, entry.c, 1, 1, limit=1)
            pointwise *= torch.rand(pointwise.shape, generator=seed) < min(1.0, 24 / entry.c)
            pointwise_bias = integers(k) if variant.biased else None
            shift = None if pointwise_bias is None else pointwise_bias.double()
            value = F.conv2d(value, pointwise.double(), shift)
        residual = integers(n, k, p, q) if variant.residual else None
        before = value.to(variant.dtype)
        if residual is not None:
            value = value + residual.double()
        name = ACTIVATIONS[activation]
        expected = activate(value, None if name == "none" else name).to(variant.dtype)

        params = self._params(entry, x.dtype, variant.layout, variant.gap, activation)
        params.x_strides = Strides4(*dense_strides(entry.input_shape, variant.x_layout, variant.gap))
        # Gaps in the residual alone, in all tensors, and in none.
        residual_gap = 0 if variant.packed and not variant.gap else 5 - variant.gap
        residual_strides = dense_strides(entry.output_shape, variant.layout, residual_gap)
        groups = 1 if kernel == "separable" else entry.groups
        placed = {
            "x": self._place("x", x, dense_strides(entry.input_shape, variant.x_layout, variant.gap)),
            "w": self._place("w", pointwise, pointwise.stride()),
            "packed_w": self._place("packed", pack_filter(pointwise, groups), (1,)) if variant.packed else None,
            "bias": self._place("bias", pointwise_bias, (1,)),
            "residual": self._place("residual", residual, residual_strides),
        }
        y_strides = dense_strides(entry.output_shape, variant.layout, variant.gap)
        output = self._place_in_arena("y", entry.output_shape, y_strides, x.dtype)
        if kernel == "add_residual":
            output.tensor.copy_(before)
        pointers = {key: None if tensor is None else tensor.data_ptr() for key, tensor in placed.items()}
        operands = FusedOperands(
            x_layout=LAYOUT_NUMBERS[variant.x_layout],
            residual_strides=Strides4(*residual_strides),
            y=output.tensor.data_ptr(),
            **pointers,
        )
        first: ConvParams | SeparableParams = params
        if kernel == "separable":
            first = self._separable_params(entry, params, w, bias)
        address = getattr(self.table.fused, kernel)
        signature = ctypes.CFUNCTYPE(
            None, ctypes.POINTER(type(first)), ctypes.POINTER(Parallel), ctypes.POINTER(FusedOperands)
        )
        signature(address)(ctypes.byref(first), ctypes.byref(PARALLEL[variant.split]), ctypes.byref(operands))
        assert output.arena.untouched_beside(output.tensor), "wrote beside its output"
        wrong = output.tensor != expected
        assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} values are wrong"

    def _separable_params(
        self, entry: Case, params: ConvParams, w: torch.Tensor, bias: torch.Tensor | None
    ) -> SeparableParams:
        depthwise_w = self._place("depthwise_w", w, w.stride())
        depthwise_bias = self._place("depthwise_bias", bias, (1,))
        assert depthwise_w is not None
        _, _, p, q = entry.output_shape
        depthwise, pointwise = ConvParams.from_buffer_copy(params), ConvParams.from_buffer_copy(params)
        depthwise.K, depthwise.activation = entry.c, ACTIVATIONS.index("relu6")
        pointwise.H, pointwise.W, pointwise.R, pointwise.S, pointwise.groups = p, q, 1, 1, 1
        pointwise.stride_h = pointwise.stride_w = pointwise.dilation_h = pointwise.dilation_w = 1
        pointwise.pad_h = pointwise.pad_w = 0
        address = None if depthwise_bias is None else depthwise_bias.data_ptr()
        return SeparableParams(depthwise, pointwise, depthwise_w.data_ptr(), address)


def run(runner: FusedRunner, kernels: Sequence[str], stop_at_first: bool) -> int:
    """Runs every case and prints what fails; the number of failures."""
    failures = count = 0
    for kernel in kernels:
        activations = itertools.cycle(map(ACTIVATIONS.index, ("none", "relu", "relu6")))
        for entry, variant in itertools.product(CASES[kernel], tuple(_variants(kernel))):
            if kernel == "conv" and variant.layout != variant.x_layout and entry.groups > 1:
                continue  # the binding turns such an input itself
            count += 1
            try:
                runner.check(kernel, entry, variant, next(activations))
            except AssertionError as error:
                failures += 1
                print(f"FAILED {kernel}: {entry} {variant}: {error}", flush=True)
                if stop_at_first or failures >= 12:
                    return failures
    print(f"{count} checks, {failures} failures")
    return failures


def main() -> int:
    parser = sweep_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--kernel", choices=KERNELS)
    options = parser.parse_args()
    table = start_sweep(options)
    kernels = (options.kernel,) if options.kernel else KERNELS
    runner = FusedRunner(table, at_end=not options.at_start)
    return 1 if run(runner, kernels, options.stop_at_first) else 0


if __name__ == "__main__":
    sys.exit(main())
