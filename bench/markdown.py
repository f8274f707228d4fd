"""The tables of README.md, from a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.tables import digits

_KIND_LABEL = {"pointwise": "1x1"}
_LAYOUTS = {"nchw": "NCHW", "channels_last": "channels_last"}
_NETWORK_LABEL = {"mobilenet_v1": "MobileNet-V1", "resnet18": "ResNet-18"}


def tables(document: dict[str, Any]) -> str:
    """Write the table of layers by kind, that of networks, and how many cases are slower than PyTorch."""
    return "\n".join([*_layers(document), "", *_networks(document), "", _slower(document)])


def _layers(document: dict[str, Any]) -> Iterator[str]:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in document["summary"]["layers"]:
        text = f"{row['geomean']:.2f}x ({row['min']:.2f}-{row['max']:.2f})"
        rows.setdefault((row["kind"], row["layout"]), {})[row["pass"]] = text
    yield "| layers | layout | forward | input gradient | weight gradient |"
    yield "|---|---|---|---|---|"
    for (kind, layout), cells in rows.items():
        figures = " | ".join(cells.get(p, "") for p in ("forward", "backward_input", "backward_weight"))
        yield f"| {_KIND_LABEL.get(kind, kind)} | {_LAYOUTS[layout]} | {figures} |"


def _networks(document: dict[str, Any]) -> Iterator[str]:
    yield "| network | layout | cnnext, images/s | PyTorch, images/s | ratio | largest error cnnext / PyTorch |"
    yield "|---|---|---|---|---|---|"
    for case in document["cases"]:
        if case["kind"] == "network" and case["ratio"] is not None:
            name = _NETWORK_LABEL.get(case["network"], case["network"])
            rates = " | ".join(digits(case[side]["images_per_s"]) for side in ("cnnext", "pytorch"))
            errors = " / ".join(f"{case['error'][side]:.0e}" for side in ("cnnext", "pytorch"))
            error = errors if case["pass"] == "inference" else ""
            yield f"| {name} {case['pass']} | {_LAYOUTS[case['layout']]} | {rates} | {case['ratio']:.2f}x | {error} |"


def _slower(document: dict[str, Any]) -> str:
    summary, count = document["summary"], len(document["cases"])
    text = f"{len(summary['slower'])} of the {count} cases are slower than PyTorch."
    left = len(summary["on_aten"])
    return text + (
        f" In {left} of all cases the layer was left to PyTorch, so both sides ran the same kernel." if left else ""
    )
