"""Compiles the kernels for an architecture, and disassembles them.

Everything is cached under build/static_report by the content of the sources, the flags and the tools' versions.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.files import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "static_report"
CUDA_SOURCES = ROOT / "csrc" / "cuda"
#: What nvcc compiles for, by compute capability times 10, as setup.py has it.
TARGETS = {80: "sm_80", 90: "sm_90a", 100: "sm_100", 120: "sm_120"}
ARCHITECTURES = tuple(TARGETS)


class ToolMissingError(RuntimeError):
    """A program that the report needs is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Compiled:
    """A .cu file for one architecture."""

    source: Path
    architecture: int
    cubin: Path
    #: What ``ptxas -v`` said.
    ptxas: str
    #: What ``nvdisasm`` said.
    sass: str


@dataclass(frozen=True)
class Resources:
    """What ptxas reports of a kernel."""

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int


# ---------------------------------------------------------------------------------------------------------------- tools


def nvcc() -> str:
    """Return nvcc's path.

    Raises:
        ToolMissingError: it is not there.
    """
    candidates = [shutil.which("nvcc"), str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvcc")]
    for path in candidates:
        if path and Path(path).exists():
            return path
    raise ToolMissingError("nvcc was not found: install a CUDA toolkit, or set CUDA_HOME")


def nvdisasm() -> str:
    """Return the path of nvdisasm: from the PATH, the toolkit, its package on PyPI, or Triton.

    Raises:
        ToolMissingError: it is in none of these.
    """
    candidates = [shutil.which("nvdisasm")]
    if compiler := shutil.which("nvcc"):
        candidates.append(str(Path(compiler).resolve().with_name("nvdisasm")))
    candidates.append(str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "nvdisasm"))
    for package, pattern in (("nvidia", "*/bin/nvdisasm"), ("triton", "backends/nvidia/bin/nvdisasm")):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            candidates.extend(str(path) for path in Path(location).glob(pattern))
    for path in candidates:
        if path and Path(path).exists():
            return path
    raise ToolMissingError("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")


@functools.cache
def _version(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout


def nvcc_release() -> str:
    """Return nvcc's version, such as ``13.0``."""
    match = re.search(r"release ([\d.]+)", _version(nvcc()))
    return match[1] if match else "unknown"


def jobs() -> int:
    """Return how many processes may run at once: ``MAX_JOBS``, or the processors that this one may use."""
    return int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------------------------------------------------- compilation


def kernel_sources() -> list[Path]:
    """Return the .cu files."""
    return sorted(CUDA_SOURCES.glob("*.cu"))


def _quoted_includes(path: Path, seen: set[Path]) -> set[Path]:
    """Every project header that a source includes, directly or not."""
    text = path.read_text(encoding="utf-8", errors="ignore")
    for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', text, re.MULTILINE):
        header = (path.parent / name).resolve()
        if header.exists() and header not in seen:
            seen.add(header)
            _quoted_includes(header, seen)
    return seen


def content_key(paths: Iterable[Path], *more: str) -> str:
    """Return a hash of the files, of all project headers that they include, and of ``more``."""
    digest = hashlib.sha256()
    for text in more:
        digest.update(text.encode() + b"\0")
    files = {path.resolve() for path in paths}
    for path in list(files):
        _quoted_includes(path, files)
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def run_tool(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler.

    Raises:
        RuntimeError: it failed; the message holds its output.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result


@contextmanager
def exclusively(directory: Path, name: str) -> Iterator[None]:
    """Others that make what has this name in the directory wait, in this process and in others."""
    with open(directory / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile_source(source: Path, architecture: int) -> Compiled:
    """Compile and disassemble a .cu file."""
    flags = ["-std=c++17", "-O3", "-lineinfo", f"-arch={TARGETS[architecture]}", "-cubin", "-Xptxas", "-v"]
    key = content_key([source], _version(nvcc()), _version(nvdisasm()), *flags)
    directory = BUILD / f"sm_{architecture}"
    directory.mkdir(parents=True, exist_ok=True)
    cubin, ptxas, sass = (directory / f"{source.stem}-{key}.{suffix}" for suffix in ("cubin", "ptxas", "sass"))
    with exclusively(directory, source.stem):
        if not sass.exists():
            for stale in directory.glob(f"{source.stem}-*"):
                stale.unlink(missing_ok=True)
            said = run_tool([nvcc(), *flags, str(source), "-o", str(cubin)]).stderr
            ptxas.write_text(said, encoding="utf-8")
            text = run_tool([nvdisasm(), "-c", "-hex", "-gi", str(cubin)]).stdout
            # The last of the files, and whole or not there. nvdisasm pads its columns to the longest name.
            write_text(sass, re.sub(r"[ \t]{8,}", "        ", text))
    return Compiled(source, architecture, cubin, ptxas.read_text(encoding="utf-8"), sass.read_text(encoding="utf-8"))


def compile_all(sources: Sequence[Path], architectures: Sequence[int]) -> list[Compiled]:
    """Compile sources for architectures, several at a time; those with wgmma for sm_90a alone."""
    pairs = [
        (source, architecture)
        for architecture in architectures
        for source in sources
        if architecture == 90 or "wgmma" not in source.stem
    ]
    with ThreadPoolExecutor(jobs()) as pool:
        return list(pool.map(lambda pair: compile_source(*pair), pairs))


def parse_ptxas(text: str) -> dict[str, Resources]:
    """Read what ``ptxas -v`` says, by mangled name of the kernel.

    Example:
        >>> parse_ptxas('''ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
        ... ptxas info    : Function properties for _Z1kv
        ...     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
        ... ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
        ... ''')
        {'_Z1kv': Resources(registers=40, shared_bytes=512, stack_bytes=8, spill_bytes=16)}
    """
    kernels: dict[str, Resources] = {}
    name: str | None = None
    stack = spills = 0
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '([^']+)'", line):
            name, stack, spills = match[1], 0, 0
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif name is not None and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            kernels[name] = Resources(int(match[1]), int(shared[1]) if shared else 0, stack, spills)
            name = None
    return kernels
