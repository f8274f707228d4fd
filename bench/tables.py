"""Tables of a result for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from bench.cases import PASSES
from bench.runner import SIDES, Case

#: Why the errors of a training step are large on both sides.
_TRAINING_NOTE = (
    "The error of a training step, that of all gradients, is mostly not rounding: "
    "a ReLU whose input is within rounding of 0 passes or blocks, on either side."
)
LAYOUT_LABEL = {"nchw": "NCHW", "channels_last": "NHWC"}
SIDE_LABEL = {
    "pytorch": "PyTorch",
    "fuse": "cnnext.fuse",
    "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
PASS_LABEL = {
    "forward": "forward",
    "backward_input": "input gradient",
    "backward_weight": "weight gradient",
    "inference": "inference",
    "training": "training step",
}


def _ratio(value: float | None) -> str:
    if value is None:
        return "-"
    style = "green" if value >= 1 else "red"
    return f"[{style}]{value:.2f}x[/]"


def digits(value: float) -> str:
    """Three significant digits without an exponent."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def _error(value: float | None) -> str:
    return "failed" if value is None else f"{value:.0e}"


def _time(case: Case, side: str, unit: str = "ms") -> str:
    return digits(case[side][unit]) if case[side] else "-"


def _errors(cases: Iterable[Case], side: str) -> str:
    errors = [case["error"][side] for case in cases]
    return _error(None if None in errors else max(errors, default=0.0))


def _both(texts: Iterable[str]) -> str:
    """What belongs to both sides, in the order of `SIDES`."""
    return " / ".join(texts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < 2 else "right", no_wrap=position > 0)
    return table


def network_table(cases: Sequence[Case]) -> Table:
    """Build the table of networks: time, throughput, ratio and error."""
    table = _table("Networks: cnnext / PyTorch", "network", "layout", "ms", "images/s", "ratio", "error")
    for case in cases:
        if case["kind"] == "network":
            times = [_both(_time(case, side, unit) for side in SIDES) for unit in ("ms", "images_per_s")]
            error = _both(_error(case["error"][side]) for side in SIDES)
            name = f"{case['network']} {case['pass']}"
            table.add_row(name, LAYOUT_LABEL[case["layout"]], *times, _ratio(case["ratio"]), error)
    return table


def layer_tables(cases: Sequence[Case], width: int) -> list[Table]:
    """Build the tables of layers: a row for each layer and layout, with cnnext / PyTorch milliseconds and their ratio.

    Returns:
        One table with all passes side by side where ``width`` columns suffice, else one for each pass.
    """
    cases = [case for case in cases if case["kind"] != "network"]
    passes = [p for p in PASSES if any(case["pass"] == p for case in cases)]
    wide = _layer_table("Layers: cnnext / PyTorch", cases, passes)
    if len(passes) <= 1 or Measurement.get(Console(width=500), Console(width=500).options, wide).maximum <= width:
        return [wide]
    return [_layer_table(f"Layers, {PASS_LABEL[p]}: cnnext / PyTorch", cases, [p]) for p in passes]


def _layer_table(title: str, cases: Sequence[Case], passes: Sequence[str]) -> Table:
    groups: dict[tuple[str, str], dict[str, Case]] = {}
    for case in cases:
        if case["pass"] in passes:
            groups.setdefault((case["layer"], case["layout"]), {})[case["pass"]] = case
    headings = [heading for p in passes for heading in (f"{PASS_LABEL[p]} ms", "ratio")]
    table = _table(title, "layer", "layout", "path", *headings, "error")
    for (layer, layout), group in groups.items():
        cells = []
        for p in passes:
            if p in group:
                times = _both(_time(group[p], side) for side in SIDES)
                cells += [times, _ratio(group[p]["ratio"])]
            else:
                cells += ["", ""]
        paths = next(iter(group.values()))["paths"]
        errors = _both(_errors(group.values(), side) for side in SIDES)
        table.add_row(layer, LAYOUT_LABEL[layout], _both(paths[side] for side in SIDES), *cells, errors)
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """Build the table of ratios by kind of layer: geomean, and in brackets min to max."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for row in summary["layers"]:
        text = f"{_ratio(row['geomean'])} ({row['min']:.2f}-{row['max']:.2f})"
        rows.setdefault((row["kind"], row["layout"]), {})[row["pass"]] = text
    passes = [p for p in PASSES if any(p in row for row in rows.values())]
    title = "Ratio by kind: geomean (min-max)"
    table = _table(title, "kind", "layout", *map(PASS_LABEL.__getitem__, passes))
    for (kind, layout), cells in rows.items():
        table.add_row(kind, LAYOUT_LABEL[layout], *(cells.get(p, "") for p in passes))
    return table


def print_report(console: Console, document: dict[str, Any]) -> None:
    """Print everything, the most telling last: layers, cases to look at, networks, ratios by kind."""
    cases, summary = document["cases"], document["summary"]
    if summary["layers"]:
        for table in layer_tables(cases, console.width):
            console.print(table)
    for line in _remarks(cases, summary):
        console.print(line, highlight=False, soft_wrap=True)
    if any(case["kind"] == "network" for case in cases):
        console.print(network_table(cases))
        for row in summary["networks"]:
            throughputs = f"{digits(row['cnnext'])} against {digits(row['pytorch'])} images/s"
            best = f"Best layout of each side, {row['network']} {row['pass']}: {throughputs}, {_ratio(row['ratio'])}"
            rates = ((SIDE_LABEL.get(name, name), digits(rate)) for name, rate in row["baselines"].items())
            others = "".join(f"; {name} {rate}" for name, rate in rates)
            console.print(best + others, highlight=False)
        for case in cases:
            for name, timing in case.get("baselines", {}).items():
                if "failure" in timing:
                    message = f"  baseline {name} failed on {case['id']}: {escape(timing['failure'])}"
                    console.print(message, highlight=False, soft_wrap=True)
        if any(case["pass"] == "training" for case in cases):
            console.print(f"[dim]{_TRAINING_NOTE}[/]", highlight=False, soft_wrap=True)
        console.print()
    if summary["layers"]:
        console.print(summary_table(summary))


def spans_overlap(case: Case) -> bool:
    """Whether the sides' spans from p20 to p80 overlap, so that the difference may be noise."""
    ours, theirs = case["cnnext"], case["pytorch"]
    return ours["ms_p20"] <= theirs["ms_p80"] and theirs["ms_p20"] <= ours["ms_p80"]


def _remarks(cases: Sequence[Case], summary: dict[str, Any]) -> Iterator[str]:
    by_id = {case["id"]: case for case in cases}
    slower = [by_id[case_id] for case_id in summary["slower"]]
    clearly = sum(not spans_overlap(case) for case in slower)
    counts = f"{len(slower)} of {len(cases)} cases are slower than PyTorch"
    yield f"[bold]{counts}, {clearly} of them beyond the spread of the samples[/]" if slower else counts
    if summary["on_aten"]:
        yield f"{len(summary['on_aten'])} layers were left to PyTorch: there both sides ran the same kernel (path aten)"
    for case in slower:
        spans = [f"{digits(case[side]['ms_p20'])}-{digits(case[side]['ms_p80'])}" for side in SIDES]
        note = ", spans overlap" if spans_overlap(case) else ""
        yield f"  {_ratio(case['ratio'])} {case['id']} (p20-p80 {spans[0]} against {spans[1]} ms{note})"
    for case_id in summary["inaccurate"]:
        errors = [_error(by_id[case_id]["error"][side]) for side in SIDES]
        yield f"  [red]inaccurate[/] {case_id}: error {errors[0]}, PyTorch's {errors[1]}"
    for case in cases:
        for side, message in case["failures"].items():
            yield f"  [red]failed[/] {case['id']}: {side}: {escape(message)}"
    yield ""
