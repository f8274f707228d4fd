"""Calls the launchers of csrc/cuda through the emulator, on operands with nothing behind their last element.

Each operand lies in memory of its own that ends with it; outputs are filled with NaN, and what lies between the
elements of an output that is a slice of a wider tensor must still be NaN afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.cases import Case
from tests.emulator import build
from tests.kernel_library import dense_strides

#: The operators of a family.
OPS = ("forward", "backward_input", "backward_weight")

#: The emulator's build that this process tests: one of `build.BUILDS`.
BUILD = os.environ.get("CNNEXT_EMULATOR_BUILD", "plain")


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


def flat(name: str, values: torch.Tensor | None, written: bool = False) -> Operand | None:
    """A contiguous operand, or None."""
    if values is None:
        return None
    memory = values.contiguous().clone()
    return Operand(name, memory, memory, written)


@dataclass(frozen=True)
class Operands:
    """What an operator of a family is called with; those that it does not take are ignored."""

    x: torch.Tensor
    w: torch.Tensor
    bias: torch.Tensor | None
    dy: torch.Tensor


@dataclass
class CudaKernels:
    """The launchers and planners of one of the emulator's builds."""

    build: str = BUILD
    module: Any = field(init=False)

    def __post_init__(self) -> None:
        self.module = build.load(self.build)

    def problem(self, case: Case, dtype: torch.dtype, x: Operand, y: Operand, layout: str, activation: int = 0) -> Any:
        """The planners' view of `case` on these operands."""
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
        problem = module.Problem()
        problem.params = params
        problem.alignment = min(x.alignment, y.alignment)
        return problem

    @contextmanager
    def _registered(self, *operands: Operand | None) -> Iterator[None]:
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

    def _launch(self, function: Callable[..., None], params: Any, config: Any, *operands: Operand | None) -> None:
        with self._registered(*operands):
            function(params, config, *(0 if operand is None else operand.address for operand in operands))
        for operand in operands:
            if operand is not None and operand.written:
                operand.check_gaps()

    def run(
        self,
        op: str,
        case: Case,
        placement: Placement,
        operands: Operands,
        activation: int = 0,
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Runs every configuration that the planner lists: its description, and the results by name.

        Args:
            op: one of `OPS`, which gives y, dx, or dw and dbias (if the operands have a bias).
        """
        return getattr(self, f"_{op}")(case, placement, operands, activation)

    def _forward(
        self, case: Case, placement: Placement, operands: Operands, activation: int
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        x = place("x", operands.x, placement)
        w, bias = flat("w", operands.w), flat("bias", operands.bias)
        y = place_output("y", case.output_shape, x.tensor.dtype, placement)
        problem = self.problem(case, x, y, placement.layout, activation)
        for config in self.module.depthwise_forward_configs(problem):
            y.tensor.fill_(torch.nan)
            self._launch(self.module.depthwise_forward, problem.params, config, x, w, bias, y)
            yield repr(config), {"y": y.tensor}

    def _backward_input(
        self, case: Case, placement: Placement, operands: Operands, activation: int
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        dy, w = place("dy", operands.dy, placement), flat("w", operands.w)
        dx = place_output("dx", case.input_shape, dy.tensor.dtype, placement)
        problem = self.problem(case, dx, dy, placement.layout, activation)
        for config in self.module.depthwise_backward_input_configs(problem):
            dx.tensor.fill_(torch.nan)
            self._launch(self.module.depthwise_backward_input, problem.params, config, dy, w, dx)
            yield repr(config), {"dx": dx.tensor}

    def _backward_weight(
        self, case: Case, placement: Placement, operands: Operands, activation: int
    ) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        dy, x = place("dy", operands.dy, placement), place("x", operands.x, placement)
        problem = self.problem(case, x, dy, placement.layout, activation)
        for config in self.module.depthwise_backward_weight_configs(problem):
            results = {"dw": torch.full(case.weight_shape, torch.nan, dtype=x.tensor.dtype)}
            if operands.bias is not None:
                results["dbias"] = torch.full((case.k,), torch.nan, dtype=x.tensor.dtype)
            placed = {name: flat(name, result, written=True) for name, result in results.items()}
            size = self.module.workspace_bytes(problem, config)
            workspace = flat("workspace", torch.full((size // 4,), torch.nan), written=True) if size else None
            self._launch(
                self.module.depthwise_backward_weight,
                problem.params,
                config,
                dy,
                x,
                placed["dw"],
                placed.get("dbias"),
                workspace,
            )
            yield repr(config), {name: operand.tensor for name, operand in placed.items() if operand is not None}
