"""Automatic mutants of a kernel source: one small change each, of the kinds that people make by mistake."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

#: Kinds of mutants: patterns and what takes their place. Binary operators have blanks around them (clang-format puts
#: them there), brackets of templates have none.
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "comparison": (
        (r" < ", " <= "),
        (r" <= ", " < "),
        (r" > ", " >= "),
        (r" >= ", " > "),
        (r" == ", " != "),
        (r" != ", " == "),
        (r" && ", " || "),
        (r" \|\| ", " && "),
    ),
    "bound": (
        (r" - 1\b(?!\.)", ""),
        (r" \+ 1\b(?!\.)", ""),
        (r"(?<=for \(int )(\w+) = 0;", r"\1 = 1;"),
        (r"(?<=for \(int64_t )(\w+) = 0;", r"\1 = 1;"),
    ),
    "barrier": (
        (r"__syncthreads\(\);", ";"),
        (r"__syncwarp\(\);", ";"),
        (r"copy_async_wait<[^>]*>\(\);", ";"),
        (r"copy_async_commit\(\);", ";"),
        (r"mbarrier_(wait|arrive)\([^;]*\);", ";"),
        (r"wgmma_(fence|commit|wait<\d>)\(\);", ";"),
        (r"fence_async_proxy\(\);", ";"),
    ),
    "index": (
        (r"(?<=[a-z]_strides)\.h\b", ".w"),
        (r"(?<=[a-z]_strides)\.w\b", ".h"),
        (r"(?<=[a-z]_strides)\.n\b", ".c"),
        (r"(?<=[a-z]_strides)\.c\b", ".n"),
        (r"\bstride_h\b", "stride_w"),
        (r"\bpad_h\b", "pad_w"),
        (r"\bpad_w\b", "pad_h"),
        (r"(?<=[ps]\.)H\b", "W"),
        (r"(?<=[ps]\.)W\b", "H"),
        (r"(?<=[ps]\.)P\b", "Q"),
        (r"(?<=[ps]\.)Q\b", "P"),
        (r"\bthreadIdx\.x\b", "threadIdx.y"),
        (r"\bblockIdx\.x\b", "blockIdx.y"),
        (r"\bblockIdx\.y\b", "blockIdx.x"),
    ),
    "tap": (
        (r" \+ ", " - "),
        (r" - ", " + "),
        (r" \* ", " + "),
        (r" / ", " * "),
        (r" % ", " / "),
        (r"\+=", "-="),
    ),
}

# Lines without code that runs.
_SKIPPED = re.compile(r"^\s*(//|#|template\b|static_assert|using\b|namespace\b|\*)")


@dataclass(frozen=True)
class Mutant:
    """One change of one line of a file."""

    file: str
    line: int
    kind: str
    old: str
    new: str
    following: str  # the line after it

    @property
    def key(self) -> tuple[str, str, str]:
        """What tests/mutation/equivalent.py knows it by."""
        return Path(self.file).name, self.new.strip(), self.following.strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kind}: {self.old.strip()}  ->  {self.new.strip()}"

    def apply(self, root: Path) -> None:
        """Writes the changed file under `root`.

        Raises:
            ValueError: the file's line is not the one that was read.
        """
        path = root / self.file
        lines = path.read_text().split("\n")
        if lines[self.line - 1] != self.old:
            raise ValueError(f"{path}:{self.line} has changed")
        lines[self.line - 1] = self.new
        path.write_text("\n".join(lines))


def mutants_of(root: Path, file: str) -> Iterator[Mutant]:
    """Every mutant of `file`, in the order of its lines."""
    lines = (root / file).read_text().split("\n")
    for number, (line, following) in enumerate(pairwise([*lines, ""]), start=1):
        if _SKIPPED.match(line):
            continue
        code = line.split("//")[0]
        for kind, rules in RULES.items():
            for pattern, replacement in rules:
                for match in re.finditer(pattern, code):
                    changed = code[: match.start()] + match.expand(replacement) + line[match.end() :]
                    if changed != line:
                        yield Mutant(file, number, kind, line, changed, following)


def choose(
    root: Path,
    files: Sequence[str],
    count: int,
    seed: int,
    of_file: Callable[[Path, str], Iterable[Mutant]] = mutants_of,
) -> list[Mutant]:
    """Up to `count` mutants, of every file and kind alike, in a random order that `seed` fixes.

    There are fewer barriers and bounds than sums in a kernel; taking turns keeps the rare kinds in. What is chosen of
    a file does not depend on what the others contain.
    """
    pools: dict[tuple[str, str], list[Mutant]] = {}
    for file in files:
        for mutant in of_file(root, file):
            pools.setdefault((file, mutant.kind), []).append(mutant)
    for (file, kind), pool in pools.items():
        random.Random(f"{seed} {file} {kind}").shuffle(pool)
    order = random.Random(seed)
    chosen: list[Mutant] = []
    while len(chosen) < count and any(pools.values()):
        turn = [pool.pop() for pool in pools.values() if pool]
        order.shuffle(turn)
        chosen += turn[: count - len(chosen)]
    return chosen
