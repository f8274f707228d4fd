"""The environment variable CNNEXT_CPU_ISA chooses among the instruction sets, and each gives the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ISAS = ("avx512", "avx2", "baseline")

# Runs in a process of its own: the choice is made once, at the first call.
PROGRAM = """
import sys
import torch
import cnnext
from cnnext.info import _cpu_isa
from tests import checking
from tests.cases import CASES, NATIVE_LAYOUTS
from tests.reference import DTYPES

for op, cases in CASES.items():
    for case in cases[1::4]:
        for dtype in DTYPES:
            for layout in NATIVE_LAYOUTS:
                checking.check_integer_values(op, case, dtype, layout, backend="cpu")
                checking.check_random_values(op, case, dtype, layout, "hardswish", backend="cpu")
print(_cpu_isa())
"""


def _run(isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"CNNEXT_CPU_ISA": isa, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def _supported(isa: str) -> bool:
    program = "import sys, cnnext; from tests.kernel_library import load_table; from cnnext import _extension as e; "
    program += "sys.exit(load_table(e.cpu.path, sys.argv[1]) is None)"
    return subprocess.run([sys.executable, "-c", program, isa], cwd=ROOT, timeout=120).returncode == 0


@pytest.mark.parametrize("isa", ISAS)
def test_chosen_instruction_set_runs_and_is_right(isa: str) -> None:
    if not _supported(isa):
        pytest.skip(f"this machine does not have {isa}")
    result = _run(isa)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == [isa]


def test_unknown_instruction_set_falls_back_to_the_best() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from cnnext.info import _cpu_isa; print(_cpu_isa())"],
        cwd=ROOT,
        env=os.environ | {"CNNEXT_CPU_ISA": "mmx"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == next(isa for isa in ISAS if _supported(isa))
