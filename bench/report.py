"""Turns measured cases into a summary, and into files: JSON, CSV, HTML and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.cases import KINDS, LAYOUTS, PASSES, LayerShape
from bench.files import write_json, write_text
from bench.networks import SOURCES
from bench.options import DTYPES, Parser
from bench.runner import SIDES, Case
from bench.tables import print_report

__all__ = [
    "FORMAT_VERSION",
    "complete",
    "geometric_mean",
    "load",
    "print_report",
    "summarise",
    "write_all",
    "write_json",
]

FORMAT_VERSION = 2


# -------------------------------------------------------------------------------------------------------------- numbers


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean, the right mean for ratios.

    Raises:
        ValueError: if there are no values or one is not positive.

    Example:
        >>> geometric_mean([0.5, 2.0])
        1.0
    """
    if not values or min(values) <= 0:
        raise ValueError("the geometric mean needs at least one value, all of them positive")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def summarise_ratios(cases: Iterable[Case]) -> dict[str, Any] | None:
    """Return count, geomean, min and max of the cases' ratios, or None if no case has one."""
    ratios = [case["ratio"] for case in cases if case["ratio"] is not None]
    if not ratios:
        return None
    return {"count": len(ratios), "geomean": geometric_mean(ratios), "min": min(ratios), "max": max(ratios)}


def summarise(cases: Sequence[Case]) -> dict[str, Any]:
    """Reduce the cases to what a reader asks first.

    Returns:
        ``layers``: a row for each kind, layout and pass, with count, geomean, min and max of the ratio.
        ``networks``: a row for each network and pass, the best layout of each side against the other's.
        ``slower``: ids of the cases in which PyTorch is faster, slowest first.
        ``on_aten``: ids of the layers that cnnext left to PyTorch, so that both sides ran the same kernel.
        ``inaccurate`` and ``failed``: ids of the cases in which cnnext's result is wrong, or there is none.
    """
    layers = []
    for kind in KINDS:
        for layout in LAYOUTS:
            for pass_name in PASSES:
                key = {"kind": kind, "layout": layout, "pass": pass_name}
                ratios = summarise_ratios(case for case in cases if key.items() <= case.items())
                if ratios is not None:
                    layers.append(key | ratios)
    slower = sorted((c for c in cases if c["ratio"] is not None and c["ratio"] < 1), key=lambda c: c["ratio"])
    return {
        "layers": layers,
        "networks": _best_of_layouts(cases),
        "slower": [case["id"] for case in slower],
        "on_aten": [case["id"] for case in cases if case.get("paths", {}).get("cnnext") == "aten"],
        "inaccurate": [case["id"] for case in cases if "cnnext" not in case["failures"] and not case["accurate"]],
        "failed": [case["id"] for case in cases if "cnnext" in case["failures"]],
    }


def complete(document: dict[str, Any]) -> None:
    """Add what follows from a document: rates, shares of the roofs, a command to repeat each case, the summary."""
    settings, peaks = document["settings"], document.get("peaks")
    element_bytes = DTYPES[settings["dtype"]].itemsize
    for case in document["cases"]:
        case["repro"] = _repro(case, settings)
        if case["kind"] == "network":
            continue
        pairs = ("stride", "padding", "dilation")
        shape = LayerShape(**case["shape"] | {key: tuple(case["shape"][key]) for key in pairs})
        case["bytes"] = shape.bytes(settings["batch"], element_bytes)
        for side in SIDES:
            if case[side]:
                seconds = case[side]["ms"] / 1e3
                case[side]["gb_per_s"] = case["bytes"] / seconds / 1e9
                case[side]["gmac_per_s"] = case["multiply_adds"] / seconds / 1e9
                if peaks:
                    floor = max(
                        case["bytes"] / peaks["copy_bytes_per_s"], case["multiply_adds"] / peaks["multiply_adds_per_s"]
                    )
                    case[side]["percent_of_roof"] = 100 * floor / seconds
    document["summary"] = summarise(document["cases"])


def _repro(case: Case, settings: dict[str, Any]) -> str:
    """The command that measures this case alone."""
    if case["kind"] == "network":
        words = ["train" if case["pass"] == "training" else "models", "--network", case["network"]]
    else:
        from_files = [name for name in case["counts"] if name in SOURCES]
        words = ["ops", "--network", from_files[0]] if from_files else ["--network", next(iter(case["counts"]))]
    words += ["--dtype", settings["dtype"], "--batch", str(settings["batch"])]
    if settings.get("backend", "auto") != "auto":
        words += ["--backend", settings["backend"]]
    return shlex.join(["python", "-m", "bench", *words, "--case", case["id"], "--seconds", "5"])


def _best_of_layouts(cases: Sequence[Case]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case["kind"] == "network" and case["ratio"] is not None:
            groups.setdefault((case["network"], case["pass"]), []).append(case)
    rows = []
    for (network, pass_name), group in groups.items():
        best = {side: max(case[side]["images_per_s"] for case in group) for side in SIDES}
        others: dict[str, float] = {}
        for case in group:
            for name, timing in case.get("baselines", {}).items():
                if "images_per_s" in timing:
                    others[name] = max(others.get(name, 0.0), timing["images_per_s"])
        row = {"network": network, "pass": pass_name, **best, "ratio": best["cnnext"] / best["pytorch"]}
        rows.append(row | {"baselines": others})
    return rows


# ----------------------------------------------------------------------------------------------------------------- JSON


def load(path: Path) -> dict[str, Any]:
    """Read a result file, of this format or an older one.

    Raises:
        ValueError: if it is none.
        OSError: if it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(document, dict) or document.get("format_version") not in range(1, FORMAT_VERSION + 1):
        raise ValueError(f"{path} is not a result of python -m bench")
    return document


# ---------------------------------------------------------------------------------------------------------- other files


def to_csv(document: dict[str, Any]) -> str:
    """Write the cases as a table: a line for each case and side."""
    settings, where = document["settings"], document["environment"]
    fixed = {"dtype": settings["dtype"], "batch": settings["batch"], "device": where["device_name"]}
    fixed |= {"torch": where["torch"], "commit": where["commit"]}
    names = ("ms", "ms_p20", "ms_p80", "images_per_s", "samples", "gb_per_s", "gmac_per_s", "percent_of_roof")
    text = io.StringIO()
    columns = ("id", "kind", "layout", "pass", "side", "path", *names, "error", "ratio", *fixed)
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for case in document["cases"]:
        row = {key: case[key] for key in ("id", "kind", "layout", "pass")} | fixed
        sides = {side: case[side] for side in SIDES if case[side]} | case.get("baselines", {})
        for side, timing in sides.items():
            if "ms" not in timing:
                continue
            figures = {name: f"{timing[name]:.6g}" for name in names if name in timing}
            error = case["error"].get(side, timing.get("difference"))
            more = {"side": side, "path": case.get("paths", {}).get(side, ""), "error": f"{error:.2g}"}
            if side == "cnnext" and case["ratio"] is not None:
                more["ratio"] = f"{case['ratio']:.4g}"
            writer.writerow(row | figures | more)
    return text.getvalue()


def write_all(path: Path, document: dict[str, Any], pictures: Path | None = None) -> list[Path]:
    """Write a result as JSON to ``path``, and as CSV and HTML beside it.

    Args:
        path: of the JSON file.
        document: the result, see `complete`.
        pictures: a directory for the pictures of the HTML page as PNG files, None for none.

    Returns:
        The files.
    """
    from bench import html

    write_json(path, document)
    table, page = path.with_suffix(".csv"), path.with_suffix(".html")
    write_text(table, to_csv(document))
    write_text(page, html.render(document))
    if pictures is None:
        return [path, table, page]
    from bench import plots

    return [path, table, page, *plots.write_pictures(document, pictures)]


def main(argv: Sequence[str], console: Console) -> int:
    """Write the CSV table, the HTML page and the pictures of a result again, and print its tables."""
    parser = Parser(prog="python -m bench report", description="Prints a result of the benchmark, and writes it again.")
    parser.add_argument("result", type=Path, help="JSON file that python -m bench wrote")
    parser.add_argument("--out", type=Path, help="JSON file to write, the others beside it (default: the same file)")
    parser.add_argument("--pictures", type=Path, metavar="DIRECTORY", help="write the plots there, as PNG files")
    parser.add_argument("--markdown", action="store_true", help="print the tables of README.md and nothing else")
    given = parser.parse_args(argv)
    try:
        document = load(given.result)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    complete(document)
    if given.markdown:
        from bench import markdown

        print(markdown.tables(document))
        return 0
    written = write_all(given.out or given.result, document, given.pictures)
    print_report(console, document)
    console.print(f"written to {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return 0
