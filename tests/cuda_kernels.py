"""Calls the launchers of csrc/cuda through the emulator, on operands with nothing behind their last element.

Each operand lies in memory of its own that ends with it; outputs are filled with NaN, and what lies between the
elements of an output that is a slice of a wider tensor must still be NaN afterwards.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.cases import Case, integer_operands, random_grad, random_operands
from tests.emulator import build
from tests.kernel_library import dense_strides
from tests.reference import assert_same_bits, assert_within, expect_exact, expect_forward, expect_gradients

#: The operators of a family.
OPS = ("forward", "backward_input", "backward_weight")

#: The emulator's build that this process tests: one of `build.BUILDS`.
BUILD = os.environ.get("CNNEXT_EMULATOR_BUILD", "plain")

#: The builds that watch every access are slower.
WATCHED = BUILD in ("checked", "sanitized")

#: Multiplications, and threads, above which the kernels of last resort take too long in the emulator. They have no
#: tiles whose edges a larger case would find.
MOST_WORK_OF_GENERAL = 50_000 if WATCHED else 500_000
MOST_THREADS_OF_GENERAL = 40_000 if WATCHED else 400_000


#: Picks configurations from those of a planner.
Select = Callable[[list[Any]], list[Any]]


def first(configs: list[Any]) -> list[Any]:
    """The configuration that the planner prefers."""
    return configs[:1]


def ends(configs: list[Any]) -> list[Any]:
    """That one, and the one of last resort."""
    return [configs[0], *configs[1:][-1:]]


@dataclass(frozen=True)
class Placement:
    """How a tensor lies in memory: its layout, `gap` elements between pixels, rows and planes, `offset` ahead of it."""

    layout: str
    gap: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.layout}_gap{self.gap}_offset{self.offset}"


@dataclass
class Operand:
    """A tensor placed in memory."""

    name: str
    tensor: torch.Tensor
    memory: torch.Tensor
    written: bool = False

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    @property
    def alignment(self) -> int:
        return min(16, self.address & -self.address)

    def check_gaps(self) -> None:
        """Fails if something was written between the elements."""
        gaps = self.memory.clone()
        offset = self.tensor.storage_offset()
        gaps.as_strided(self.tensor.shape, self.tensor.stride(), offset).fill_(torch.nan)
        assert bool(gaps.isnan().all()), f"{self.name}: an element that is not the output's was written"


def _work(case: Case) -> int:
    """Multiplications of one pass."""
    n, k, p, q = case.output_shape
    return n * k * p * q * (case.c // case.groups) * case.r * case.s


def _too_much_for_the_emulator(config: Any, case: Case) -> bool:
    if "general" not in repr(config):
        return False
    threads = math.prod(config.grid) * math.prod(config.block)
    return _work(case) > MOST_WORK_OF_GENERAL or threads > MOST_THREADS_OF_GENERAL


def place(name: str, values: torch.Tensor, placement: Placement) -> Operand:
    strides = dense_strides(values.shape, placement.layout, placement.gap)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=True))
    memory = torch.full((placement.offset + extent,), torch.nan, dtype=values.dtype)
    tensor = memory.as_strided(values.shape, strides, placement.offset).copy_(values)
    return Operand(name, tensor, memory)


def place_output(name: str, shape: tuple[int, ...], dtype: torch.dtype, placement: Placement) -> Operand:
    operand = place(name, torch.full(shape, torch.nan, dtype=dtype), placement)
    operand.written = True
    return operand


def flat(name: str, values: torch.Tensor | None, written: bool = False, offset: int = 0) -> Operand | None:
    """A contiguous operand, or None."""
    if values is None:
        return None
    memory = torch.cat([values.new_zeros(offset), values.flatten()])
    return Operand(name, memory[offset:].view(values.shape), memory, written)


@dataclass(frozen=True)
class Operands:
    """What an operator of a family is called with; those that it does not take are ignored."""

    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor


@dataclass(frozen=True)
class Variant:
    """The family of operators, and what else its planners look at."""

    family: str
    allow_tf32: bool = False
    filter_channels_last: bool = False
    filter_offset: int = 0  # elements ahead of the filter and of the bias, so that they are not aligned

    def __str__(self) -> str:
        flags = {
            "tf32": self.allow_tf32,
            "filter_channels_last": self.filter_channels_last,
            "filter_offset": self.filter_offset,
        }
        return "_".join([self.family, *(name for name, is_set in flags.items() if is_set)])

    def filter_to_memory(self, w: torch.Tensor) -> torch.Tensor:
        """The filter as it lies in memory."""
        return w.permute(0, 2, 3, 1).contiguous() if self.filter_channels_last else w.contiguous()

    def filter_from_memory(self, w: torch.Tensor) -> torch.Tensor:
        return w.permute(0, 3, 1, 2) if self.filter_channels_last else w


DEPTHWISE = Variant("depthwise")


@dataclass
class CudaKernels:
    """The launchers and planners of one of the emulator's builds."""

    build: str = BUILD
    name: str = "convolutions"
    module: Any = field(init=False)

    def __post_init__(self) -> None:
        self.module = build.load(self.build, self.name)

    def params(self, case: Case, x: Operand, y: Operand, layout: str, activation: int = 0) -> Any:
        """The kernels' view of `case` on these operands."""
        module = self.module
        params = module.ConvParams()
        values = {
            **dict(zip("NCHW", case.input_shape, strict=True)),
            **dict(zip("NKPQ", case.output_shape, strict=True)),
            **{"R": case.r, "S": case.s, "groups": case.groups},
            **dict(zip(("stride_h", "stride_w"), case.stride, strict=True)),
            **dict(zip(("pad_h", "pad_w"), case.padding, strict=True)),
            **dict(zip(("dilation_h", "dilation_w"), case.dilation, strict=True)),
            "x_strides": module.Strides4(*x.tensor.stride()),
            "y_strides": module.Strides4(*y.tensor.stride()),
            "layout": getattr(module.Layout, layout),
            "dtype": getattr(module.DType, str(x.tensor.dtype).removeprefix("torch.")),
            "activation": activation,
        }
        for name, value in values.items():
            setattr(params, name, value)
        return params

    def problem(self, case: Case, x: Operand, y: Operand, layout: str, activation: int = 0) -> Any:
        """The planners' view of `case` on these operands."""
        problem = self.module.Problem()
        problem.params = self.params(case, x, y, layout, activation)
        problem.device.wgmma = True
        problem.alignment = min(x.alignment, y.alignment)
        return problem

    @contextmanager
    def registered(self, *operands: Operand | None) -> Iterator[None]:
        """Tells the emulator the exact bounds of every operand, for the build that checks them."""
        self.module.clear_buffers()
        for operand in operands:
            if operand is not None:
                memory = operand.memory
                address, size = memory.data_ptr(), memory.numel() * memory.element_size()
                self.module.register_buffer(address, size, operand.written, operand.name)
        try:
            yield
        finally:
            self.module.clear_buffers()

    def run(
        self,
        op: str,
        case: Case,
        placement: Placement,
        operands: Operands,
        activation: int = 0,
        variant: Variant = DEPTHWISE,
        select: Select = list,
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Runs configurations that the planner lists: the description of each, and the results by name.

        Args:
            op: one of `OPS`, which gives y, dx, or dw and dbias (if the operands have a bias).
            select: takes the list, and returns those that are run.
        """
        x, dy = operands.x, operands.dy
        offset = variant.filter_offset
        w = flat("w", variant.filter_to_memory(operands.w), offset=offset)
        if op == "forward":
            outer = place_output("y", case.output_shape, x.dtype, placement)
            problem = self.problem(case, placed_x := place("x", x, placement), outer, placement.layout, activation)
            inputs, results = (placed_x, w, flat("bias", operands.bias, offset=offset)), {"y": outer}
        elif op == "backward_input":
            outer = place_output("dx", case.input_shape, dy.dtype, placement)
            problem = self.problem(case, outer, placed_dy := place("dy", dy, placement), placement.layout)
            inputs, results = (placed_dy, w), {"dx": outer}
        else:
            inputs = (place("dy", dy, placement), place("x", x, placement))
            problem = self.problem(case, inputs[1], inputs[0], placement.layout)
            dw = flat("dw", torch.full_like(variant.filter_to_memory(operands.w), torch.nan), written=True)
            dbias = None if operands.bias is None else torch.full_like(operands.bias, torch.nan)
            results = {"dw": dw, "dbias": flat("dbias", dbias, written=True)}
        problem.allow_tf32, problem.filter_channels_last = variant.allow_tf32, variant.filter_channels_last
        if w is not None:
            problem.filter_alignment = w.alignment

        plan = getattr(self.module, f"{variant.family}_{op}_configs")
        launch = getattr(self.module, f"{variant.family}_{op}")
        flags = () if variant.family == "depthwise" else (variant.filter_channels_last,)
        for config in select(plan(problem)):
            if _too_much_for_the_emulator(config, case):
                continue
            for result in results.values():
                if result is not None:
                    result.tensor.fill_(torch.nan)
            operands_of_launch = [*inputs, *results.values()]
            if variant.family != "depthwise" or op == "backward_weight":
                size = self.module.workspace_bytes(problem, config)
                workspace = torch.full((-(-size // 4),), torch.nan) if size else None
                operands_of_launch.append(flat("workspace", workspace, written=True))
            with self.registered(*operands_of_launch):
                addresses = [0 if operand is None else operand.address for operand in operands_of_launch]
                launch(problem.params, config, *flags, *addresses)
            given = {name: result for name, result in results.items() if result is not None}
            for result in given.values():
                result.check_gaps()
            yield (
                repr(config),
                {
                    name: variant.filter_from_memory(result.tensor) if name == "dw" else result.tensor
                    for name, result in given.items()
                },
            )


def integers(case: Case, dtype: torch.dtype) -> Operands:
    """Operands whose every product and sum is exact."""
    return Operands(*integer_operands(case, dtype), random_grad(case, dtype, integers=True))


def exact_results(case: Case, operands: Operands) -> dict[str, torch.Tensor]:
    """What `operands` give, by name, in float64."""
    exact = expect_exact(case, operands.dy, operands.x, operands.w, operands.bias)
    return {"y": exact.output, "dx": exact.grad_input, "dw": exact.grad_weight, "dbias": exact.grad_bias}


def check_integers(
    kernels: CudaKernels,
    op: str,
    case: Case,
    dtype: torch.dtype,
    placement: Placement,
    variant: Variant = DEPTHWISE,
    select: Select = list,
) -> None:
    """The configurations agree with float64 to the bit."""
    operands = integers(case, dtype)
    exact = exact_results(case, operands)
    for config, results in kernels.run(op, case, placement, operands, variant=variant, select=select):
        for name, result in results.items():
            assert_same_bits(result, exact[name], f"{config}: {name}")


def check_random(
    kernels: CudaKernels,
    op: str,
    case: Case,
    dtype: torch.dtype,
    placement: Placement,
    variant: Variant = DEPTHWISE,
    select: Select = list,
) -> None:
    """The configurations stay within the bounds of the reference; without a bias."""
    x, w, _ = random_operands(case, dtype)
    operands = Operands(x, w, None, random_grad(case, dtype))
    gradients = expect_gradients(case, operands.dy, x, w)
    expected = {"y": expect_forward(case, x, w, None), "dx": gradients.input, "dw": gradients.weight}
    for config, results in kernels.run(op, case, placement, operands, variant=variant, select=select):
        for name, result in results.items():
            assert_within(result, expected[name], f"{config}: {name}")


def run_in_build(name: str, file: str, expression: str = "") -> None:
    """Runs the tests of `file`, of those that `expression` selects, in a process that tests a build of the emulator."""
    environment = {**os.environ, **build.environment(name), "CNNEXT_EMULATOR_BUILD": name}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", file, "-k", expression]
    root = Path(__file__).parent.parent
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
