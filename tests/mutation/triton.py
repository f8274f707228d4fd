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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"

import pytest

import cnnext.triton_kernels
from tests import triton_cases
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, choose
from tests.triton_interpreter import repair

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path("cnnext/triton_kernels")
TESTS = ROOT / "tests/test_triton.py"
SEPARABLE_TESTS = ROOT / "tests/test_triton_separable.py"
REQUIRED = 0.95
#: Seconds of processor time after which the tests of a mutant count as hanging.
LIMIT = 600

#: Kinds of mutants: patterns and what takes their place. Formatted sources have blanks around binary operators.
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "comparison": ((r" < ", " <= "), (r" <= ", " < "), (r" >= 0\b", " >= 1"), (r" == ", " != ")),
    "mask": (
        (r" & in_(rows|columns|depth|taps|channels|part|outputs|groups|middle)\b", ""),
        (r"\bin_(rows|output|pixels) & ", ""),
        (r" & over_(pixels|channels)\([^()]*\)", ""),
        (r" & along_(pixels|channels|middle)\([^()]*\)", ""),
        (r" & reads_[hw]\b", ""),
        (r" & inside\b", ""),
    ),
    "arithmetic": (
        (r" \+ ", " - "),
        (r" - ", " + "),
        (r" \* ", " + "),
        (r" // ", " % "),
        (r" % ", " // "),
        (r"\+= ", "= "),
    ),
    "index": (
        (r"\b(source|output|grad)_h\b(?=[,) ])", r"\1_w"),
        (r"\b(source|output|grad)_w\b(?=[,) ])", r"\1_h"),
        (r"\b(source|output|grad)_n\b(?=[,) ])", r"\1_c"),
        (r"\bpad_h\b", "pad_w"),
        (r"\bpad_w\b", "pad_h"),
        (r"\brows\b(?=\W)", "columns"),
        (r"\bsource_rows\b", "source_columns"),
        (r"\boutput_columns\b", "output_rows"),
        (r"\brow \* ", "column * "),
        (r"\bweight_r\b", "weight_s"),
        (r"\bfirst_r\b", "first_s"),
        (r"\bSTRIDE_H\b", "STRIDE_W"),
        (r"\bDILATION_W\b", "DILATION_H"),
        (r"\bphase_h\b", "phase_w"),
    ),
    "tap": (
        (r"range\(R\)", "range(R - 1)"),
        (r"range\(0, S,", "range(1, S,"),
        (r"\br\b(?= \* (weight|first)_r)", "(R - 1 - r)"),
        (r"\bs\b(?= \* (weight|first)_s)", "(S - 1 - s)"),
    ),
    "constant": (
        # What a lane outside the image reads; other lanes that are masked are not stored, or meet a zero.
        (r"(source \+ place, mask=.*)other=0\.0", r"\1other=1.0"),
        (r"axis=0", "axis=1"),
        (r" 1\.0\b", " 2.0"),
        (r"ACTIVATION == ", "1 + ACTIVATION == "),
    ),
}

# Lines of a kernel that only declare: the arguments, and what they mean.
_SKIPPED = re.compile(r"^\s*(#|\"\"\"|def |@|\w+: tl\.constexpr,|[\w, ]+,$|.*: tl\.constexpr, )")


def kernel_files() -> list[str]:
    """The modules with kernels, from the root of the repository."""
    return sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / SOURCES).glob("*.py") if "@triton.jit" in path.read_text()
    )


def _kernel_lines(text: str) -> Iterator[tuple[int, str, str]]:
    """The lines inside functions that Triton compiles, with their number and the line after, without docstrings."""
    decorated = inside = docstring = False
    for number, (line, following) in enumerate(pairwise([*text.split("\n"), ""]), start=1):
        if line and not line.startswith((" ", ")")):
            inside, decorated = decorated and line.startswith("def "), line.startswith("@triton.jit")
        if line.count('"""') == 1:
            docstring = not docstring
        elif inside and not docstring and '"""' not in line and not _SKIPPED.match(line):
            yield number, line, following


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Every mutant of `file`, in the order of its lines."""
    seen: set[tuple[int, str]] = set()
    for number, line, following in _kernel_lines((root / file).read_text()):
        code, comment, rest = line.partition("  #")
        for kind, rules in RULES.items():
            for pattern, replacement in rules:
                for match in re.finditer(pattern, code):
                    changed = code[: match.start()] + match.expand(replacement) + code[match.end() :]
                    if changed != code and (number, changed) not in seen:
                        seen.add((number, changed))
                        yield Mutant(file, number, kind, line, changed + comment + rest, following)


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
    own_process = f"{TESTS}::test_nothing_outside_the_operands_is_read"
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
    if os.WIFSIGNALED(status):
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
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
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
