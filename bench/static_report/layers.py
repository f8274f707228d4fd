"""The calls of networks whose times are predicted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.static_report.launches import LAYOUTS, OPS, Call

if TYPE_CHECKING:
    from bench.cases import LayerShape

DTYPES = ("float16", "bfloat16", "float32")
KINDS = ("depthwise", "grouped")

#: What grouped, dense and 1x1 layers are predicted in unless one is named: the others take the same kernels with more
#: around them (NCHW), or stand far from what the card can do (float32).
GROUPED_LAYOUTS = ("nhwc",)
GROUPED_DTYPES = ("float16",)


@functools.cache
def _shapes(network: str) -> list[LayerShape]:
    import cnnext.models
    from bench.cases import collect_layers

    return [layer.shape for layer in collect_layers({network: cnnext.models.create_model(network)})]


def depthwise_calls(
    network: str,
    batch: int,
    ops: Sequence[str] = OPS,
    layouts: Sequence[str] = LAYOUTS,
    dtypes: Sequence[str] = DTYPES,
) -> list[Call]:
    """Return a call for each distinct depthwise layer of a network, op, layout and dtype."""
    shapes = [shape for shape in _shapes(network) if shape.kind == "depthwise"]
    return [
        Call(op, layout, dtype, batch, s.C, s.H, s.W, s.R, s.S, s.stride, s.padding)
        for op in ops
        for layout in layouts
        for dtype in dtypes
        for s in shapes
        if s.dilation == (1, 1) and s.K == s.C
    ]


def grouped_calls(
    network: str,
    batch: int,
    ops: Sequence[str] = OPS,
    layouts: Sequence[str] = GROUPED_LAYOUTS,
    dtypes: Sequence[str] = GROUPED_DTYPES,
) -> list[Call]:
    """Return a call for each distinct grouped, dense or 1x1 layer of a network, op, layout and dtype.

    The input gradient of the first layer, which has an image's 3 channels, is not among them: no one asks for it.
    """
    shapes = [shape for shape in _shapes(network) if shape.kind != "depthwise" and shape.dilation == (1, 1)]
    return [
        Call(op, layout, dtype, batch, s.C, s.H, s.W, s.R, s.S, s.stride, s.padding, s.K, s.groups)
        for op in ops
        for layout in layouts
        for dtype in dtypes
        for s in shapes
        if not (op == "backward_input" and s.C == 3)
    ]
