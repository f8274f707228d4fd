"""cnnext imports and runs without Triton, with Triton and no GPU, with a GPU that is hidden, with a broken Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

RUN = """
import sys
{before}
import torch, cnnext
assert "triton" not in sys.modules, "Triton takes long to import and is not needed yet"
layer = cnnext.DepthwiseSeparableConv2d(4, 6, 3, padding=1)
assert layer(torch.randn(1, 4, 8, 8)).shape == (1, 6, 8, 8)
assert "triton" not in cnnext.backends.available()
line = cnnext.backends.explain("depthwise_conv2d", torch.ones(1, 2, 4, 4), torch.ones(2, 1, 3, 3)).splitlines()[1]
assert line.startswith("triton: cannot run this: "), line
try:
    cnnext.functional.pointwise_conv2d(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1), backend="triton")
except cnnext.backends.BackendError as error:
    print(error)
import cnnext.info
print(cnnext.info.report())
{after}
"""

HOOK = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
sys.meta_path.insert(0, Finder())
"""

KERNELS = """
from cnnext.triton_kernels import depthwise, grouped, grouped_narrow, parts, pointwise, separable
"""


def _run(before: str = "", after: str = "", **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    code = RUN.format(before=before, after=after)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=kept | environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_triton() -> None:
    out = _run(HOOK, CUDA_VISIBLE_DEVICES="")
    assert "No module named 'triton'" in out
    assert "triton kernels" in out


def test_with_a_gpu_hidden() -> None:
    pytest.importorskip("triton")
    out = _run(after=KERNELS, CUDA_VISIBLE_DEVICES="")
    assert "'triton' cannot run this pointwise convolution: no CUDA device is available" in out


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_without_a_gpu() -> None:
    pytest.importorskip("triton")
    out = _run(after=KERNELS)
    assert "no CUDA device is available" in out


def test_with_a_triton_that_cannot_be_imported(tmp_path: Path) -> None:
    """Where a GPU would want it; without one nothing is imported that could break."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise OSError('a library is missing')\n")
    before = f"sys.path.insert(0, {str(tmp_path)!r})\nimport torch\ntorch.cuda.is_available = lambda: True\n"
    before += "torch.cuda.device_count = lambda: 0\n"
    assert "Triton cannot be imported: a library is missing" in _run(before)
