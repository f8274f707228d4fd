"""Which lines of csrc/cuda the tests of the CUDA kernels run, by gcov.

    python -m tests.emulator.coverage [depthwise|grouped|separable|all] [-k EXPRESSION] [--required PERCENT]

A line of a template counts as run if one of its instances runs it. Prints a line a file of the family, and of what all
families use, with what was not run, and fails if fewer than the required percentage of all lines were.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from tests.emulator import build

#: The tests of each family; those of the planners come with all.
TESTS = {
    "depthwise": ("tests/test_cuda_depthwise.py", "tests/test_cuda_depthwise_nhwc.py"),
    "grouped": ("tests/test_cuda_grouped.py",),
    "separable": ("tests/test_cuda_separable.py",),
}
TESTS_OF_PLANNERS = "tests/test_cuda_plans.py"
#: Files that all families use.
SHARED = ("element", "launch_config", "portability")
REQUIRED = 95.0


def run_tests(families: Sequence[str], expression: str) -> int:
    """Runs the tests in the build that counts; returns pytest's exit status."""
    environment = {**os.environ, "CNNEXT_EMULATOR_BUILD": "coverage", "OMP_NUM_THREADS": "1"}
    for stale in (build.OUTPUT / "coverage").glob("**/*.gcda"):
        stale.unlink()
    tests = [test for family in families for test in TESTS[family]]
    # In this process's only child: a worker of pytest-xdist may be ended before it has written what it counted.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests, TESTS_OF_PLANNERS, "-k", expression]
    return subprocess.run(command, env=environment, cwd=build.ROOT).returncode


def concerns(families: Sequence[str], file: str) -> bool:
    """Whether a source of csrc/cuda belongs to one of the families, or to all."""
    family = next((name for name in ("depthwise", "separable") if file.startswith(name)), "grouped")
    return family in families or Path(file).stem in SHARED


def executed_lines() -> dict[str, dict[int, bool]]:
    """For each source of csrc/cuda its lines with code, and whether they ran."""
    lines: dict[str, dict[int, bool]] = defaultdict(dict)
    with tempfile.TemporaryDirectory() as directory:
        for data in sorted((build.OUTPUT / "coverage").glob("*.gcda")):
            subprocess.run(["gcov", "--json-format", str(data)], cwd=directory, check=True, capture_output=True)
        for report in Path(directory).glob("*.json.gz"):
            for file in json.loads(gzip.decompress(report.read_bytes()))["files"]:
                path = Path(file["file"])
                if path.parent == build.CUDA:
                    of_file = lines[path.name]
                    for line in file["lines"]:
                        number = line["line_number"]
                        of_file[number] = of_file.get(number, False) or line["count"] > 0
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 7 as "1-3, 7"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def report(lines: dict[str, dict[int, bool]]) -> float:
    """Prints the table; returns the percentage of all lines."""
    for name, of_file in sorted(lines.items()):
        missed = sorted(number for number, ran in of_file.items() if not ran)
        share = 100 * (1 - len(missed) / len(of_file))
        print(f"{name:46} {len(of_file):4} lines {share:6.1f} %  {_ranges(missed)}")
    ran = [line for of_file in lines.values() for line in of_file.values()]
    percentage = 100 * sum(ran) / max(1, len(ran))
    print(f"{'all':46} {len(ran):4} lines {percentage:6.1f} %")
    return percentage


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.emulator.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="all", choices=(*TESTS, "all"))
    parser.add_argument("-k", dest="expression", default="not other_builds", help="which tests, as pytest takes it")
    parser.add_argument("--required", type=float, default=REQUIRED, metavar="PERCENT")
    options = parser.parse_args(argv)
    families = tuple(TESTS) if options.family == "all" else (options.family,)
    status = run_tests(families, options.expression)
    percentage = report({file: lines for file, lines in executed_lines().items() if concerns(families, file)})
    return status or int(percentage < options.required)


if __name__ == "__main__":
    sys.exit(main())
