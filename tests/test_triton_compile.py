"""The Triton kernels ahead of time: they compile for what we ship, do not spill, and torch.compile sees inside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[1]


def _run(*command: str, timeout: int) -> str:
    """A command in a process without the interpreter, which these tests themselves may run under."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def test_the_first_choices_of_a_few_calls(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.json"
    command = ("bench.static_report.triton", "--quick", "--arch", "80", "90", "--json", str(rows_file))
    out = _run(*command, timeout=600)
    assert ", 0 first choices spill" in out
    rows = json.loads(rows_file.read_text())
    assert {row["arch"] for row in rows} == {80, 90}
    kernels = {row["kernel"] for row in rows}
    assert kernels == {
        "depthwise_correlate_kernel",
        "depthwise_backward_weight_kernel",
        "grouped_correlate_kernel",
        "grouped_narrow_kernel",
        "grouped_backward_weight_kernel",
        "pointwise_kernel",
        "separable_kernel",
        "sum_parts_kernel",
    }
    for row in rows:
        assert 0 < row["registers"] <= 255
        assert row["shared_bytes"] <= 99 * 1024, "more shared memory than a block has on the smallest card, sm_120"


@pytest.mark.slow
def test_every_setting_on_every_architecture() -> None:
    assert ", 0 first choices spill" in _run("bench.static_report.triton", timeout=7200)


def test_torch_compile_sees_the_launches() -> None:
    assert "traced" in _run("tests.triton_tracing", timeout=600)
