"""Automatic mutants of the Triton kernels: one small change each of a line that Triton compiles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tests.mutation.mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path("cnnext/triton_kernels")

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
