"""The emulator: planted bugs are found, in the builds and as precisely as docs/emulator.md says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.emulator import build

pytestmark = pytest.mark.skipif(build.cuda_headers() is None, reason="no CUDA headers: neither a toolkit nor a package")

ROOT = Path(__file__).parent.parent
BUILDS = tuple(build.BUILDS)
SOURCES = tuple((ROOT / "tests" / "emulator").glob("planted_bugs*.cu"))
DOCUMENT = ROOT / "docs" / "emulator.md"

#: Threads that do something wrong, where it is not just one of many: block and thread.
CULPRITS = {
    "global_out_of_bounds": (1, 63),
    "dynamic_shared_out_of_bounds": (0, 63),
    "static_shared_out_of_bounds": (0, 63),
    "copy_out_of_bounds": (1, 63),
    "uninitialised_dynamic_shared": (0, 5),
}


def documented() -> dict[str, set[str]]:
    """The table of docs/emulator.md: each planted bug, and the builds that find it."""
    rows = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch("`[a-z_]+`", cells[0]) and set(cells[-3:]) <= {"yes", "no"}:
            rows[cells[0].strip("`")] = {name for name, cell in zip(BUILDS, cells[-3:], strict=True) if cell == "yes"}
    return rows


def marked_lines(mark: str) -> set[tuple[str, int]]:
    """Files with planted bugs, and lines of them, that end in a comment with this mark."""
    return {
        (source.name, number)
        for source in SOURCES
        for number, line in enumerate(source.read_text().splitlines(), 1)
        if line.endswith(f"// {mark}")
    }


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, dict[str, str]]]:
    """What each build says of each bug, planted ("True") or not ("False")."""
    result = {}
    for name in BUILDS:
        command = [sys.executable, "-m", "tests.emulator.planted_bugs", name]
        environment = {**os.environ, **build.environment(name), "CNNEXT_EMULATOR_ORDER": "random"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 0, done.stderr
        result[name] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="module")
def plain() -> ModuleType:
    return build.load("plain", "planted_bugs")


@pytest.fixture(scope="module")
def checked() -> ModuleType:
    return build.load("checked", "planted_bugs")


def test_every_planted_bug_is_documented(plain: ModuleType) -> None:
    assert list(documented()) == plain.names()


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("bug", documented())
def test_planted_bug(reports: dict[str, dict[str, dict[str, str]]], bug: str, name: str) -> None:
    report = reports[name][bug]["True"]
    named = {(file, int(line)) for file, line in re.findall(r"(planted_bugs\w*\.cu):(\d+)", report)}
    if name not in documented()[bug]:
        assert not named, f"found after all: {report}"
        return
    marked = marked_lines(f"PLANTED {bug}")
    assert marked
    assert named & marked, report
    position = re.search(r"\[block \((\d+),0,0\) thread \((\d+),0,0\), random order, seed 0\]", report)
    assert position, report
    if bug in CULPRITS:
        assert tuple(map(int, position.groups())) == CULPRITS[bug]


@pytest.mark.parametrize("name", BUILDS)
@pytest.mark.parametrize("bug", documented())
def test_twin_without_the_bug(reports: dict[str, dict[str, dict[str, str]]], bug: str, name: str) -> None:
    assert reports[name][bug]["False"] == ""


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_races_are_found_in_any_order(checked: ModuleType, order: str) -> None:
    races = [bug for bug, builds in documented().items() if builds == {"checked"}]
    for seed in range(5):
        checked.set_schedule(order, seed)
        for bug in races:
            with pytest.raises(RuntimeError, match=f"{order} order, seed {seed}"):
                checked.run(bug, planted=True)
            checked.run(bug, planted=False)


def test_race_names_both_sides(checked: ModuleType) -> None:
    checked.set_schedule("ascending")
    with pytest.raises(RuntimeError) as error:
        checked.run("second_missing_barrier", planted=True)
    (_, write), (_, read) = sorted(marked_lines("PLANTED second_missing_barrier"))
    assert str(error.value).startswith(f"tests/emulator/planted_bugs.cu:{read}: race: read of 4 bytes at dynamic")
    assert f"a write by thread (0,0,0) at tests/emulator/planted_bugs.cu:{write}" in str(error.value)
    assert "thread (32,0,0), ascending order" in str(error.value)


def test_orders(plain: ModuleType) -> None:
    plain.set_schedule("ascending")
    count = len(plain.thread_order())
    assert plain.thread_order() == [2 * i + count for i in range(count)]
    plain.set_schedule("descending")
    assert plain.thread_order() == [2 * i + count for i in reversed(range(count))]
    with pytest.raises(ValueError, match="random, ascending or descending"):
        plain.set_schedule("sideways")


def test_a_seed_decides_the_random_order(plain: ModuleType) -> None:
    seen = set()
    for seed in range(4):
        plain.set_schedule("random", seed)
        order = plain.thread_order()
        assert plain.thread_order() == order
        seen.add(tuple(order))
    assert len(seen) == 4


def test_a_failure_leaves_nothing_behind(plain: ModuleType) -> None:
    plain.set_schedule("random", 0)
    before = plain.thread_order()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="deadlock"):
            plain.run("deadlock", planted=True)
        with pytest.raises(RuntimeError, match="never waited"):
            plain.run("copy_never_waited", planted=True)
    assert plain.thread_order() == before


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "reason"),
    [
        ((1, 1, 1), (1025, 1, 1), 0, "more than 1024 threads"),
        ((1, 1, 1), (32, 33, 1), 0, "more than 1024 threads"),
        ((1, 1, 1), (1, 1, 65), 0, "more than 64 threads in z"),
        ((1, 65536, 1), (1, 1, 1), 0, "65535"),
        ((1, 1, 65536), (1, 1, 1), 0, "65535"),
        ((1 << 31, 1, 1), (1, 1, 1), 0, "2\\^31 - 1"),
        ((0, 1, 1), (1, 1, 1), 0, "a dimension is 0"),
        ((1, 1, 1), (1, 0, 1), 0, "a dimension is 0"),
        ((1, 1, 1), (1, 1, 1), 227 * 1024 + 1, "more than 227 KiB"),
    ],
)
def test_launch_beyond_limits(
    plain: ModuleType, grid: tuple[int, ...], block: tuple[int, ...], shared_bytes: int, reason: str
) -> None:
    with pytest.raises(RuntimeError, match=f"launch refused: .*{reason}"):
        plain.empty_launch(grid, block, shared_bytes)


def test_launch_at_the_limits(plain: ModuleType) -> None:
    plain.empty_launch((1, 1, 1), (1024, 1, 1), 227 * 1024)
    plain.empty_launch((1, 65535, 1), (1, 1, 1), 0)


# 32 lanes read `vector` floats each, `stride` vectors apart: sectors of 32 bytes that they touch, and passes through
# the 32 banks: 32 lanes at a time for 4 bytes, 16 for 8, 8 for 16.
@pytest.mark.parametrize(
    ("vector", "stride", "sectors", "passes"),
    [
        (1, 1, 4, 1),
        (1, 2, 8, 2),
        (1, 3, 12, 1),
        (1, 8, 32, 8),
        (1, 32, 32, 32),
        (2, 1, 8, 2),
        (2, 2, 16, 4),
        (2, 3, 24, 2),
        (2, 16, 32, 32),
        (4, 1, 16, 4),
        (4, 2, 32, 8),
        (4, 3, 32, 4),
        (4, 8, 32, 32),
    ],
)
def test_statistics(checked: ModuleType, vector: int, stride: int, sectors: int, passes: int) -> None:
    checked.clear_statistics()
    checked.collect_statistics(True)
    try:
        checked.strided_reads(vector, stride)
    finally:
        checked.collect_statistics(False)
    of_line = {(s.line, s.space): s for s in checked.statistics()}
    (((_, line_global),), ((_, line_shared),)) = (marked_lines(f"STRIDED {space}") for space in ("global", "shared"))
    for line, space, cost, ideal in (
        (line_global, "global", sectors, 4 * vector),
        (line_shared, "shared", passes, vector),
    ):
        found = of_line[line, space]
        assert found.file == "tests/emulator/planted_bugs.cu"
        assert (found.access, found.bytes, found.accesses, found.requests) == ("read", 4 * vector, 32, 1)
        assert (found.cost, found.ideal) == (cost, ideal)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fma_rounds_once(plain: ModuleType, dtype: torch.dtype) -> None:
    """Against exact fractions, also where a product in the middle between two numbers makes rounding twice go wrong."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 2000, generator=generator).add(1).to(dtype)
    c = torch.exp2(-torch.rand(2000, generator=generator) * (20 if dtype is torch.float16 else 100)).to(dtype)
    c[::2] *= -1
    a[::3] = 1 + torch.finfo(dtype).eps
    b[::3] = 1.5  # a product in the middle

    def bits(values: torch.Tensor) -> list[int]:
        return [value & 0xFFFF for value in values.view(torch.int16).tolist()]

    for x, y, z, *raw in zip(a.tolist(), b.tolist(), c.tolist(), bits(a), bits(b), bits(c), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        result = plain.fma_bits(dtype is torch.bfloat16, *raw)
        near = torch.tensor([result - 1, result, result + 1]).to(torch.int16).view(dtype).tolist()
        below, error, above = (abs(Fraction(value) - exact) for value in near)
        assert error < min(below, above) or (error == min(below, above) and result % 2 == 0), (x, y, z)


def test_other_builds_count_nothing(plain: ModuleType) -> None:
    plain.collect_statistics(True)
    plain.strided_reads(1, 1)
    assert plain.statistics() == []
