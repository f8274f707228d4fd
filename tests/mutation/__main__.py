"""Plants each fault in a copy of csrc/cpu, builds it, and says whether the kernel tests notice.

    python -m tests.mutation [--jobs N] [--only WORD] [--list]

A fault is killed if the sweep of its family and direction (tests/kernel_sweep.py) fails, and the same sweep passes on
the kernels as they are. Exit status 0 if every fault is killed; 1 if one survives, does not build, or does not apply.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutation.faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
COMPILER = os.environ.get("CXX", "g++")
CHECKS = ("exact_values", "rounded_values", "infinities", "activations", "scalars")

# A table of one family of one instruction set, so that a fault costs one translation unit; the fused kernels call those
# of the others.
_STEMS = {"depthwise": ("depthwise",), "grouped": ("gemm",), "pointwise": ("gemm",)}
_STEMS["fused"] = ("fused", "gemm", "depthwise")
TABLE = """
#include "cpu/kernels.h"
#include <cstring>
namespace cnnext::cpu::{isa} {{ extern const {type} {kernels}; }}
extern "C" const cnnext::cpu::KernelTable* cnnext_cpu_kernels_for(const char* isa) {{
  static cnnext::cpu::KernelTable table{{"{isa}", {{}}, {{}}, {{}}, {{}}}};
  table.{family} = cnnext::cpu::{isa}::{kernels};
  return std::strcmp(isa, "{isa}") == 0 ? &table : nullptr;
}}
"""


def _run(command: Sequence[str | Path], timeout: float) -> tuple[int, str]:
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return 124, "it ran out of time"
    return result.returncode, result.stdout + result.stderr


def _build(sources: Path, folder: Path, family: str, isa: str) -> tuple[Path, str | None]:
    """The kernels of one family and instruction set as a shared object, and the compiler's complaint if any."""
    table = folder / "table.cpp"
    table.write_text(
        TABLE.format(
            isa=isa,
            family=family,
            type="FusedKernels" if family == "fused" else "OpKernels",
            kernels=f"k{family.capitalize()}Kernels",
        )
    )
    library = folder / "kernels.so"
    flags = ["-std=c++17", "-O1", "-g0", "-w", "-fPIC", "-shared", f"-I{sources}"]
    status, output = _run(
        [COMPILER, *flags, table, *(sources / f"cpu/isa/{stem}_{isa}.cpp" for stem in _STEMS[family]), "-o", library],
        600,
    )
    return library, output[-2000:] if status else None


def _sweep_command(library: Path, family: str, isa: str, direction: str | None = None) -> list[str]:
    """The sweep of a family, or of one of its directions."""
    where = ["--library", str(library), "--isa", isa]
    if family == "fused":
        return [sys.executable, "-m", "tests.fused_sweep", *where, *(["--kernel", direction] if direction else [])]
    only = ["--direction", direction] if direction else []
    return [sys.executable, "-m", "tests.kernel_sweep", *where, "--family", family, *only]


def _sweep(library: Path, fault: Fault, isa: str, *flags: str) -> tuple[int, str]:
    return _run([*_sweep_command(library, fault.family, isa, fault.direction), *flags], 300)


def _isa_of(fault: Fault) -> str:
    """The fault's instruction set, or the one that every machine has."""
    if fault.isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        return "baseline"
    return fault.isa


def try_fault(fault: Fault) -> str | None:
    """Plants one fault; None if the tests notice it, else what went wrong."""
    isa = _isa_of(fault)
    with tempfile.TemporaryDirectory(prefix="cnnext-fault-") as name:
        folder = Path(name)
        shutil.copytree(SOURCES, folder / "csrc", ignore=shutil.ignore_patterns("bindings", "cuda"))
        path = folder / "csrc" / "cpu" / fault.file
        if not path.exists():
            return f"there is no csrc/cpu/{fault.file}"
        text = path.read_text()
        if text.count(fault.old) != 1:
            return f"its text occurs {text.count(fault.old)} times in csrc/cpu/{fault.file}: {fault.old}"
        path.write_text(text.replace(fault.old, fault.new))
        library, complaint = _build(folder / "csrc", folder, fault.family, isa)
        if complaint is not None:
            return f"it does not compile: {complaint}"
        status, output = _sweep(library, fault, isa, "--stop-at-first")
    if status == 0:
        return "SURVIVED: the tests pass"
    noticed = "FAILED" in output or status < 0 or status == 124
    return None if noticed else f"the tests did not run: {output[-1000:]}"


def check_unchanged(faults: Sequence[Fault]) -> list[str]:
    """What fails on the kernels as they are; without this, a broken build would count as every fault killed."""
    complaints = []
    for family, isa in sorted({(fault.family, _isa_of(fault)) for fault in faults}):
        with tempfile.TemporaryDirectory(prefix="cnnext-fault-") as name:
            library, complaint = _build(SOURCES, Path(name), family, isa)
            if complaint is None:
                status, output = _run(_sweep_command(library, family, isa), 600)
                complaint = output[-2000:] if status else None
        print(f"{'ok' if complaint is None else 'BROKEN':8} {family} kernels of {isa} without a fault", flush=True)
        if complaint is not None:
            complaints.append(complaint)
    return complaints


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults tried at a time")
    parser.add_argument(
        "--only", default="", help="only faults with this word in their name, file, family or direction"
    )
    parser.add_argument("--list", action="store_true", help="list the faults and stop")
    options = parser.parse_args(argv)
    faults = [
        fault for fault in FAULTS if options.only in f"{fault.name} {fault.file} {fault.family} {fault.direction}"
    ]
    if options.list:
        for fault in faults:
            print(f"{fault.file:36} {fault.direction:16} {fault.name}")
        return 0
    if not faults:
        parser.error(f"no fault has {options.only!r} in its name")
    for complaint in check_unchanged(faults):
        print(complaint)
        return 1
    failures = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, complaint in zip(faults, pool.map(try_fault, faults), strict=True):
            failures += complaint is not None
            verdict = "killed" if complaint is None else "PROBLEM"
            print(f"{verdict:8} {fault.file:36} {fault.direction:16} {fault.name}", flush=True)
            if complaint is not None:
                print(f"         {complaint}", flush=True)
    print(f"{len(faults) - failures} of {len(faults)} faults killed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
