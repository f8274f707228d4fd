"""Compiles csrc/cuda with g++ into a Python module."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "emulator"

#: Compiler flags of each build.
BUILDS = {
    "plain": ["-O2"],
    "sanitized": [
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize=vptr,pointer-overflow",
        "-fno-sanitize-recover=undefined",
    ],
}


def cuda_headers() -> Path | None:
    """Directory with cuda_fp16.h: of a toolkit, or of the PyPI package nvidia-cuda-runtime."""
    candidates = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parent.parent / "include")
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations or [] if spec else []:
        candidates.extend(Path(location).glob("*/include"))
    return next((directory for directory in candidates if (directory / "cuda_fp16.h").exists()), None)


def sanitizer_environment() -> dict[str, str]:
    """Environment in which a Python process can load the sanitized build."""
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python itself is not clean of leaks.
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


@functools.cache
def load(build: str = "plain") -> ModuleType:
    """Compiles what changed and imports the module of one of `BUILDS`.

    Raises:
        RuntimeError: CUDA's headers are not found, or the compiler fails; the message holds its output.
    """
    headers = cuda_headers()
    if headers is None:
        raise RuntimeError("cuda_fp16.h was not found: install a CUDA toolkit or `pip install nvidia-cuda-runtime`")
    name = f"cnnext_emulator_{build}"
    directory = BUILD / build
    directory.mkdir(parents=True, exist_ok=True)
    module = directory / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    cuda = ROOT / "csrc" / "cuda"
    sources = [Path(__file__).with_name("bindings.cpp"), *cuda.glob("*.cpp"), *cuda.glob("*.cu")]
    inputs = [*sources, *Path(__file__).parent.glob("*.h"), *cuda.glob("*.h"), cuda.parent / "conv_params.h"]
    if not module.exists() or module.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
        _compile(build, name, headers, sources, module)
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _compile(build: str, name: str, headers: Path, sources: list[Path], module: Path) -> None:
    includes = [pybind11.get_include(), sysconfig.get_path("include"), str(headers)]
    command = ["g++", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", *BUILDS[build]]
    command += [f"-I{Path(__file__).parent}", *(f"-isystem{path}" for path in includes)]
    command += [f"-DCNNEXT_EMULATOR_MODULE={name}", "-x", "c++", *map(str, sources)]
    # Linked under another name first: a process beside this one never sees half a file.
    unfinished = module.with_suffix(f".{os.getpid()}")
    result = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"g++ failed on the CUDA kernels:\n{result.stderr}")
    unfinished.replace(module)
