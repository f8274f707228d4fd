"""Parses what nvdisasm prints (``-c -hex -gi``): instructions, their source lines and control bits, and loops."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

#: The control bits of an instruction lie in bits 105 to 121 of its 128.
_CONTROL_SHIFT = 105 - 64
_NO_BARRIER = 7

_LINE = re.compile(r'//## File "([^"]+)", line (\d+)')
_LABEL = re.compile(r"^\s*([.$\w]+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P[T\d]\s+)?(?P<opcode>[A-Z][A-Z0-9_.]*)"
    r"\s*(?P<operands>.*?)\s*;\s*(?:/\* 0x(?P<low>[0-9a-f]{16}) \*/)?\s*$"
)
_HIGH_WORD = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/\s*$")

#: Classes of instructions by the unit that runs them, and the opcodes (without suffixes) in each. Opcodes of the
#: uniform datapath, and all that is in none, only take their issue slot.
OPCODE_CLASSES = {
    "fp32": ("FFMA", "FADD", "FMUL"),
    "fp16": ("HFMA2", "HADD2", "HMUL2"),
    "fp64": ("DFMA", "DADD", "DMUL", "DSETP", "DMNMX"),
    "imad": ("IMAD", "IMUL"),
    "alu": (
        *("IADD3", "IADD", "ISETP", "LEA", "SHF", "SHL", "SHR", "LOP3", "PLOP3", "IABS", "PRMT", "SEL", "VIADD"),
        *("IMNMX", "VIMNMX", "VIMNMX3", "VIADDMNMX", "ISCADD", "FMNMX", "FMNMX3", "FSEL", "FSETP", "FCHK", "FSET"),
        *("MOV", "HSETP2", "HMNMX2", "F2FP", "I2FP", "SGXT", "BMSK", "P2R", "R2P", "ICMP", "VOTE"),
    ),
    "xu": ("MUFU", "F2I", "I2F", "F2F", "I2I", "FRND", "POPC", "FLO", "BREV"),
    "tensor": ("HMMA", "IMMA", "DMMA", "QMMA", "HGMMA", "OMMA"),
    "global_load": ("LDG", "LD"),
    "global_store": ("STG", "ST"),
    "async_copy": ("LDGSTS",),
    "shared_load": ("LDS", "LDSM"),
    "shared_store": ("STS", "STSM"),
    "shuffle": ("SHFL",),
    "local": ("LDL", "STL"),
    "atomic": ("ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDUX"),
    "constant": ("LDC", "LDCU", "ULDC"),
    "barrier": ("BAR", "DEPBAR", "LDGDEPBAR", "MEMBAR", "ERRBAR", "WARPSYNC"),
    "branch": ("BRA", "BRX", "BRXU", "JMP", "EXIT", "BSSY", "BSYNC", "CALL", "RET", "BREAK"),
}
_CLASS_OF = {opcode: name for name, opcodes in OPCODE_CLASSES.items() for opcode in opcodes}

#: Classes whose instructions are counted by width.
MEMORY_CLASSES = ("global_load", "global_store", "async_copy", "shared_load", "shared_store", "local")


@dataclass(frozen=True)
class Control:
    """What the compiler tells the scheduler: see docs/static_report.md."""

    #: Cycles until the warp's next instruction may be issued.
    stall: int
    #: The scoreboards, 0 to 5, that are released when the result is there, and when the operands have been read.
    write_barrier: int | None
    read_barrier: int | None
    #: The scoreboards that are waited for before the instruction is issued.
    wait: tuple[int, ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a function."""

    address: int
    #: A predicate such as ``P0``, ``!P0`` or ``!UP1``, or None if the instruction always runs.
    guard: str | None
    opcode: str
    operands: tuple[str, ...]
    control: Control
    #: (file, line), innermost first, then where that was inlined.
    lines: tuple[tuple[str, int], ...] = ()

    @property
    def base(self) -> str:
        """The opcode without its suffixes."""
        return self.opcode.partition(".")[0]

    @property
    def suffixes(self) -> list[str]:
        """The opcode's suffixes."""
        return self.opcode.split(".")[1:]

    @property
    def kind(self) -> str:
        """One of `OPCODE_CLASSES`, or ``other``."""
        return _CLASS_OF.get(self.base, "other")

    @property
    def access_bytes(self) -> int:
        """Bytes that a thread accesses; 0 if this is no access to memory."""
        if self.kind not in MEMORY_CLASSES:
            return 0
        if self.base in ("LDSM", "STSM"):
            return 4 * next((int(suffix) for suffix in self.suffixes if suffix in ("2", "4")), 1)
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1, "256": 32}
        return next((widths[suffix] for suffix in self.suffixes if suffix in widths), 4)


@dataclass
class Function:
    """A kernel with the subroutines that it calls."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    #: Addresses of labels.
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Loop:
    """A loop, from the first instruction to the branch back to it, both included."""

    begin: int
    end: int
    #: Whether no other loop lies in it.
    innermost: bool


def _control(high_word: int) -> Control:
    bits = high_word >> _CONTROL_SHIFT
    write, read = bits >> 5 & 7, bits >> 8 & 7
    return Control(
        stall=bits & 15,
        write_barrier=None if write == _NO_BARRIER else write,
        read_barrier=None if read == _NO_BARRIER else read,
        wait=tuple(index for index in range(6) if bits >> 11 + index & 1),
    )


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas outside of brackets.

    Example:
        >>> split_operands("R4, desc[UR4][R2.64+0x10], !P0")
        ('R4', 'desc[UR4][R2.64+0x10]', '!P0')
    """
    text = re.sub(r"\(\*.*?\*\)", "", text)  # a comment: the targets of an indirect branch
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    parts.append(text[start:].strip())
    return tuple(part for part in parts if part)


def parse(text: str) -> dict[str, Function]:
    """Parse a disassembly into its functions, by mangled name."""
    functions: dict[str, Function] = {}
    current: Function | None = None
    pending_labels: list[str] = []
    lines: list[tuple[str, int]] = []
    fresh_lines = False  # whether the last line read was one of `lines`
    waiting: dict[str, str | None] | None = None  # an instruction whose second word comes next
    for raw in text.splitlines():
        if match := re.match(r"^\s*\.section\s+\.text\.([^,\s]+)", raw):
            current = functions.setdefault(match[1], Function(match[1]))
            pending_labels, lines = [], []
        elif re.match(r"^\s*\.section\s", raw):
            current = None
        elif current is None:
            continue
        elif match := _LINE.search(raw):
            if not fresh_lines:
                lines = []
            lines.append((match[1], int(match[2])))
            fresh_lines = True
        elif match := _LABEL.match(raw):
            pending_labels.append(match[1])
        elif match := _INSTRUCTION.match(raw):
            waiting = match.groupdict()
            fresh_lines = False
            if waiting["low"] is None:  # printed without its encoding
                _append(current, waiting, 0, lines, pending_labels)
                waiting, pending_labels = None, []
        elif (match := _HIGH_WORD.match(raw)) and waiting is not None:
            _append(current, waiting, int(match[1], 16), lines, pending_labels)
            waiting, pending_labels = None, []
    return functions


def _append(
    function: Function,
    fields: dict[str, str | None],
    high_word: int,
    lines: Sequence[tuple[str, int]],
    labels: Iterable[str],
) -> None:
    address = int(fields["address"] or "", 16)
    guard = (fields["guard"] or "").strip().removeprefix("@") or None
    function.labels.update(dict.fromkeys(labels, address))
    function.instructions.append(
        Instruction(
            address=address,
            guard=guard,
            opcode=fields["opcode"] or "",
            operands=split_operands(fields["operands"] or ""),
            control=_control(high_word),
            lines=tuple(lines),
        )
    )


def branch_label(instruction: Instruction) -> str | None:
    """Return the label that a direct branch or call names."""
    for operand in instruction.operands:
        if match := re.fullmatch(r"`\(([^)]+)\)", operand):
            return match[1]
    return None


def loops(function: Function) -> list[Loop]:
    """Return the loops, by the address of their beginning.

    A loop is recognised by a branch backwards; several branches to one target are one loop. The endless loop behind
    the last instruction of a kernel, which is padding, is left out.
    """
    ends: dict[int, int] = {}
    for instruction in function.instructions:
        if instruction.base == "BRA" and (label := branch_label(instruction)) in function.labels:
            target = function.labels[label or ""]
            if target < instruction.address:
                ends[target] = max(ends.get(target, 0), instruction.address)
    spans = sorted(ends.items())
    return [
        Loop(begin, end, not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans))
        for begin, end in spans
    ]


def inside(function: Function, loop: Loop) -> Iterator[Instruction]:
    """Yield the instructions of a loop."""
    return (i for i in function.instructions if loop.begin <= i.address <= loop.end)


def opcode_mix(instructions: Iterable[Instruction]) -> Counter[str]:
    """Count instructions by class, those that access memory by class and bytes, such as ``global_load 16``."""
    mix: Counter[str] = Counter()
    for instruction in instructions:
        if instruction.base == "NOP":
            continue
        bytes_text = f" {instruction.access_bytes}" if instruction.access_bytes else ""
        mix[instruction.kind + bytes_text] += 1
    return mix


# ---------------------------------------------------------------------------------------------------------------- names


def normalise(mangled: str) -> str:
    """Give an anonymous namespace the name that g++ gives it; nvcc's has a hash in it.

    Example:
        >>> normalise("_ZN1a27_GLOBAL__N__0123_4_k_cu_5671fEv"), normalise("_ZN1a12_GLOBAL__N_12k1Ev")
        ('_ZN1a12_GLOBAL__N_11fEv', '_ZN1a12_GLOBAL__N_12k1Ev')
    """
    match = re.search(r"(\d+)_GLOBAL__N__", mangled)
    if match is None:
        return mangled
    # The digits before may belong to the name ahead; the length is right if what follows is a name or an end.
    begin = match.start(1) + len(match[1])
    for digits in (match[1][i:] for i in range(len(match[1]))):
        end = begin + int(digits)
        if end < len(mangled) and re.match(r"[\dIEN]", mangled[end:]):
            return f"{mangled[: begin - len(digits)]}12_GLOBAL__N_1{mangled[end:]}"
    return mangled


def demangle(names: Sequence[str]) -> dict[str, str]:
    """Return readable names: what c++filt says, without namespaces and parameters; as they are where it is missing."""
    if shutil.which("c++filt") is None or not names:
        return {name: name for name in names}
    plain = [normalise(name) for name in names]
    result = subprocess.run(["c++filt"], input="\n".join(plain), capture_output=True, text=True, check=True)
    return {name: _short(text) for name, text in zip(names, result.stdout.splitlines(), strict=True)}


def _short(demangled: str) -> str:
    text = demangled.replace("(anonymous namespace)::", "").replace("cnnext::cuda::", "").replace("cnnext::", "")
    text = text.removeprefix("void ")
    # Cut the parameters: the last bracket that opens outside of template arguments.
    depth = 0
    for position, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            text = text[:position]
            break
    text = re.sub(r"\((?:int|bool|unsigned int|cnnext::\w+|\w+)\)(?=-?\w)", "", text)
    return text.replace("__nv_bfloat16", "bf16").replace("__half", "fp16").replace("_kernel", "")
