"""The calls of a network whose times are predicted."""

from __future__ import annotations

from collections.abc import Sequence

from bench.static_report.launches import LAYOUTS, OPS, Call

DTYPES = ("float16", "bfloat16", "float32")


def depthwise_calls(
    network: str,
    batch: int,
    ops: Sequence[str] = OPS,
    layouts: Sequence[str] = LAYOUTS,
    dtypes: Sequence[str] = DTYPES,
) -> list[Call]:
    """Return a call for each distinct depthwise layer of a network, op, layout and dtype."""
    import cnnext.models
    from bench.cases import collect_layers

    layers = collect_layers({network: cnnext.models.create_model(network)})
    shapes = [layer.shape for layer in layers if layer.shape.kind == "depthwise"]
    return [
        Call(op, layout, dtype, batch, s.C, s.H, s.W, s.R, s.S, s.stride, s.padding)
        for op in ops
        for layout in layouts
        for dtype in dtypes
        for s in shapes
        if s.dilation == (1, 1) and s.K == s.C
    ]
