"""Tables for the terminal and for documents, and the JSON form, of a static report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.static_report.budget import kernel_entry
from bench.static_report.kernels import KernelReport
from bench.static_report.model import Prediction
from bench.static_report.rates import Architecture

_SHORT = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_OP = {"forward": "forward", "backward_input": "input grad", "backward_weight": "weight grad"}

#: Columns of the layer table.
LAYER_COLUMNS = (
    *("op", "layout", "dtype", "layer", "kernel", "regs", "warps", "waves", "instr/out", "loads/out", "sectors"),
    *("banks", "mma", "lsu/mma", "issue/mem", "lat/mem", "limit", "us", "floor", "of floor"),
)
KERNEL_COLUMNS = ("kernel", "regs", "spill", "stack", "shared", "ld16", "st16", "instr", "largest inner loop")

#: What the classes of instructions are called in the tables, where it is not their name.
_CLASS_LABEL = {"global_load": "ldg", "global_store": "stg", "async_copy": "ldgsts", "shared_load": "lds"}
_CLASS_LABEL |= {"shared_store": "sts", "constant": "const"}


def _ratio(prediction: Prediction, kinds: Iterable[str], measure: str) -> float | None:
    """How many times what is ideal the accesses of some classes take."""
    total = {"ideal": 0.0, measure: 0.0}
    for launch in prediction.launches:
        for kind in kinds:
            for name in total:
                total[name] += launch.traffic.get(kind, {}).get(name, 0.0)
    return total[measure] / total["ideal"] if total["ideal"] else None


def sector_ratio(prediction: Prediction) -> float | None:
    """Return sectors over the fewest possible, of requests to global memory."""
    return _ratio(prediction, ("global_load", "global_store"), "sectors")


def bank_ratio(prediction: Prediction) -> float | None:
    """Return wavefronts over the fewest possible, of requests to shared memory."""
    return _ratio(prediction, ("shared_load", "shared_store"), "wavefronts")


def mma_share(prediction: Prediction) -> float | None:
    """Return the share of the main launch's instructions that are matrix products; None if it has none."""
    issued = prediction.main.issued
    return issued["tensor"] / sum(issued.values()) if issued.get("tensor") else None


def passes_per_mma(prediction: Prediction) -> float | None:
    """Return passes through the load/store unit for each matrix product of the main launch."""
    main = prediction.main
    passes = sum(traffic["wavefronts"] for traffic in main.traffic.values())
    return passes / main.issued["tensor"] if main.issued.get("tensor") else None


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def layer_row(prediction: Prediction) -> list[str]:
    """Return a layer's cells, in the order of `LAYER_COLUMNS`."""
    call, main = prediction.call, prediction.main
    memory = prediction.floor_seconds
    return [
        _OP[call.op],
        call.layout,
        _SHORT[call.dtype],
        call.name,
        main.kernel.removeprefix("depthwise_"),
        str(main.registers),
        f"{main.occupancy.warps} {main.occupancy.limit}",
        f"{main.waves:.1f}",
        _number(prediction.per_output(), 1),
        _number(prediction.per_output("global_load", "async_copy"), 3),
        _number(sector_ratio(prediction)),
        _number(bank_ratio(prediction)),
        _number(mma_share(prediction)),
        _number(passes_per_mma(prediction)),
        f"{main.bounds['issue'] / memory:.0%}",
        f"{main.bounds['latency'] / memory:.0%}",
        main.limit,
        f"{prediction.seconds * 1e6:.1f}",
        f"{memory * 1e6:.1f}",
        f"{prediction.share_of_floor:.0%}",
    ]


def _mix_text(kernel: KernelReport) -> str:
    parts = []
    for kind, count in kernel.loop_mix.most_common():
        name, _, size = kind.partition(" ")
        parts.append(f"{_CLASS_LABEL.get(name, name)}{size} {count}")
    return ", ".join(parts)


def kernel_row(kernel: KernelReport) -> list[str]:
    """Return a kernel's cells, in the order of `KERNEL_COLUMNS`."""
    r = kernel.resources
    numbers = (r.registers, r.spill_bytes, r.stack_bytes, r.shared_bytes, kernel.loads16, kernel.stores16)
    return [kernel.name, *map(str, numbers), str(sum(kernel.mix.values())), _mix_text(kernel)]


def _table(title: str, columns: Sequence[str], left: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    return table


def print_report(
    console: Console,
    architecture: Architecture,
    kernels: Sequence[KernelReport],
    predictions: Sequence[Prediction],
) -> None:
    """Print the tables of one architecture."""
    where = f"sm_{architecture.architecture} ({architecture.card})"
    if kernels:
        table = _table(f"Kernels, {where}", KERNEL_COLUMNS, 1)
        table.columns[-1].justify = "left"
        for kernel in kernels:
            row = kernel_row(kernel)
            style = "red" if kernel.resources.spill_bytes or kernel.resources.stack_bytes else None
            table.add_row(*row, style=style)
        console.print(table)
    if predictions:
        table = _table(f"Predicted times, {where}", LAYER_COLUMNS, 5)
        for prediction in predictions:
            good = prediction.share_of_floor >= target(prediction)
            cells = layer_row(prediction)
            cells[-1] = f"[{'green' if good else 'red'}]{cells[-1]}[/]"
            table.add_row(*cells)
        console.print(table)
        for line in summary_lines(predictions):
            console.print(line, highlight=False)


def target(prediction: Prediction) -> float:
    """Return the share of the floor that is wanted."""
    return 0.8 if prediction.call.op == "backward_weight" else 0.9


def summary_lines(predictions: Sequence[Prediction]) -> list[str]:
    """Return a sentence for each op, layout and dtype."""
    groups: dict[tuple[str, str, str], list[Prediction]] = {}
    for prediction in predictions:
        call = prediction.call
        groups.setdefault((call.op, call.layout, call.dtype), []).append(prediction)
    lines = []
    for (op, layout, dtype), group in groups.items():
        total = sum(p.floor_seconds for p in group) / sum(p.seconds for p in group)
        worst = min(group, key=lambda p: p.share_of_floor)
        lines.append(
            f"{_OP[op]} {layout} {_SHORT[dtype]}: {total:.0%} of the floor over all layers, worst "
            f"{worst.share_of_floor:.0%} ({worst.call.name}, {worst.main.limit})"
        )
    return lines


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def _tile(config: str) -> str:
    """The tile and the parts of a config, such as ``128x64/4``, or the kernel's name if it has no such choice."""
    found = dict(re.findall(r"(tile_h|tile_w|parts)=(\d+)", config))
    if "tile_h" not in found:
        return config.partition(" ")[0]
    parts = f"/{found['parts']}" if "parts" in found else ""
    return f"{found['tile_h']}x{found['tile_w']}{parts}"


def layers_markdown(predictions: Sequence[Prediction]) -> str:
    """Return a table with a row a layer: for each op its tile, microseconds, and the share of the floor."""
    rows: dict[tuple[str, str, str], dict[str, Prediction]] = {}
    for prediction in predictions:
        call = prediction.call
        rows.setdefault((call.name, call.layout, _SHORT[call.dtype]), {})[call.op] = prediction

    def cells(key: tuple[str, str, str]) -> list[str]:
        ops = rows[key]
        row = [*key, f"{max(p.floor_seconds for p in ops.values()) * 1e6:.0f}"]
        for op in _OP:
            p = ops.get(op)
            row += ["", ""] if p is None else [_tile(p.config), f"{p.seconds * 1e6:.0f} ({p.share_of_floor:.0%})"]
        return row

    columns = ["layer", "layout", "dtype", "floor, us", *(c for name in _OP.values() for c in (f"{name}, tile", "us"))]
    return "\n".join(_markdown_table(columns, map(cells, rows))) + "\n"


def markdown(
    title: str,
    command: str,
    architecture: Architecture,
    kernels: Sequence[KernelReport],
    predictions: Sequence[Prediction],
) -> str:
    """Return the report on one architecture as a document."""
    lines = [
        f"# {title}",
        "",
        f"Predicted for sm_{architecture.architecture} ({architecture.card}), not measured. Made by `{command}`; what "
        "the columns mean and what is assumed is in [static_report.md](../static_report.md).",
        "",
        "## Times",
        "",
        *(f"- {line}" for line in summary_lines(predictions)),
        "",
        *_markdown_table(LAYER_COLUMNS, map(layer_row, predictions)),
        "",
        "## Kernels",
        "",
        *_markdown_table(KERNEL_COLUMNS, map(kernel_row, kernels)),
    ]
    return "\n".join(lines) + "\n"


def document(
    architecture: Architecture, kernels: Sequence[KernelReport], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Return the report on one architecture for a JSON file."""
    return {
        "architecture": architecture.architecture,
        "card": architecture.card,
        "kernels": [
            {
                "name": k.name,
                "source": k.source,
                "shared_bytes": k.resources.shared_bytes,
                **kernel_entry(k),
                "instructions": dict(k.mix),
                "largest_inner_loop": dict(k.loop_mix),
            }
            for k in kernels
        ],
        "layers": [
            {
                "op": p.call.op,
                "layout": p.call.layout,
                "dtype": p.call.dtype,
                "layer": p.call.name,
                "batch": p.call.N,
                "config": p.config,
                "predicted_us": p.seconds * 1e6,
                "floor_us": p.floor_seconds * 1e6,
                "launches_us": p.launch_seconds * 1e6,
                "instructions_per_output": p.per_output(),
                "loads_per_output": p.per_output("global_load", "async_copy"),
                "sector_ratio": sector_ratio(p),
                "bank_ratio": bank_ratio(p),
                "launches": [
                    {
                        "kernel": launch.kernel,
                        "grid": launch.launch.grid,
                        "block": launch.launch.block,
                        "shared_bytes": launch.launch.shared_bytes,
                        "occupancy": vars(launch.occupancy),
                        "waves": launch.waves,
                        "bounds_us": {name: seconds * 1e6 for name, seconds in launch.bounds.items()},
                        "issued": launch.issued,
                        "traffic": launch.traffic,
                    }
                    for launch in p.launches
                ],
            }
            for p in predictions
        ],
    }
