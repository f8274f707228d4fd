"""The HTML page of a result: one file that needs nothing else."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.cases import KINDS, PASSES
from bench.runner import SIDES
from bench.tables import LAYOUT_LABEL, PASS_LABEL, SIDE_LABEL, digits, spans_overlap

_TEMPLATE = "report.html.j2"
#: The ratio at which a bar of the layers is full; on a logarithmic scale, to either side of 1.
_FULL_RATIO = 8.0


def _bar(ratio: float) -> dict[str, float]:
    """Left edge and width, in percent of the track, of the bar of a ratio, which begins at 1 in the track's quarter."""
    zero = 25.0
    reach = max(-1.0, min(1.0, math.log(ratio) / math.log(_FULL_RATIO)))
    width = reach * (100 - zero) if reach >= 0 else -reach * (100 - zero)
    left = zero if reach >= 0 else max(0.0, zero - width)
    return {"left": left, "width": zero - left if reach < 0 else width}


def _row(case: dict[str, Any]) -> dict[str, Any]:
    sides = {
        side: {key: digits(value) for key, value in case[side].items() if key != "samples"} if case[side] else {}
        for side in SIDES
    }
    return {
        "id": case["id"],
        "name": case.get("layer") or case.get("network"),
        "kind": case["kind"],
        "layout": LAYOUT_LABEL[case["layout"]],
        "pass": PASS_LABEL[case["pass"]],
        "paths": case.get("paths", {}),
        "ratio": case["ratio"],
        "bar": _bar(case["ratio"]) if case["ratio"] is not None else None,
        "noise": case["ratio"] is not None and spans_overlap(case),
        "error": {side: "-" if case["error"][side] is None else f"{case['error'][side]:.0e}" for side in SIDES},
        "accurate": case["accurate"],
        "failures": case["failures"],
        "repro": case["repro"],
        "networks": ", ".join(case.get("counts", {})),
        **sides,
    }


def _network_bars(document: dict[str, Any]) -> list[dict[str, Any]]:
    groups = []
    for row in document["summary"]["networks"]:
        rates = {side: row[side] for side in SIDES} | row.get("baselines", {})
        most = max(rates.values())
        bars = [
            {"side": SIDE_LABEL.get(s, s), "rate": digits(r), "width": 100 * r / most, "ours": s == "cnnext"}
            for s, r in rates.items()
        ]
        groups.append({"title": f"{row['network']}, {PASS_LABEL[row['pass']]}", "ratio": row["ratio"], "bars": bars})
    return groups


def _kinds(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The summary of the layers by kind and layout, and in it by pass."""
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for row in document["summary"]["layers"]:
        kinds.setdefault((row["kind"], row["layout"]), {})[row["pass"]] = row
    return kinds


def _layer_bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group the layers by kind, layout and pass, for the speed-ups."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] in KINDS and row["bar"]:
            groups.setdefault((row["kind"], row["layout"], row["pass"]), []).append(row)
    order = sorted(groups, key=lambda key: (list(KINDS).index(key[0]), key[1], list(PASS_LABEL.values()).index(key[2])))
    return [
        {
            "title": f"{kind}, {layout}, {pass_name}",
            "geomean": math.exp(sum(math.log(row["ratio"]) for row in groups[kind, layout, pass_name]) / n),
            "rows": groups[kind, layout, pass_name],
        }
        for kind, layout, pass_name in order
        if (n := len(groups[kind, layout, pass_name]))
    ]


def _roofline(document: dict[str, Any]) -> Markup | None:
    if importlib.util.find_spec("matplotlib") is None:
        return None  # a page without its picture is better than none
    from bench import plots

    figure = plots.roofline(document)
    return Markup(plots.to_svg(figure)) if figure else None


def render(document: dict[str, Any]) -> str:
    """Write the page of a result.

    Args:
        document: the result, see `bench.report.complete`.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent)
    # Every value is escaped, for a case's failure is a message of anybody's making.
    engine = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    engine.filters["layout"] = LAYOUT_LABEL.__getitem__
    engine.filters["pass_label"] = PASS_LABEL.__getitem__
    rows = [_row(case) for case in document["cases"]]
    return engine.get_template(_TEMPLATE).render(
        document=document,
        environment=document["environment"],
        settings=document["settings"],
        peaks=document.get("peaks"),
        summary=document["summary"],
        rows=rows,
        kinds=_kinds(document),
        passes=[p for p in PASSES if any(case["pass"] == p for case in document["cases"])],
        slower=[row for row in rows if row["ratio"] is not None and row["ratio"] < 1],
        network_bars=_network_bars(document),
        layer_bars=_layer_bars(rows),
        roofline=_roofline(document),
    )
