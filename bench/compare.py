"""Finds what became slower from one result to another: ``python -m bench compare before.json after.json``.

The machine itself may be faster or slower than it was, and noisier: PyTorch's side of the same cases shows by how
much. Its median is taken out. A case is worse if it lost more than the tolerance, if that is beyond what PyTorch's
cases gain and lose by chance, and if the samples of the two runs do not overlap. A group of cases, those of a kind in
a layout or a pass, is worse if its median lost more than half of the tolerance, and so many of its cases lost that
chance would rarely do it; that finds a small loss in many noisy cases.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.options import Parser
from bench.report import load

#: How rarely chance alone may make a group look worse.
_CHANCE = 0.001
#: How far out a case must be, in standard deviations of PyTorch's cases: among hundreds, none may be so by chance.
_SIGMAS = 4.0


@dataclass(frozen=True)
class Change:
    """A case or a group that became slower."""

    name: str
    #: Time after over time before, without the machine's own change.
    factor: float
    #: What makes it more than noise, in words.
    why: str


@dataclass(frozen=True)
class Comparison:
    """What `compare` found."""

    cases: int
    #: Times after over times before on PyTorch's side, the median.
    drift: float
    #: How far cases are off by chance, as a share of their times.
    noise: float
    slower: list[Change]
    faster: list[Change]


def _by_id(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {case["id"]: case for case in document["cases"] if case["cnnext"] and case["pytorch"]}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Why two results cannot be compared, a line for each reason."""
    lines = []
    for where, key in (("environment", "device_name"), ("settings", "dtype"), ("settings", "batch")):
        values = before[where].get(key), after[where].get(key)
        if values[0] != values[1]:
            lines.append(f"{key} is {values[0]!r} in the first and {values[1]!r} in the second")
    return lines


def _chance(lost: int, cases: int) -> float:
    """The probability that at least ``lost`` of the cases lose if each is as likely to win."""
    return sum(math.comb(cases, k) for k in range(lost, cases + 1)) / 2**cases


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float = 0.05) -> Comparison:
    """Compare two results case by case and group by group.

    Args:
        before: a result.
        after: another one, of the same device, dtype and batch.
        tolerance: a loss up to this share of the time is none.

    Raises:
        ValueError: if the two have no case in common.
    """
    old, new = _by_id(before), _by_id(after)
    common = [case_id for case_id in old if case_id in new]
    if not common:
        raise ValueError("the two results have no case in common")
    control = [math.log(new[i]["pytorch"]["ms"] / old[i]["pytorch"]["ms"]) for i in common]
    middle = statistics.median(control)
    drift = math.exp(middle)
    # The standard deviation, estimated so that a few cases far out do not count.
    noise = 1.4826 * statistics.median(abs(value - middle) for value in control)
    least = max(1 + tolerance, math.exp(_SIGMAS * noise))
    slower, faster = [], []
    groups: dict[tuple[str, str], list[float]] = {}
    for case_id in common:
        a, b = old[case_id]["cnnext"], new[case_id]["cnnext"]
        factor = b["ms"] / a["ms"] / drift
        kind, layout, pass_name = (new[case_id][key] for key in ("kind", "layout", "pass"))
        for group in ((kind, layout), (kind, pass_name)):
            groups.setdefault(group, []).append(factor)
        times = " to ".join(f"{t['ms']:.3g} ms ({t['ms_p20']:.3g}-{t['ms_p80']:.3g})" for t in (a, b))
        if factor > least and b["ms_p20"] / drift > a["ms_p80"]:
            slower.append(Change(case_id, factor, times))
        elif factor < 1 / least and b["ms_p80"] / drift < a["ms_p20"]:
            faster.append(Change(case_id, factor, times))
    for key, factors in groups.items():
        slower += _group(", ".join(key), factors, tolerance / 2)
    return Comparison(len(common), drift, noise, slower, faster)


def _group(name: str, factors: Sequence[float], tolerance: float) -> Iterator[Change]:
    median, lost = statistics.median(factors), sum(factor > 1 for factor in factors)
    if median > 1 + tolerance and _chance(lost, len(factors)) < _CHANCE:
        yield Change(f"all of {name}", median, f"{lost} of {len(factors)} cases lost")


def main(argv: Sequence[str], console: Console) -> int:
    """Print what changed.

    Returns:
        0 if nothing became slower, 1 if something did.
    """
    parser = Parser(prog="python -m bench compare", description="Finds what became slower from one result to another.")
    parser.add_argument("before", type=Path, help="JSON file that python -m bench wrote")
    parser.add_argument("after", type=Path, help="another one, of the same device, dtype and batch")
    parser.add_argument("--tolerance", type=float, default=5.0, metavar="PERCENT", help="a smaller loss is none (5)")
    given = parser.parse_args(argv)
    try:
        before, after = load(given.before), load(given.after)
        reasons = differences(before, after)
        if reasons:
            parser.error(f"cannot compare these: {'; '.join(reasons)}")
        found = compare(before, after, given.tolerance / 100)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    console.print(
        f"{found.cases} cases in common; PyTorch itself takes {found.drift:.2f} times as long", highlight=False
    )
    for title, style, changes in (("faster", "green", found.faster), ("slower", "red", found.slower)):
        for change in sorted(changes, key=lambda change: change.factor):
            line = f"[{style}]{change.factor:.2f}x the time[/] {change.name}: {change.why}"
            console.print(line, highlight=False, soft_wrap=True)
        console.print(f"{len(changes)} {title}", highlight=False)
    return 1 if found.slower else 0
