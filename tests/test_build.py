"""What is built where: the search for torch and a CUDA toolkit, environment variables, and kernels that are missing."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cnnext

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(cnnext.__file__).parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source tree is not around")


@pytest.fixture
def setup_module(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of setup.py, without running it, in an environment without its variables."""
    for name in ("CNNEXT_SKIP_CUDA_BUILD", "CNNEXT_FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


@pytest.fixture
def toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes a directory that looks like a CUDA toolkit of some version."""

    def make(version: str) -> Path:
        home = tmp_path / f"cuda-{version}"
        for file in ("bin/nvcc", "include/cuda_runtime_api.h"):
            (home / file).parent.mkdir(parents=True)
            (home / file).write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
        (home / "bin/nvcc").chmod(0o755)
        monkeypatch.setenv("CUDA_HOME", str(home))
        return home

    return make


def test_cuda_torch_and_nvcc_of_its_version_build_cuda_kernels(
    setup_module: dict[str, Any], toolkit: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    home = toolkit("13.1")
    assert setup_module["cuda_home"]() == home
    plan = setup_module["plan_cuda"]()
    assert plan == {"built": True, "architectures": "8.0;9.0a;10.0;12.0+PTX", "nvcc": "13.1"}


def test_default_architectures_are_those_that_nvcc_knows(
    setup_module: dict[str, Any], toolkit: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    toolkit("12.4")
    assert setup_module["choose_architectures"]() == "8.0;9.0a"


def test_gpus_present_decide_the_architectures(setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 6), (9, 0)][index])
    assert setup_module["choose_architectures"]() == "8.6;9.0a"


def test_arch_list_of_the_user_wins(setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert setup_module["choose_architectures"]() == "7.5"
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "7.5"


@pytest.mark.parametrize(
    ("architectures", "wgmma"), [("8.0;9.0a", True), ("9.0a 12.0+PTX", True), ("8.0;9.0", False), ("9.0+PTX", False)]
)
def test_wgmma_is_compiled_for_90a_alone(
    setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch, architectures: str, wgmma: bool
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    assert setup_module["wgmma_flags"]() == (["-DCNNEXT_WITH_WGMMA"] if wgmma else [])


def test_cpu_torch_builds_no_cuda_kernels(setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    plan = setup_module["plan_cuda"]()
    assert not plan["built"]
    assert "built without CUDA" in plan["reason"]


def test_hidden_nvcc(setup_module: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert "nvcc was not found" in setup_module["plan_cuda"]()["reason"]


def test_nvcc_of_another_major_version(
    setup_module: dict[str, Any], toolkit: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    toolkit("12.8")
    assert "nvcc 12.8 and torch's CUDA 13.0 differ" in setup_module["plan_cuda"]()["reason"]


def test_skip_leaves_cuda_out(
    setup_module: dict[str, Any], toolkit: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    toolkit("13.0")
    monkeypatch.setenv("CNNEXT_SKIP_CUDA_BUILD", "1")
    assert setup_module["plan_cuda"]() == {"built": False, "reason": "CNNEXT_SKIP_CUDA_BUILD is set"}
    monkeypatch.setenv("CNNEXT_SKIP_CUDA_BUILD", "0")
    assert setup_module["plan_cuda"]()["built"]


def test_force_fails_instead_of_leaving_cuda_out(setup_module: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setenv("CNNEXT_FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match=r"CNNEXT_FORCE_CUDA is set.*built without CUDA"):
        setup_module["plan_cuda"]()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "build_tools")
    monkeypatch.delitem(sys.modules, "cnnext_build", raising=False)
    return importlib.import_module("cnnext_build")


@pytest.mark.parametrize(
    ("version", "found"), [("2.11.0+cpu", True), ("2.14.1", True), ("3.0.0", True), ("2.10.2", False), (None, False)]
)
def test_build_uses_the_torch_that_is_there(
    backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, found: bool
) -> None:
    if version is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '{version}'\n")
    monkeypatch.setattr(backend, "_site_directories", lambda: [tmp_path / "nothing", tmp_path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backend._find_torch() == (tmp_path if found else None)
    for hook in (backend.get_requires_for_build_wheel, backend.get_requires_for_build_editable):
        assert hook() == ([] if found else ["torch>=2.11"])


def test_site_directories_hold_the_torch_in_use(backend: Any) -> None:
    assert Path(torch.__file__).parent.parent in backend._site_directories()


def run_copied_package(directory: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    environment.pop("TRITON_INTERPRET", None)  # set by conftest.py; with it "triton" is available everywhere
    # PYTHONPATH comes before whatever is installed.
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("content", "reason"), [(None, "not built"), (b"not a library", "could not be loaded")])
def test_package_runs_on_aten_without_its_kernels(tmp_path: Path, content: bytes | None, reason: str) -> None:
    copy = tmp_path / "cnnext"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__"))
    if content is None:
        prelude = (
            "import importlib.metadata as m\n"
            "def missing(name): raise m.PackageNotFoundError(name)\n"
            "m.distribution = missing\n"
        )
    else:
        (copy / "_C_cpu.abi3.so").write_bytes(content)
        prelude = ""
    code = (
        prelude + "import torch, cnnext, cnnext.info\n"
        "x = torch.randn(1, 4, 5, 5, requires_grad=True)\n"
        "op = torch.ops.cnnext.depthwise_conv2d\n"
        "y = op(x, torch.ones(4, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 1)\n"
        "y.sum().backward()\n"
        "assert cnnext.functional.pointwise_conv2d(x, torch.ones(2, 4, 1, 1)).shape == (1, 2, 5, 5)\n"
        "print(cnnext.info.report())\n"
    )
    report = run_copied_package(tmp_path, code)
    line = next(line for line in report.splitlines() if line.startswith("cpu kernels"))
    assert reason in line
    assert report.splitlines()[-1].split() == ["backends", "aten"]
