"""Sweeps the CPU kernels of one instruction set, called directly, and says what failed.

    python -m tests.kernel_sweep --isa avx2 --family depthwise [--library PATH]

It runs in a process of its own, because a kernel that leaves its operands ends that process. Exit status 0: all is
right; 1: something failed, as printed; 77: this machine does not have the instruction set.
"""

from __future__ import annotations

import functools
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from cnnext.ops import ACTIVATIONS
from tests.cases import CASES, Case, case, generator, integer_operands, random_grad, random_operands
from tests.kernel_library import SPLITS, Runner, start_sweep, sweep_parser
from tests.reference import (
    DTYPES,
    Expected,
    ExpectedGradients,
    activate,
    assert_same_bits,
    assert_within,
    expect_forward,
    expect_gradients,
)

LAYOUTS = ("nchw", "nhwc")
DIRECTIONS = ("forward", "backward_input", "backward_weight")


@functools.cache
def _exact_results(entry: Case) -> tuple[dict[bool, Expected], ExpectedGradients]:
    """What integer operands give, with and without a bias: the same values in every dtype."""
    x, w, bias = integer_operands(entry, torch.float64)
    grad = random_grad(entry, torch.float64, integers=True)
    forward = {True: expect_forward(entry, x, w, bias), False: expect_forward(entry, x, w, None)}
    return forward, expect_gradients(entry, grad, x, w, bias)


@functools.lru_cache(maxsize=8)
def _rounded_results(entry: Case, dtype: torch.dtype) -> tuple[Expected, ExpectedGradients]:
    x, w, bias = random_operands(entry, dtype)
    return expect_forward(entry, x, w, bias), expect_gradients(entry, random_grad(entry, dtype), x, w, bias)


@dataclass
class Sweep:
    """The checks of one family; each yields its name and a call that raises if the kernel is wrong."""

    runner: Runner
    family: str
    directions: tuple[str, ...] = DIRECTIONS

    def exact_values(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Integers, to the last bit, for every case, dtype and layout, with rows apart and together."""
        splits = itertools.cycle(SPLITS)
        for entry in CASES[self.family]:
            for dtype, layout in itertools.product(DTYPES, LAYOUTS):
                for gap in (0, 3):
                    split = next(splits)
                    for direction in self.directions:
                        name = f"{direction} {entry} {dtype} {layout} gap {gap} {split}"
                        yield name, lambda a=(direction, entry, dtype, layout, gap, split): self._exact(*a)

    def _exact(self, direction: str, entry: Case, dtype: torch.dtype, layout: str, gap: int, split: str) -> None:
        x, w, bias = integer_operands(entry, dtype)
        grad = random_grad(entry, dtype, integers=True)
        run = {"layout": layout, "split": split, "gap": gap}
        outputs, expected = _exact_results(entry)
        if direction == "forward":
            for used in (bias, None):
                actual = self.runner.forward(self.family, entry, x=x, w=w, bias=used, **run)
                assert_same_bits(actual, outputs[used is not None].value, "output")
            return
        if direction == "backward_input":
            actual = self.runner.backward_input(self.family, entry, grad=grad, w=w, **run)
            assert_same_bits(actual, expected.input.value, "input gradient")
            return
        for wanted in ((True, True), (True, False), (False, True)):
            weight, bias_grad = self.runner.backward_weight(self.family, entry, grad=grad, x=x, wanted=wanted, **run)
            if weight is not None:
                assert_same_bits(weight, expected.weight.value, "weight gradient")
            if bias_grad is not None:
                assert_same_bits(bias_grad, expected.bias.value, "bias gradient")

    def rounded_values(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Normally distributed values: within the bound, and the same bits however the work is split."""
        for entry in CASES[self.family]:
            for dtype, layout in itertools.product(DTYPES, LAYOUTS):
                yield f"rounding {entry} {dtype} {layout}", lambda a=(entry, dtype, layout): self._rounded(*a)

    def _rounded(self, entry: Case, dtype: torch.dtype, layout: str) -> None:
        x, w, bias = random_operands(entry, dtype)
        grad = random_grad(entry, dtype)
        results: list[tuple[torch.Tensor, ...]] = []
        for split in SPLITS:
            run = {"layout": layout, "split": split}
            outputs: list[torch.Tensor] = []
            if "forward" in self.directions:
                outputs.append(self.runner.forward(self.family, entry, x=x, w=w, bias=bias, **run))
            if "backward_input" in self.directions:
                outputs.append(self.runner.backward_input(self.family, entry, grad=grad, w=w, **run))
            if "backward_weight" in self.directions:
                weight, bias_grad = self.runner.backward_weight(self.family, entry, grad=grad, x=x, **run)
                assert weight is not None
                assert bias_grad is not None
                outputs += [weight, bias_grad]
            results.append(tuple(outputs))
        for other in results[1:]:
            for first, second in zip(results[0], other, strict=True):
                assert torch.equal(first, second), "the bits depend on how the work is split"
        output, gradients = _rounded_results(entry, dtype)
        expected: dict[str, list[Expected]] = {
            "forward": [output],
            "backward_input": [gradients.input],
            "backward_weight": [gradients.weight, gradients.bias],
        }
        wanted = [value for direction in self.directions for value in expected[direction]]
        for actual, value in zip(results[0], wanted, strict=True):
            assert_within(actual, value, "result")

    def infinities(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """An infinite edge of one operand, where the other is 1: what no tap brings together with it stays finite."""
        if self.family != "depthwise":
            return
        for entry, dtype, layout in itertools.product(CASES[self.family], (torch.float32, torch.bfloat16), LAYOUTS):
            for direction in self.directions:
                name = f"{direction} {entry} {dtype} {layout}"
                yield name, lambda a=(direction, entry, dtype, layout): self._infinite(*a)

    def _infinite(self, direction: str, entry: Case, dtype: torch.dtype, layout: str) -> None:
        x, w, _ = (torch.ones_like(operand) for operand in random_operands(entry, dtype))
        grad = torch.ones_like(random_grad(entry, dtype))
        bias = torch.ones(entry.weight_shape[0], dtype=dtype)
        operand = grad if direction == "backward_input" else x
        for edge in ((-1, slice(None)), (slice(None), -1), (0, slice(None)), (slice(None), 0)):
            mask = torch.zeros_like(operand)
            mask[:, :, edge[0], edge[1]] = 1
            infinite = torch.where(mask == 1, torch.inf, operand)
            if direction == "forward":
                actual: torch.Tensor | None = self.runner.forward(self.family, entry, layout, infinite, w, None)
                reached = expect_forward(entry, mask, w, None).value
            elif direction == "backward_input":
                actual = self.runner.backward_input(self.family, entry, layout, infinite, w)
                reached = expect_gradients(entry, mask, x, w, bias).input.value
            else:
                actual, _ = self.runner.backward_weight(self.family, entry, layout, grad, infinite)
                reached = expect_gradients(entry, grad, mask, w, bias).weight.value
            assert actual is not None
            assert torch.equal(actual.isfinite(), reached == 0), "read beyond a tap's reach"
            assert not actual.isnan().any()

    def activations(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Each activation in the epilogue, on sums from far below to far above its kinks."""
        if "forward" not in self.directions:
            return
        for index, dtype, layout in itertools.product(range(1, len(ACTIVATIONS)), DTYPES, LAYOUTS):
            name = f"{ACTIVATIONS[index]} {dtype} {layout}"
            yield name, lambda a=(index, dtype, layout): self._activation(*a)

    def _activation(self, index: int, dtype: torch.dtype, layout: str) -> None:
        for entry in CASES[self.family][2:5]:
            x, w, bias = random_operands(entry, dtype, tag="activation")
            x = x * 4
            for used in (bias, None):
                actual = self.runner.forward(self.family, entry, layout, x, w, used, index, split="three_uneven")
                assert_within(actual, expect_forward(entry, x, w, used, ACTIVATIONS[index]), "output")
            x, w, bias = integer_operands(entry, dtype)
            actual = self.runner.forward(self.family, entry, layout, x, w, bias, index)
            assert_within(actual, expect_forward(entry, x, w, bias, ACTIVATIONS[index]), "output on integers")

    def scalars(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """One tap of weight one passes values through the epilogue: whole ranges of them, infinities and NaN too."""
        if "forward" not in self.directions:
            return
        for dtype, layout in itertools.product(DTYPES, LAYOUTS):
            yield f"every value of {dtype} {layout}", lambda a=(dtype, layout): self._pass_through(*a)
            for index in range(1, len(ACTIVATIONS)):
                name = f"range of {ACTIVATIONS[index]} {dtype} {layout}"
                yield name, lambda a=(index, dtype, layout): self._activation_range(*a)

    def _through(self, values: torch.Tensor, weight: float, layout: str, activation: int = 0) -> torch.Tensor:
        """Values * weight through the kernel as an image of four rows and one channel, or of 64 channels."""
        channels = 64 if layout == "nhwc" and self.family == "depthwise" else 1
        entry = case("through", (1, channels, 4, values.numel() // (4 * channels)), channels, 1, groups=channels)
        w = torch.full(entry.weight_shape, weight, dtype=values.dtype)
        x = values.view(entry.input_shape)
        return self.runner.forward(self.family, entry, layout, x, w, None, activation).flatten()

    def _pass_through(self, dtype: torch.dtype, layout: str) -> None:
        if dtype.itemsize == 2:
            values = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        else:
            exponents = torch.linspace(-36, 36, 4096, dtype=torch.float64)
            values = (10.0**exponents * torch.randn(4096, generator=generator("values"), dtype=torch.float64)).to(dtype)
        for weight in (1.0, -0.5, 3.0):
            expected = (values.double() * weight).to(dtype)
            actual = self._through(values, weight, layout)
            wrong = (actual != expected) & ~(actual.isnan() & expected.isnan())
            assert not wrong.any(), f"{values[wrong][0]!r} * {weight} gave {actual[wrong][0]!r}"

    def _activation_range(self, index: int, dtype: torch.dtype, layout: str) -> None:
        special = torch.tensor([0.0, -0.0, 3.0, -3.0, 6.0, -6.0, 1e-30, -1e-30, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4])
        values = torch.cat([torch.linspace(-30, 30, 4082, dtype=torch.float64), special.double()]).to(dtype)
        actual = self._through(values, 1.0, layout, index)
        expected = activate(values.double(), ACTIVATIONS[index])
        accumulator = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32)
        out = torch.finfo(dtype)
        bound = (
            8 * accumulator.eps * (expected.abs() + out.smallest_normal + 0.25) + out.eps / 2 * expected.abs() * 1.02
        )
        assert_within(actual, Expected(expected, bound + out.smallest_normal * out.eps), "activation")
        values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0]).to(dtype).repeat_interleave(64)
        actual, expected = self._through(values, 1.0, layout, index), activate(values, ACTIVATIONS[index])
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=0, atol=0)


def run(sweep: Sweep, checks: tuple[str, ...], stop_at_first: bool, keep_going: int = 12) -> int:
    """Runs the named checks and prints what fails; the number of failures."""
    failures = count = 0
    for check in checks:
        for name, call in getattr(sweep, check)():
            count += 1
            try:
                call()
            except Exception as error:
                failures += 1
                print(f"FAILED {check}: {name}: {error}", flush=True)
                if not isinstance(error, AssertionError):
                    traceback.print_exc(file=sys.stdout)
                if stop_at_first or failures >= keep_going:
                    return failures
    print(f"{sweep.family}: {count} checks, {failures} failures")
    return failures


CHECKS = ("exact_values", "rounded_values", "infinities", "activations", "scalars")


def main() -> int:
    parser = sweep_parser("Checks the CPU kernels of one instruction set, called directly.")
    parser.add_argument("--family", required=True, choices=tuple(CASES))
    parser.add_argument("--direction", action="append", choices=DIRECTIONS)
    parser.add_argument("--check", action="append", choices=CHECKS)
    options = parser.parse_args()
    table = start_sweep(options)
    sweep = Sweep(Runner(table, at_end=not options.at_start), options.family, tuple(options.direction or DIRECTIONS))
    return 1 if run(sweep, tuple(options.check or CHECKS), options.stop_at_first) else 0


if __name__ == "__main__":
    sys.exit(main())
