"""What the Triton kernels compile to: registers, spills and shared memory of every kernel and setting, without a GPU.

    python -m bench.static_report.triton [--cover] [--arch 80 90 100 120] [--only REGEX] [--jobs N] [--json FILE]

The launches of triton_launches.py are compiled ahead of time. ptxas and cuobjdump come with Triton. Exit status 1 if
one does not compile, needs more shared memory than a block has, or spills in a loop and may be the setting that is
chosen first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest import mock

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.report import write_json
from bench.static_report import sass
from bench.static_report.compile import run_tool
from bench.static_report.triton_launches import Launch, cover, every, launches_of, specimens
from cnnext.triton_kernels import launching

__all__ = ["ARCHITECTURES", "Compiled", "compile_launch", "compile_launches", "complaint"]

#: Compute capabilities, times ten: Ampere, Hopper, and both kinds of Blackwell.
ARCHITECTURES = (80, 90, 100, 120)

#: Bytes of shared memory that a block may have on the smallest card: sm_86, sm_89 and sm_120.
SHARED_LIMIT = 99 * 1024

#: Bytes a thread that ptxas may put aside outside of loops, which it does so that more blocks find room. To forbid it
#: would take blocks from kernels that do not spill at all: see docs/kernels/triton.md.
SPILL_LIMIT = 32


@dataclass(frozen=True)
class Compiled:
    """What ptxas made of a launch; `rank` 0 is the setting that is chosen unless timings say otherwise."""

    specimen: str
    kernel: str
    settings: str
    rank: int
    arch: int
    registers: int = 0
    spilled_bytes: int = 0
    spills_in_loops: int = 0
    shared_bytes: int = 0
    threads: int = 0
    error: str = ""


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers a thread, bytes of its stack, where spilled registers go, and instructions in loops that use it."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = run_tool([knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]).stdout
        registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
        if registers is None or stack is None:
            raise RuntimeError(f"cuobjdump said nothing about registers: {text}")
        in_loops = 0
        if int(stack[1]):
            listing = run_tool([knobs.nvidia.nvdisasm.path, "-c", "-hex", str(path)]).stdout
            for function in sass.parse(listing).values():
                used = {
                    i.address for loop in sass.loops(function) for i in sass.inside(function, loop) if i.kind == "local"
                }
                in_loops += len(used)
    return int(registers[1]), int(stack[1]), in_loops


def compile_launch(launch: Launch, arch: int) -> Compiled:
    """Compiles one launch for one architecture; what goes wrong is in the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, settings = launch.settings
    which = (launch.specimen, kernel, settings, launch.rank, arch)
    types, constants, attributes = launch.signature()
    source = ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)
    try:
        compiled = triton.compile(
            source, target=GPUTarget("cuda", arch, 32), options=launching.compile_options(launch.chosen)
        )
        resources = _resources(compiled.asm["cubin"])
    except Exception as error:  # the compilers have many ways to fail, and the others should still be tried
        return Compiled(*which, error=f"{type(error).__name__}: {error}")
    return Compiled(*which, *resources, compiled.metadata.shared, launch.chosen.warps * 32)


_wanted: Sequence[tuple[Launch, int]] = ()


def _compile_one(index: int) -> Compiled:
    return compile_launch(*_wanted[index])


@contextmanager
def _own_cache() -> Iterator[None]:
    """Triton's cache in a folder of its own, so that nothing is taken from an earlier run."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
        yield


def compile_launches(wanted: Sequence[tuple[Launch, int]], jobs: int) -> Iterator[Compiled]:
    """Compiles launches for architectures, `jobs` at a time, in their order."""
    global _wanted
    _wanted = wanted
    # Launches cannot be sent to another process, but a forked one has them.
    with _own_cache(), multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_compile_one, range(len(wanted)), chunksize=4)


def complaint(row: Compiled) -> str | None:
    """Why a kernel should not be shipped as it is; None if nothing is wrong."""
    if row.error:
        return f"does not compile: {row.error}"
    if row.shared_bytes > SHARED_LIMIT:
        return f"needs {row.shared_bytes} bytes of shared memory, where some cards have {SHARED_LIMIT}"
    if row.rank == 0 and (row.spills_in_loops or row.spilled_bytes > SPILL_LIMIT):
        return f"spills {row.spilled_bytes} bytes, with {row.spills_in_loops} instructions in loops"
    return None


def table(rows: Sequence[Compiled]) -> Table:
    """A line for each kernel and setting: the most of each resource over the architectures and specimens."""
    groups: dict[tuple[str, str], list[Compiled]] = {}
    for row in rows:
        groups.setdefault((row.kernel, row.settings), []).append(row)
    made = Table("kernel", "setting", "first", "compiled", "registers", "spilled", "in loops", "shared", box=box.SIMPLE)
    for (kernel, settings), group in sorted(groups.items()):
        fields = ("registers", "spilled_bytes", "spills_in_loops", "shared_bytes")
        most = [max(getattr(row, field) for row in group) for field in fields]
        first = "yes" if any(row.rank == 0 for row in group) else ""
        made.add_row(kernel, settings, first, *map(str, (len(group), *most)))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.static_report.triton", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--cover",
        action="store_true",
        help="not every launch, but each setting: for every architecture if it may be chosen first, else for one",
    )
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities, times ten")
    parser.add_argument("--only", metavar="REGEX", default="", help="only specimens in whose name this is found")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at a time")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set, so there is nothing to compile")
    launches = [launch for one in specimens() if re.search(options.only, one.name) for launch in launches_of(one)]
    if not launches:
        parser.error(f"{options.only!r} is in no name of a specimen")
    wanted = (cover if options.cover else every)(launches, options.arch)

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or pipe has no width of its own
    columns = (TextColumn("compiling"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        rows = list(progress.track(compile_launches(wanted, options.jobs), total=len(wanted)))
    console.print(table(rows))
    if options.json:
        write_json(options.json, {"rows": [asdict(row) for row in rows]})
    complaints = [(row, text) for row in rows if (text := complaint(row)) is not None]
    for row, text in complaints:
        console.print(
            f"{row.kernel} {row.settings} sm_{row.arch} ({row.specimen}) {text}", soft_wrap=True, markup=False
        )
    console.print(f"{len(rows)} compiled, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
