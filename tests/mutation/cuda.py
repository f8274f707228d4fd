"""Changes the CUDA kernels in small ways, one at a time, and says whether their tests notice.

    python -m tests.mutation.cuda [depthwise|grouped|separable] [--count N] [--seed N] [--jobs N] [--only WORD] [--list]

The mutants (tests/mutation/mutants.py) are made in copies of the sources. One counts as killed if the tests of its
file's operator and layout fail in the emulator's plain build, or else in its checked build. A change that does not
compile, or is known to change nothing (tests/mutation/equivalent.py), does not count. Exit status 0 if at least 95 %
are killed, and the tests pass without a mutant (tried last).

What the emulator has compiled of the sources as they are is linked into each copy, so that a mutant costs the
translation units that it is in, and the tests up to the first that fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import TypeVar

from tests.emulator import build as emulator
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, choose

Task = TypeVar("Task")
Result = TypeVar("Result")

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("csrc", "tests", "cnnext", "pyproject.toml")
TESTS = {
    "depthwise": ("tests/test_cuda_depthwise.py", "tests/test_cuda_depthwise_nhwc.py"),
    "grouped": ("tests/test_cuda_grouped.py", "tests/test_cuda_wgmma.py"),
    "separable": ("tests/test_cuda_separable.py",),
}
#: The modules of the emulator that they load.
MODULES = {"depthwise": ("convolutions",), "grouped": ("convolutions", "wgmma"), "separable": ("separable",)}
SHARED_BY_GROUPED = ("implicit_gemm", "layout_conversion", "channel_padding")
REQUIRED = 0.95
#: The builds that a mutant is tried in, and the seconds of processor time after which its tests count as hanging.
BUILDS = {"plain": 600, "checked": 1800}


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: "killed by <build>", "SURVIVED", or "equivalent" or "stillborn", which do not count."""

    mutant: Mutant
    outcome: str

    @property
    def counts(self) -> bool:
        return self.outcome not in ("equivalent", "stillborn")

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
    if stem.startswith("separable"):  # one op, one layout
        return words[0]
    for op in ("backward_input", "backward_weight", "forward"):
        if op in stem:
            words.append(op)
            break
    # The channels_last kernels of the grouped family run NCHW by way of a conversion.
    words += [layout for layout in ("nhwc", "nchw") if layout in stem]
    return " and ".join(words)


class Workplace:
    """A copy of the sources, and of what was compiled of them, in which mutants are planted one after the other."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._directory = tempfile.TemporaryDirectory(prefix="cnnext-mutants-", dir=ROOT / "build")
        self.root = Path(self._directory.name)
        for name in COPIED:
            _copy(ROOT / name, self.root / name, shutil.copy2)
        for name in (*BUILDS, "bindings"):
            _copy(emulator.OUTPUT / name, self.root / "compiled" / name, os.link)
        # Their records name files; a record is replaced, not changed, so that the original stays as it is.
        for record in (self.root / "compiled").glob("*/*.json"):
            text = record.read_text().replace(str(ROOT), str(self.root))
            record.unlink()
            record.write_text(text)

    def run_tests(self, build: str, expression: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "CNNEXT_EMULATOR_BUILD": build,
            "MAX_JOBS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(self.root),
        }
        # Processor time, not time: others may use the machine too.
        command = ["prlimit", f"--cpu={BUILDS[build]}", sys.executable, "-m", "pytest", "-x", "-q", "-n", "0"]
        command += ["-p", "no:cacheprovider", *TESTS[self.family], "-k", expression]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True)

    def complaint_about_unchanged(self, build: str) -> str | None:
        """What fails without a mutant; with that, every mutant would count as killed."""
        self.restore_compiled()
        result = self.run_tests(build, "not other_builds")
        return result.stdout[-3000:] if result.returncode != 0 else None

    def restore_compiled(self) -> None:
        """Puts what is compiled back to that of the sources without a mutant."""
        directory = self.root / emulator.OUTPUT.relative_to(ROOT)
        shutil.rmtree(directory, ignore_errors=True)
        _copy(self.root / "compiled", directory, os.link)

    def try_mutant(self, mutant: Mutant) -> Verdict:
        if mutant.key in EQUIVALENT:
            return Verdict(mutant, "equivalent")
        path = self.root / mutant.file
        original = path.read_text()
        self.restore_compiled()
        mutant.apply(self.root)
        try:
            for build in BUILDS:
                result = self.run_tests(build, selection(mutant.file))
                if "g++ failed" in result.stdout:
                    return Verdict(mutant, "stillborn")
                if result.returncode != 0:
                    return Verdict(mutant, f"killed by {build}")
            return Verdict(mutant, "SURVIVED")
        finally:
            path.write_text(original)


def _copy(source: Path, target: Path, copy: Callable[[str, str], object]) -> None:
    """A file, or all of a directory but what is being written."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=copy, ignore=shutil.ignore_patterns("*.lock", "__pycache__"))
    else:
        copy(str(source), str(target))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.cuda", description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="depthwise", choices=tuple(TESTS))
    parser.add_argument("--count", type=int, default=72, help="mutants to choose")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at a time")
    parser.add_argument("--only", default="", help="of those chosen, only mutants with this word in their description")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    options = parser.parse_args(argv)

    chosen = choose(ROOT, kernel_files(options.family), options.count, options.seed)
    mutants = [mutant for mutant in chosen if options.only in str(mutant)]
    if options.list:
        print(*mutants, sep="\n")
        return 0

    for name in BUILDS:
        for module in MODULES[options.family]:
            emulator.load(name, module)
    places: Queue[Workplace] = Queue()
    for _ in range(options.jobs):
        places.put(Workplace(options.family))

    def at_a_place(task: Callable[[Workplace, Task], Result], argument: Task) -> Result:
        place = places.get()
        try:
            return task(place, argument)
        finally:
            places.put(place)

    def try_one(place: Workplace, mutant: Mutant) -> Verdict:
        verdict = place.try_mutant(mutant)
        print(f"{verdict.outcome:18} {mutant}", flush=True)
        return verdict

    with ThreadPoolExecutor(options.jobs) as pool:
        tried = [pool.submit(at_a_place, try_one, mutant) for mutant in mutants]
        unchanged = {build: pool.submit(at_a_place, Workplace.complaint_about_unchanged, build) for build in BUILDS}
    for build, complaint in unchanged.items():
        if complaint.result() is not None:
            print(f"The tests fail without a mutant ({build}):\n{complaint.result()}")
            return 1
    verdicts = [verdict for future in tried if (verdict := future.result()).counts]
    killed = sum(verdict.killed for verdict in verdicts)
    print(f"{killed} of {len(verdicts)} mutants killed ({killed / max(1, len(verdicts)):.0%})")
    return 0 if verdicts and killed >= REQUIRED * len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
