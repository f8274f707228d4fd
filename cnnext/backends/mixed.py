"""The operators of the namespace `cnnext_measured`: each direction runs on the backend that was measured fastest.

Schemas, fakes, derivatives, vmap and autocast are those of `cnnext` (cnnext/ops.py). The kernels ask for the backend of
a direction by its problem, so a second derivative, which is made of the same operators, is chosen in the same way.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cnnext import ops
from cnnext.backends.problem import Problem
from cnnext.ops import Family, Geometry, Implementations

__all__ = ["families"]

#: Gives the operators of the backend for a problem.
Lookup = Callable[[Problem, Tensor], Mapping[str, Family | Implementations]]


def families(lookup: Lookup) -> dict[str, Family]:
    """Declares the operators. They can be declared once, and most processes never need them."""
    # NOTE: a library that is no longer referred to takes its operators with it.
    return ops.declare(_library(), {name: _kernels(name, lookup) for name in ops.FAMILIES})


@functools.cache
def _library() -> torch.library.Library:
    return torch.library.Library("cnnext_measured", "DEF")


def _kernels(name: str, lookup: Lookup) -> Implementations:
    join = ops.FAMILIES[name].join

    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: int) -> Tensor:
        channels_last = ops.channels_last_result(input, weight)
        problem = Problem.of(
            name,
            "forward",
            input.dtype,
            input.shape,
            weight.shape,
            geometry,
            channels_last,
            bias is not None,
            activation,
        )
        return lookup(problem, input)[name].forward(input, weight, bias, *join(geometry), activation)

    def backward_input(
        grad_output: Tensor, weight: Tensor, input_size: Sequence[int], geometry: Geometry, channels_last: bool
    ) -> Tensor:
        dtype = grad_output.dtype
        problem = Problem.of(name, "backward_input", dtype, input_size, weight.shape, geometry, channels_last)
        operator: Any = lookup(problem, grad_output)[name].backward_input
        return operator(grad_output, weight, input_size, *join(geometry), channels_last)

    def backward_weight(
        grad_output: Tensor,
        input: Tensor,
        weight_size: Sequence[int],
        geometry: Geometry,
        with_bias: bool,
        channels_last: bool,
    ) -> tuple[Tensor, Tensor]:
        problem = Problem.of(
            name, "backward_weight", input.dtype, input.shape, weight_size, geometry, channels_last, with_bias
        )
        operator: Any = lookup(problem, input)[name].backward_weight
        return operator(grad_output, input, weight_size, *join(geometry), with_bias, channels_last)

    return Implementations(forward, backward_input, backward_weight)
