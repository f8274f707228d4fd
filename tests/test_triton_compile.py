"""The Triton kernels ahead of time: they compile for what we ship, do not spill; torch.compile sees inside them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cnnext

pytest.importorskip("triton")

from bench.cases import collect_layers
from bench.static_report.triton import SHARED_LIMIT, Compiled, complaint
from bench.static_report.triton_launches import Launch, cover, every, launches_of, layer_specimens, specimens
from cnnext.triton_kernels.launching import settings

ROOT = Path(__file__).resolve().parents[1]


def _run(*arguments: str, timeout: int) -> str:
    """Python in a process without the interpreter, which these tests themselves may run under."""
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )
    said = f"exit status {result.returncode}:\n{result.stderr[-4000:]}\n{result.stdout[-4000:]}"
    assert result.returncode == 0, said
    return result.stdout


def _kernel(name: str) -> Any:
    return SimpleNamespace(fn=SimpleNamespace(__name__=name), params=[_POINTER, _FILTER])


_POINTER = SimpleNamespace(name="x", is_constexpr=False)
_FILTER = SimpleNamespace(name="R", is_constexpr=True)
_ARCHITECTURES = (80, 90, 100, 120)


def _launch(name: str, size: int, rank: int, dtype: torch.dtype = torch.float16, taps: int = 3) -> Launch:
    x = torch.empty(1, dtype=dtype, device="meta")
    return Launch(f"{name} {dtype} {taps}", _kernel(name), {"x": x, "R": taps}, settings(4, BLOCK=size), rank)


def test_what_is_compiled_of_the_launches() -> None:
    first = [_launch("a", 64, 0, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)]
    other_taps, other_kernel = _launch("a", 64, 0, taps=5), _launch("b", 64, 0)
    later = [_launch("a", 32, 1, dtype, taps) for dtype in (torch.float16, torch.float32) for taps in (3, 5)]
    launches = [*first, first[0], other_taps, other_kernel, *later]

    all_of_them = every(launches, _ARCHITECTURES)
    assert len(all_of_them) == 4 * (3 + 1 + 1 + 2), "later choices once a kind, first ones whenever the code differs"
    covered = cover(launches, _ARCHITECTURES)
    of_settings = {
        key: [(o, arch) for o, arch in covered if o.settings == key] for key in {o.settings for o in launches}
    }
    sizes = {(name, chosen): len(chosen_here) for (name, chosen), chosen_here in of_settings.items()}
    assert sizes == {first[0].settings: 4, other_kernel.settings: 4, later[0].settings: 1}
    for key in (first[0].settings, other_kernel.settings):
        assert {arch for _, arch in of_settings[key]} == {*_ARCHITECTURES}
    assert {launch.kind for launch, _ in of_settings[first[0].settings]} == {launch.kind for launch in first}


def test_every_setting_of_two_networks_is_among_the_specimens() -> None:
    """First choices as such: a setting that is a later one here may be the first of another layer."""
    known: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for specimen in specimens():
        for launch in launches_of(specimen):
            known[launch.rank == 0].add(launch.settings)
    networks = {name: cnnext.models.create_model(name) for name in ("mobilenet_v1", "resnet18")}
    shapes = [layer.shape for layer in collect_layers(networks)]
    assert len(shapes) > 25
    for images in (1, 8, 128):
        for specimen in (one for shape in shapes for one in layer_specimens(shape, images)):
            for launch in launches_of(specimen):
                compiled = known[True] if launch.rank == 0 else known[True] | known[False]
                assert launch.settings in compiled, f"{specimen.name}: {launch.settings}"


def test_what_is_complained_about() -> None:
    good = Compiled("x", "kernel", "BLOCK=64", 0, 90, 64, 8, 0, SHARED_LIMIT, 128)
    assert complaint(good) is None
    assert complaint(replace(good, rank=1, spilled_bytes=400, spills_in_loops=9)) is None, "only timing chooses it"
    for changes, words in (
        ({"spills_in_loops": 1}, "1 instructions in loops"),
        ({"spilled_bytes": 40}, "spills 40 bytes"),
        ({"shared_bytes": SHARED_LIMIT + 1}, "shared memory"),
        ({"error": "PTXASError: no"}, "does not compile: PTXASError: no"),
    ):
        assert words in str(complaint(replace(good, **changes)))


def test_a_kernel_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    """And the others are compiled all the same."""
    code = (
        "from dataclasses import replace\n"
        "from bench.static_report import triton, triton_launches as known\n"
        "from cnnext.triton_kernels.launching import settings\n"
        "good = known.launches_of(next(s for s in known.specimens() if s.name.startswith('1x1 fp16')))[0]\n"
        "bad = replace(good, chosen=settings(4, BLOCK_PIXELS=3, BLOCK_OUTPUTS=16, BLOCK_DEPTH=16))\n"
        "rows = list(triton.compile_launches([(bad, 90), (good, 90)], 1))\n"
        "assert 'CompilationError' in rows[0].error, rows[0]\n"
        "assert not rows[1].error and 0 < rows[1].registers <= 255, rows[1]\n"
        "print('reported')"
    )
    assert "reported" in _run("-c", code, timeout=300)


def test_a_few_calls(tmp_path: Path) -> None:
    rows_file = tmp_path / "rows.json"
    few = "^(depthwise 3x3|1x1|groups of 4|separable 128) fp16 nhwc|dense 3x3 tf32 nchw (forward|backward_weight)"
    command = ("bench.static_report.triton", "--cover", "--only", few, "--arch", "90", "--json", str(rows_file))
    assert ", 0 complaints" in _run("-m", *command, timeout=600)
    rows = json.loads(rows_file.read_text())["rows"]
    assert {row["arch"] for row in rows} == {90}
    assert {row["kernel"] for row in rows} == {
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
        assert row["rank"] > 0 or row["spilled_bytes"] == 0


@pytest.mark.slow
def test_every_setting_on_every_architecture() -> None:
    assert ", 0 complaints" in _run("-m", "bench.static_report.triton", timeout=7200)


def test_torch_compile_sees_the_launches() -> None:
    assert "traced" in _run("-m", "tests.triton_tracing", timeout=600)
