"""The pictures of a result: roofline, speed-up by kind of layer, and networks."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench.cases import KINDS, LAYOUTS, PASSES
from bench.tables import LAYOUT_LABEL, PASS_LABEL, SIDE_LABEL

#: Colours that colour-blind readers can tell apart (Okabe and Ito).
COLOURS = {"depthwise": "#0072b2", "pointwise": "#d55e00", "grouped": "#009e73", "dense": "#8a5aa8"}
_PASS_COLOURS = {"forward": "#0072b2", "backward_input": "#e69f00", "backward_weight": "#009e73"}
_SIDE_COLOURS = ("#0072b2", "#8c8c8c", "#e69f00", "#009e73", "#cc79a7")


def _layer_cases(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in document["cases"] if case["kind"] != "network" and case["ratio"] is not None]


def _subtitle(document: dict[str, Any]) -> str:
    where, how = document["environment"], document["settings"]
    return f"{where['device_name']}, {how['dtype']}, batch {how['batch']}, torch {where['torch']}"


def roofline(document: dict[str, Any]) -> Figure | None:
    """Draw multiply-adds a second over multiply-adds a byte, under the roofs; None without roofs or layers."""
    cases = [case for case in _layer_cases(document) if case["pass"] == "forward"] or _layer_cases(document)
    peaks = document.get("peaks")
    if not peaks or not cases:
        return None
    bandwidth, product = peaks["copy_bytes_per_s"] / 1e9, peaks["multiply_adds_per_s"] / 1e9
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    intensities = [case["multiply_adds"] / case["bytes"] for case in cases]
    x = np.geomspace(min(intensities) / 2, max(*intensities, product / bandwidth) * 2, 200)
    axes.plot(x, np.minimum(x * bandwidth, product), color="#333333", linewidth=1.5)
    axes.annotate(
        f"copy {bandwidth:.3g} GB/s", (x[10], x[10] * bandwidth), (4, -14), textcoords="offset points", color="#333333"
    )
    axes.annotate(
        f"matrix product {product:.3g} GMAC/s",
        (product / bandwidth, product),
        (-6, 4),
        textcoords="offset points",
        ha="right",
    )
    for kind in KINDS:
        chosen = [(case, i) for case, i in zip(cases, intensities, strict=True) if case["kind"] == kind]
        if not chosen:
            continue
        at = [i for _, i in chosen]
        for side, face in (("pytorch", "none"), ("cnnext", COLOURS[kind])):
            rates = [case[side]["gmac_per_s"] for case, _ in chosen]
            axes.scatter(
                at, rates, s=26, facecolors=face, edgecolors=COLOURS[kind], linewidths=1, alpha=0.85,
                label=f"{kind}, {'cnnext' if side == 'cnnext' else 'PyTorch'}",
            )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="multiply-adds per byte", ylabel="GMAC/s")
    axes.set_ylim(top=2 * max(product, axes.dataLim.ymax))
    axes.set_title(f"Roofline of layers, {PASS_LABEL[cases[0]['pass']]}\n{_subtitle(document)}", fontsize=10)
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.legend(fontsize=8, loc="lower right", ncols=2, frameon=False)
    return figure


def speedups(document: dict[str, Any]) -> Figure | None:
    """Draw a dot for each layer and pass at its speed-up, by kind and layout; None without layers."""
    cases = _layer_cases(document)
    rows = [(k, lay) for k in KINDS for lay in LAYOUTS if any(c["kind"] == k and c["layout"] == lay for c in cases)]
    if not rows:
        return None
    passes = [p for p in PASSES if any(case["pass"] == p for case in cases)]
    figure = Figure(figsize=(8, 0.9 + 0.62 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(1, color="#333333", linewidth=1)
    for row, (kind, layout) in enumerate(reversed(rows)):
        for offset, pass_name in enumerate(passes):
            key = {"kind": kind, "layout": layout, "pass": pass_name}
            ratios = [case["ratio"] for case in cases if key.items() <= case.items()]
            if not ratios:
                continue
            y = row + 0.24 * ((len(passes) - 1) / 2 - offset)
            colour = _PASS_COLOURS[pass_name]
            axes.scatter(ratios, [y] * len(ratios), s=14, color=colour, alpha=0.45, linewidths=0)
            mean = float(np.exp(np.mean(np.log(ratios))))
            label = f"{PASS_LABEL[pass_name]} (bar: geomean)" if row == len(rows) - 1 else None
            axes.plot([mean, mean], [y - 0.11, y + 0.11], color=colour, linewidth=3, label=label)
    axes.set(xscale="log", xlabel="PyTorch's time / cnnext's time", ylim=(-0.6, len(rows) - 0.4))
    axes.set_yticks(range(len(rows)), [f"{kind} {LAYOUT_LABEL[layout]}" for kind, layout in reversed(rows)])
    low, high = axes.get_xlim()
    ticks = [t for t in (0.25, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20, 50, 100) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.minorticks_off()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"Speed-up over PyTorch, a dot a layer\n{_subtitle(document)}", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    return figure


def networks(document: dict[str, Any]) -> Figure | None:
    """Draw images a second of each network, the best layout of each side; None without networks."""
    rows = document["summary"]["networks"]
    if not rows:
        return None
    sides = ["cnnext", "pytorch", *dict.fromkeys(name for row in rows for name in row.get("baselines", {}))]
    rates = {side: [row.get(side, row.get("baselines", {}).get(side)) for row in rows] for side in sides}
    figure = Figure(figsize=(8, 1.2 + len(rows) * (0.25 + 0.2 * len(sides))), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(sides)
    for index, side in enumerate(sides):
        colour = _SIDE_COLOURS[index % len(_SIDE_COLOURS)]
        for row, rate in enumerate(rates[side]):
            if rate is None:
                continue
            y = -row + 0.4 - height * (index + 0.5)
            label = SIDE_LABEL.get(side, side) if row == 0 else None
            axes.barh(y, rate, height=0.9 * height, color=colour, label=label)
            axes.annotate(f"{rate:.4g}", (rate, y), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks([-row for row in range(len(rows))], [f"{row['network']}\n{row['pass']}" for row in rows])
    axes.set(xlabel="images/s, the best layout of each")
    axes.margins(x=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"Networks\n{_subtitle(document)}", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(sides), frameon=False)
    return figure


PICTURES: dict[str, Callable[[dict[str, Any]], Figure | None]] = {
    "roofline": roofline,
    "speedups": speedups,
    "networks": networks,
}


def to_svg(figure: Figure) -> str:
    """Write a figure as an element for a page, its text as text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cnnext"}):
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    return text.getvalue()[text.getvalue().index("<svg") :]


def write_pictures(document: dict[str, Any], directory: Path) -> list[Path]:
    """Write the pictures that a result has as PNG files, and return these."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in PICTURES.items():
        figure = draw(document)
        if figure is None:
            continue
        path = directory / f"{name}.png"
        with tempfile.NamedTemporaryFile(dir=directory, suffix=".png", delete=False) as file:
            figure.savefig(file, dpi=150, facecolor="white")
        Path(file.name).chmod(0o644)
        Path(file.name).replace(path)
        written.append(path)
    return written
