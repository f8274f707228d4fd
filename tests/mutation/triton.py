"""Changes the Triton kernels in small ways, one at a time, and says whether their tests notice.

    python -m tests.mutation.triton [--count N] [--seed N] [--jobs N] [--only WORD] [--list]

A mutant is one small change of one line that Triton compiles, in a copy of cnnext/triton_kernels. It counts as killed
if a test of its file's operator fails in the interpreter (tests/test_triton.py, tests/test_triton_separable.py), or if
it touches memory that is not its own. A change that brings in a name that is not there, or is known to change nothing
(tests/mutation/equivalent.py), does not count. Exit status 0 if at least 95 % are killed, and the tests pass without a
mutant.

A mutant is tried in a process forked from one that has imported torch and Triton, but none of the kernels.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import pytest

import cnnext.triton_kernels
from tests import triton_cases
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, choose
from tests.mutation.triton_mutants import ROOT, SOURCES, kernel_files, mutants_of
from tests.triton_interpreter import repair

TESTS = ROOT / "tests/test_triton.py"
SEPARABLE_TESTS = ROOT / "tests/test_triton_separable.py"
REQUIRED = 0.95
#: Seconds of processor time after which the tests of a mutant count as hanging.
LIMIT = 600


def selection(file: str) -> list[str]:
    """What pytest runs to look at the kernels in `file`."""
    stem = Path(file).stem
    if stem == "separable":
        return [str(SEPARABLE_TESTS)]
    if stem == "device":
        return [str(TESTS), str(SEPARABLE_TESTS)]
    families = {"grouped_narrow": ["grouped"], "parts": ["depthwise", "grouped"]}.get(stem, [stem])
    others = [f"not {name}-" for name in ("depthwise", "grouped", "pointwise") if name not in families]
    return [str(TESTS), "-k", " and ".join(others)]


def _run_tests(arguments: Sequence[str]) -> int:
    """0 if nothing is noticed."""
    # The test of guarded memory starts a process, which would import the kernels as they are.
    own_process = f"{TESTS}::test_nothing_beside_the_tensors_is_touched"
    status = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--deselect", own_process, *arguments])
    if status == pytest.ExitCode.OK:
        triton_cases.main()
    return int(status)


def try_mutant(mutant: Mutant | None) -> str:
    """Runs the tests on a mutant, or on the kernels as they are.

    Returns:
        "killed by ...", "SURVIVED", "equivalent", "stillborn", or what kept the tests from running.
    """
    if mutant is not None and mutant.key in EQUIVALENT:
        return "equivalent"
    with tempfile.TemporaryDirectory(prefix="cnnext-mutant-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / SOURCES, folder / SOURCES, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            mutant.apply(folder)
        pid = os.fork()
        if pid == 0:
            _in_child(folder, selection(mutant.file if mutant is not None else "device.py"))
        _, status = os.waitpid(pid, 0)
        output = (folder / "output").read_text(errors="replace")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:  # which the machine sends if memory is short
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    if code == pytest.ExitCode.OK:
        return "SURVIVED"
    if code != pytest.ExitCode.TESTS_FAILED:
        return f"the tests did not run: {output[-2000:]}"
    if "NameError" in output:
        return "stillborn"
    failed = re.search(r"^FAILED \S+::(\S+)", output, re.MULTILINE)
    return f"killed by {failed[1] if failed else 'guarded memory'}"


def _in_child(folder: Path, arguments: Sequence[str]) -> None:
    """Runs the tests on the kernels in `folder`, and ends the process."""
    status = 70
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        cnnext.triton_kernels.__path__ = [str(folder / SOURCES)]
        status = _run_tests(arguments)
    except BaseException:
        traceback.print_exc()
        status = int(pytest.ExitCode.TESTS_FAILED)  # of the memory that is guarded
    finally:
        sys.stdout.flush()
        os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.triton", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=120, help="mutants to choose")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants tried at a time")
    parser.add_argument("--only", default="", help="of those chosen, only mutants with this word in their description")
    parser.add_argument("--list", action="store_true", help="list the mutants and stop")
    options = parser.parse_args(argv)

    chosen = choose(ROOT, kernel_files(), options.count, options.seed, mutants_of)
    mutants = [mutant for mutant in chosen if options.only in str(mutant)]
    if options.list:
        print(*mutants, sep="\n")
        return 0
    repair()  # imports Triton, here rather than in every process
    outcome = try_mutant(None)
    if outcome != "SURVIVED":
        print(f"The tests fail without a mutant: {outcome}")
        return 1
    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, outcome in zip(mutants, pool.map(try_mutant, mutants), strict=True):
            print(f"{outcome:60} {mutant}", flush=True)
            outcomes.append(outcome)
    counted = [outcome for outcome in outcomes if outcome not in ("equivalent", "stillborn")]
    killed = sum(outcome.startswith("killed") for outcome in counted)
    print(f"{killed} of {len(counted)} mutants killed ({killed / max(1, len(counted)):.0%})")
    return 0 if counted and killed >= REQUIRED * len(counted) else 1


if __name__ == "__main__":
    sys.exit(main())
