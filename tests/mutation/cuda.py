"""Changes the CUDA kernels in small ways, one at a time, and says whether their tests notice.

    python -m tests.mutation.cuda [depthwise|grouped] [--count N] [--seed N] [--jobs N] [--only WORD] [--list]

The mutants (tests/mutation/mutants.py) are made in copies of the sources. One counts as killed if the tests of its
file's operator and layout fail in the emulator's plain build, or else in its checked build. A change that does not
compile is no mutant, and another takes its place. Exit status 0 if at least 95 % are killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from tests.mutation.mutants import Mutant, choose

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("csrc", "tests", "cnnext", "pyproject.toml")
SHARED_BY_GROUPED = ("implicit_gemm", "layout_conversion")
REQUIRED = 0.95
TIMEOUT = 900.0


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: "killed by <build>", "SURVIVED" or "stillborn"."""

    mutant: Mutant
    outcome: str

    @property
    def killed(self) -> bool:
        return self.outcome.startswith("killed")


def kernel_files(family: str) -> list[str]:
    """The sources of the family's kernels, from the root of the repository."""
    prefixes = (family, *(SHARED_BY_GROUPED if family == "grouped" else ()))
    found = [path for pattern in ("*.cu", "*.cuh") for path in (ROOT / "csrc/cuda").glob(pattern)]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.name.startswith(prefixes))


def selection(file: str) -> str:
    """The tests (an expression for pytest -k) that look at the kernels in `file`."""
    stem = Path(file).stem
    words = ["not other_builds"]
    for op in ("backward_input", "backward_weight", "forward"):
        if op in stem:
            words.append(op)
            break
    # The channels_last kernels of the grouped family run NCHW by way of a conversion.
    words += [layout for layout in ("nhwc", "nchw") if layout in stem]
    return " and ".join(words)


class Workplace:
    """A copy of the sources in which mutants are planted one after the other."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._directory = tempfile.TemporaryDirectory(prefix="cnnext-mutants-")
        self.root = Path(self._directory.name)
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self.root / name)

    def run_tests(self, build: str, expression: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "CNNEXT_EMULATOR_BUILD": build,
            "MAX_JOBS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.root),
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
        command += [f"tests/test_cuda_{self.family}.py", "-k", expression]
        try:
            return subprocess.run(
                command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=TIMEOUT
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "it ran out of time", "")

    def try_mutant(self, mutant: Mutant) -> Verdict:
        path = self.root / mutant.file
        original = path.read_text()
        mutant.apply(self.root)
        try:
            for build in ("plain", "checked"):
                result = self.run_tests(build, selection(mutant.file))
                if "g++ failed" in result.stdout:
                    return Verdict(mutant, "stillborn")
                if result.returncode != 0:
                    return Verdict(mutant, f"killed by {build}")
            return Verdict(mutant, "SURVIVED")
        finally:
            path.write_text(original)


def _check_unchanged(place: Workplace, files: Sequence[str]) -> None:
    for expression in sorted({selection(file) for file in files}):
        for build in ("plain", "checked"):
            result = place.run_tests(build, expression)
            if result.returncode != 0:
                raise SystemExit(f"the tests fail without a mutant ({build}, {expression}):\n{result.stdout[-3000:]}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="depthwise", choices=("depthwise", "grouped"))
    parser.add_argument("--count", type=int, default=72, help="mutants that compile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at a time")
    parser.add_argument("--only", default="", help="only files with this word in their name")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    options = parser.parse_args(argv)

    files = [file for file in kernel_files(options.family) if options.only in file]
    # Twice as many as wanted: some will not compile.
    candidates = choose(ROOT, files, 2 * options.count, options.seed)
    if options.list:
        print(*candidates, sep="\n")
        return 0

    places: Queue[Workplace] = Queue()
    for _ in range(options.jobs):
        places.put(Workplace(options.family))
    first = places.get()
    _check_unchanged(first, files)
    places.put(first)

    def try_one(mutant: Mutant) -> Verdict:
        place = places.get()
        try:
            return place.try_mutant(mutant)
        finally:
            places.put(place)

    verdicts: list[Verdict] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        remaining = iter(candidates)
        while (missing := options.count - len(verdicts)) > 0:
            batch = [mutant for mutant, _ in zip(remaining, range(missing), strict=False)]
            if not batch:
                break
            for verdict in pool.map(try_one, batch):
                print(f"{verdict.outcome:18} {verdict.mutant}", flush=True)
                if verdict.outcome != "stillborn":
                    verdicts.append(verdict)
    killed = sum(verdict.killed for verdict in verdicts)
    print(f"{killed} of {len(verdicts)} mutants killed ({killed / max(1, len(verdicts)):.0%})")
    return 0 if verdicts and killed >= REQUIRED * len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
