"""Installs cnnext into a fresh environment of each kind that it promises to work in, and checks what came out.

    python build_tools/install_matrix.py              every row
    python build_tools/install_matrix.py cpu cuda     these rows

Rows:
    cpu           CPU-only torch
    cuda          CUDA torch and nvcc; a GPU may be absent
    cuda-no-nvcc  CUDA torch, nvcc hidden
    no-torch      an empty environment; torch comes as a dependency

`pip install .` runs with its default build isolation. CNNEXT_MATRIX_CPU_TORCH and CNNEXT_MATRIX_CUDA_TORCH name the
builds of torch to use (default: torch==2.13.0 and torch==2.14.1; a row whose torch turns out to be of the other kind
fails).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CPU_TORCH = os.environ.get("CNNEXT_MATRIX_CPU_TORCH", "torch==2.13.0")
CUDA_TORCH = os.environ.get("CNNEXT_MATRIX_CUDA_TORCH", "torch==2.14.1")


class Row(NamedTuple):
    torch: str | None  # what to install before cnnext
    expect: str  # what smoke.py is told to expect of the CUDA kernels
    hide_nvcc: bool = False


ROWS = {
    "cpu": Row(CPU_TORCH, "cpu-torch"),
    "cuda": Row(CUDA_TORCH, "cuda-built"),
    "cuda-no-nvcc": Row(CUDA_TORCH, "no-nvcc", hide_nvcc=True),
    "no-torch": Row(None, "any"),
}


def run(command: list[str | Path], env: dict[str, str], cwd: Path) -> None:
    subprocess.run([str(part) for part in command], env=env, cwd=cwd, check=True)


def environment(row: Row) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("CNNEXT_")}
    env.pop("PYTHONPATH", None)
    if row.hide_nvcc:
        # Both places where torch looks: CUDA_HOME wins over a toolkit in its usual directory.
        env["CUDA_HOME"] = str(ROOT / "no-such-toolkit")
        env["PATH"] = os.pathsep.join(
            directory for directory in env["PATH"].split(os.pathsep) if not Path(directory, "nvcc").exists()
        )
    return env


def check_row(name: str, row: Row, directory: Path) -> None:
    env = environment(row)
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if row.torch is not None:
        run([*pip, row.torch, "numpy"], env, directory)
    run([*pip, "--verbose", ROOT] if os.environ.get("CI") is None else [*pip, ROOT], env, directory)
    # Away from the source tree, so that the installed package is the one imported.
    run([python, "-m", "cnnext.info"], env, directory)
    run([python, ROOT / "build_tools" / "smoke.py", row.expect], env, directory)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="row", help=", ".join(ROWS))
    parser.add_argument("--keep", type=Path, help="make the environments here and leave them")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(ROWS):
        parser.error(f"unknown row {', '.join(sorted(unknown))}: expected some of {', '.join(ROWS)}")

    failed = []
    for name in arguments.rows:
        parent = arguments.keep or Path(tempfile.mkdtemp(prefix="cnnext-matrix-"))
        directory = parent / name
        started = time.monotonic()
        print(f"== {name}: {ROWS[name].torch or 'no torch'}", flush=True)
        try:
            check_row(name, ROWS[name], directory)
            verdict = "passed"
        except subprocess.CalledProcessError as error:
            failed.append(name)
            verdict = f"FAILED: {error}"
        print(f"== {name}: {verdict} in {time.monotonic() - started:.0f} s", flush=True)
        if arguments.keep is None:
            shutil.rmtree(parent, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
