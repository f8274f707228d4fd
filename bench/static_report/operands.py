"""Reads and writes the operands of instructions, for all threads of a block at once.

A register is an array of 32-bit values, one a thread. Uniform registers and predicates are kept the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]
Longs = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

_GENERAL, _UNIFORM = 256, 256
_RZ, _PT = 255, 7


class UnsupportedError(NotImplementedError):
    """An instruction that `bench.static_report` cannot follow; the message names it."""


@dataclass
class State:
    """The registers of a block's threads."""

    threads: int
    #: Constant memory by bank, as 32-bit words.
    constants: dict[int, Words]
    #: Special registers by name.
    special: dict[str, Words]
    registers: Words = field(init=False)
    predicates: Mask = field(init=False)

    def __post_init__(self) -> None:
        # Rows 0 to 254 are R0 to R254, 255 is RZ; the same 256 rows later for UR.
        self.registers = np.zeros((_GENERAL + _UNIFORM, self.threads), np.uint32)
        # P0 to P6 and PT, then UP0 to UP6 and UPT.
        self.predicates = np.zeros((16, self.threads), np.bool_)
        self.predicates[[_PT, 8 + _PT]] = True


Read = Callable[[State], Any]  # an array or a scalar of numpy's
Step = Callable[[State, "Mask | None"], None]

_REGISTER = re.compile(r"^(?P<sign>[-~]?)\|?(?P<uniform>U?)R(?P<index>\d+|Z)(?P<suffix>(?:\.\w+)*)\|?(?:\.\w+)*$")
_PREDICATE = re.compile(r"^(?P<sign>!?)(?P<uniform>U?)P(?P<index>\d|T)$")
_INTEGER = re.compile(r"^(?P<sign>[-~]?)0x(?P<digits>[0-9a-f]+)$")
_CONSTANT = re.compile(r"^(?P<sign>[-~]?)\|?c\[0x(?P<bank>[0-9a-f]+)\]\s*\[(?P<address>[^\]]+)\]\|?(?:\.\w+)*$")


def row_of(text: str) -> int | None:
    """Return the row of a general or uniform register in `State.registers`, or None if it is something else."""
    match = _REGISTER.match(text)
    if match is None:
        return None
    index = _RZ if match["index"] == "Z" else int(match["index"])
    return index + (_GENERAL if match["uniform"] else 0)


def is_zero_register(text: str) -> bool:
    """Whether writing there has no effect."""
    return bool(re.match(r"^-?U?RZ\b", text))


def predicate_row(text: str) -> int | None:
    """Return the row of a predicate in `State.predicates`, or None if it is something else."""
    match = _PREDICATE.match(text)
    if match is None:
        return None
    return (_PT if match["index"] == "T" else int(match["index"])) + (8 if match["uniform"] else 0)


def read_predicate(text: str) -> Callable[[State], Mask]:
    """Return a reader of a predicate such as ``!P0``."""
    row = predicate_row(text)
    if row is None:
        raise UnsupportedError(f"predicate {text}")
    if text.startswith("!"):
        return lambda s: ~s.predicates[row]
    return lambda s: s.predicates[row]


def _negated(read: Read, sign: str) -> Read:
    if sign == "-":
        return lambda s: ~read(s) + np.uint32(1)
    if sign == "~":
        return lambda s: ~read(s)
    return read


def _constant32(bank: int, address: str) -> Read:
    if match := re.fullmatch(r"(?:U?RZ|0x(?P<digits>[0-9a-f]+))", address):
        word = int(match["digits"] or "0", 16) // 4
        return lambda s: s.constants[bank][word]
    indirect = address_of(address)

    def read(s: State) -> Any:
        table = s.constants[bank]
        # Lanes that do not take part may hold anything.
        return table[np.minimum((indirect(s) >> np.uint64(2)).astype(np.int64), len(table) - 1)]

    return read


def read32(text: str) -> Read:
    """Return a reader of a 32-bit operand, with its sign: an array of uint32, or one uint32.

    Raises:
        UnsupportedError: it is none.
    """
    if (match := _REGISTER.match(text)) is not None:
        if not set(match["suffix"].split(".")) <= {"", "reuse", "64"}:
            raise UnsupportedError(f"operand {text}")
        row = row_of(text)
        return _negated(lambda s: s.registers[row], match["sign"])
    if (match := _INTEGER.match(text)) is not None:
        value = int(match["digits"], 16)
        value = {"-": -value, "~": ~value, "": value}[match["sign"]]
        word = np.uint32(value & 0xFFFFFFFF)
        return lambda s: word
    if (match := _CONSTANT.match(text)) is not None:
        return _negated(_constant32(int(match["bank"], 16), match["address"]), match["sign"])
    try:
        number = np.float32(text.replace("INF", "inf").replace("QNAN", "nan"))
    except ValueError:
        raise UnsupportedError(f"operand {text}") from None
    word = number.view(np.uint32)
    return lambda s: word


def next_word(text: str) -> str:
    """Return the operand that holds the upper half of a 64-bit operand."""
    if match := re.match(r"^([-~]?U?R)(\d+)(.*)$", text):
        return f"{match[1]}{int(match[2]) + 1}{match[3]}"
    if match := re.match(r"^(-?c\[0x[0-9a-f]+\]\s*)\[(.*?)(?:\+?0x([0-9a-f]+))?\]$", text):
        offset = int(match[3] or "0", 16) + 4
        base = match[2].rstrip("+")
        return f"{match[1]}[{base}+{hex(offset)}]" if base else f"{match[1]}[{hex(offset)}]"
    return text  # RZ


def read64(text: str) -> Read:
    """Return a reader of a 64-bit operand: an array of uint64, or one uint64."""
    if (match := _INTEGER.match(text)) is not None:
        value = int(match["digits"], 16) * (-1 if match["sign"] == "-" else 1)
        number = np.uint64(value & 0xFFFFFFFFFFFFFFFF)
        return lambda s: number
    sign = text[0] if text[0] in "-~" else ""
    plain = text[len(sign) :].replace(".reuse", "")
    low, high = read32(plain), read32(next_word(plain))

    def read(s: State) -> Any:
        return low(s).astype(np.uint64) | high(s).astype(np.uint64) << np.uint64(32)

    if sign == "-":
        return lambda s: ~read(s) + np.uint64(1)
    if sign == "~":
        return lambda s: ~read(s)
    return read


def _scaled(read: Read, factor: int) -> Read:
    scale = np.uint64(factor)
    return lambda s: read(s).astype(np.uint64) * scale


def address_of(text: str) -> Read:
    """Return a reader of the sum in an address: ``R2.64+UR4+0x10``, ``R3.X4+-0x8``.

    64-bit addresses come from pairs of registers with the suffix .64; all others are 32-bit and wrap.
    """
    terms: list[Read] = []
    wide = ".64" in text
    for term in re.findall(r"[-+]*[^-+]+", text.replace(" ", "")):
        sign = "-" if "-" in re.match(r"[-+]*", term)[0] else ""  # type: ignore[index]
        body = term.lstrip("+-")
        if match := re.fullmatch(r"(U?R(?:\d+|Z))((?:\.\w+)*)", body):
            suffixes = set(match[2].split(".")) - {"", "reuse", "U32", "NOSBB"}
            if suffixes == {"64"}:
                terms.append(read64(match[1]))
            elif not suffixes:
                terms.append(_scaled(read32(match[1]), 1))
            elif len(suffixes) == 1 and (scale := re.fullmatch(r"X(\d+)", next(iter(suffixes)))):
                terms.append(_scaled(read32(match[1]), int(scale[1])))
            else:
                raise UnsupportedError(f"address {text}")
        else:
            terms.append(read64(sign + body))
    mask = np.uint64(0xFFFFFFFFFFFFFFFF if wide else 0xFFFFFFFF)

    def read(s: State) -> Any:
        total = terms[0](s)
        for other in terms[1:]:
            total = total + other(s)
        return total & mask

    return read


def memory_address(text: str) -> Read:
    """Return a reader of the address of an access: ``[R0+0x10]``, ``desc[UR4][R2.64]``."""
    return address_of(text[text.rindex("[") + 1 : text.rindex("]")])


# -------------------------------------------------------------------------------------------------------------- writing


def write32(text: str) -> Callable[[State, Any, Mask | None], None]:
    """Return a writer of a register; lanes outside of the mask keep their value."""
    row = row_of(text)
    if row is None:
        raise UnsupportedError(f"destination {text}")
    if is_zero_register(text):
        return lambda s, value, mask: None

    def write(s: State, value: Any, mask: Mask | None) -> None:
        if mask is None:
            s.registers[row] = value
        else:
            np.copyto(s.registers[row], value, where=mask)

    return write


def write64(text: str) -> Callable[[State, Any, Mask | None], None]:
    """Return a writer of a pair of registers."""
    low, high = write32(text), write32(next_word(text))

    def write(s: State, value: Any, mask: Mask | None) -> None:
        low(s, value.astype(np.uint32), mask)
        high(s, (value >> np.uint64(32)).astype(np.uint32), mask)

    return write


def write_predicate(text: str) -> Callable[[State, Any, Mask | None], None]:
    """Return a writer of a predicate."""
    row = predicate_row(text)
    if row is None:
        raise UnsupportedError(f"predicate {text}")
    if row % 8 == _PT:
        return lambda s, value, mask: None

    def write(s: State, value: Any, mask: Mask | None) -> None:
        if mask is None:
            s.predicates[row] = value
        else:
            np.copyto(s.predicates[row], value, where=mask)

    return write
