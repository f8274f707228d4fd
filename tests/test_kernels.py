"""The CPU kernels, called directly: every instruction set this machine has, memory guarded, work split in every way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnext import _extension
from tests.cases import CASES
from tests.kernel_library import NOT_ON_THIS_MACHINE

ROOT = Path(__file__).resolve().parent.parent
# glibc fills fresh memory with 0xfe, about -1.7e38 in float32, so a workspace that a kernel reads unwritten is seen.
POISONED_HEAP = {"MALLOC_PERTURB_": "1"}


def _sweep(module: str, isa: str, *flags: str) -> None:
    flags += ("--at-start",) if isa == "avx2" else ()  # one set is enough for reading before the operands
    command = [sys.executable, "-m", module, "--isa", isa, *flags, "--library", str(_extension.cpu.path)]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | POISONED_HEAP, capture_output=True, text=True, timeout=300
    )
    if result.returncode == NOT_ON_THIS_MACHINE:
        pytest.skip(f"this machine does not have {isa}")
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    assert " 0 failures" in result.stdout


@pytest.mark.parametrize("family", CASES)
@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_kernels_of_every_instruction_set(isa: str, family: str) -> None:
    _sweep("tests.kernel_sweep", isa, "--family", family)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_fused_kernels_of_every_instruction_set(isa: str) -> None:
    _sweep("tests.fused_sweep", isa)
