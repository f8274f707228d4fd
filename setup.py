"""Builds the shared objects with the kernels: one for the CPU and, where a CUDA torch and nvcc are found, one for CUDA.

Environment variables:
    CNNEXT_SKIP_CUDA_BUILD=1  leave the CUDA kernels out
    CNNEXT_FORCE_CUDA=1       fail, instead of leaving them out, if they cannot be built
    TORCH_CUDA_ARCH_LIST      architectures, for example "8.0;9.0+PTX"; default: the GPUs present, else a common list
    MAX_JOBS                  parallel compile jobs
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import torch
from setuptools import setup
from torch.utils import cpp_extension

ROOT = Path(__file__).parent
# Only what is declared at or before this version of torch is used, so one build serves every later one.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
PYTHON_ABI = "cp310"
CXX_FLAGS = ["-O3", "-g0", "-Wall", "-Wno-maybe-uninitialized", "-fvisibility=hidden", *STABLE_ABI]
# What nvcc must at least be for an architecture, from the newest down.
DEFAULT_ARCHITECTURES = (("8.0", (11, 0)), ("9.0", (11, 8)), ("10.0", (12, 8)), ("12.0+PTX", (12, 8)))


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() not in ("", "0", "false", "no", "off")


def sources(*patterns: str) -> list[str]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def headers() -> list[str]:
    return sources("csrc/**/*.h", "csrc/**/*.cuh")


def nvcc_version() -> tuple[int, int] | None:
    """Version of nvcc, or None if there is none."""
    if cpp_extension.CUDA_HOME is None:
        return None
    nvcc = Path(cpp_extension.CUDA_HOME, "bin", "nvcc")
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def why_no_cuda() -> str | None:
    """Why the CUDA kernels cannot be built here, or None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    version = nvcc_version()
    if version is None:
        return "nvcc was not found: put it on PATH or set CUDA_HOME"
    if version[0] != int(torch.version.cuda.partition(".")[0]):
        return f"nvcc {version[0]}.{version[1]} and torch's CUDA {torch.version.cuda} differ in their major version"
    return None


def choose_architectures() -> str:
    """Sets TORCH_CUDA_ARCH_LIST where neither the user nor a GPU decides, and returns what will be built for."""
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        if torch.cuda.is_available():
            present = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(f"{major}.{minor}" for major, minor in sorted(present))
        else:
            version = nvcc_version() or (0, 0)
            names = [name for name, minimum in DEFAULT_ARCHITECTURES if version >= minimum]
            os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(names)
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def cpu_extension() -> cpp_extension.CppExtension:
    return cpp_extension.CppExtension(
        "cnnext._C_cpu",
        sources("csrc/bindings/cpu.cpp", "csrc/bindings/problem.cpp", "csrc/cpu/*.cpp", "csrc/cpu/isa/*.cpp"),
        depends=headers(),
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=["-ldl"],
        py_limited_api=True,
    )


def cuda_extension() -> cpp_extension.CUDAExtension:
    return cpp_extension.CUDAExtension(
        "cnnext._C_cuda",
        sources("csrc/bindings/cuda.cpp", "csrc/bindings/problem.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu"),
        depends=headers(),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, "-DUSE_CUDA"],
            "nvcc": ["-O3", "-DUSE_CUDA", "-Xcompiler=-fvisibility=hidden", "--threads=2", *STABLE_ABI],
        },
        py_limited_api=True,
    )


class BuildExtension(cpp_extension.BuildExtension):
    """Builds the extensions, then writes down what was built, beside the package."""

    info: dict[str, object]

    def run(self) -> None:
        super().run()
        package = ROOT / "cnnext" if self.inplace else Path(self.build_lib, "cnnext")
        package.mkdir(parents=True, exist_ok=True)
        (package / "build_info.json").write_text(json.dumps(self.info, indent=2) + "\n")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "cnnext", "build_info.json"))]


def main() -> None:
    force = flag("CNNEXT_FORCE_CUDA")
    reason = "CNNEXT_SKIP_CUDA_BUILD is set" if flag("CNNEXT_SKIP_CUDA_BUILD") else why_no_cuda()
    if force and reason:
        raise SystemExit(f"cnnext: CNNEXT_FORCE_CUDA is set, but the CUDA kernels cannot be built: {reason}")
    extensions = [cpu_extension()]
    info: dict[str, object] = {"torch": torch.__version__, "cpu": {"built": True}}
    if reason is None:
        architectures = choose_architectures()
        extensions.append(cuda_extension())
        nvcc = ".".join(map(str, nvcc_version() or ()))
        info["cuda"] = {"built": True, "architectures": architectures, "nvcc": nvcc}
        summary = f"CPU and CUDA kernels ({architectures}, nvcc {nvcc})"
    else:
        info["cuda"] = {"built": False, "reason": reason}
        summary = f"CPU kernels; no CUDA kernels: {reason}"
    print(f"cnnext: building against torch {torch.__version__}: {summary}", flush=True)
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": type("build_ext", (BuildExtension,), {"info": info})},
        options={"bdist_wheel": {"py_limited_api": PYTHON_ABI}},
    )


main()
