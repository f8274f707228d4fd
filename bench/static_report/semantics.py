"""What the instructions do on which control flow and addresses depend: integers, predicates, and the few
floating-point steps of an integer division.

Arithmetic on data is not done: it decides neither where a kernel branches nor what it accesses. Predicates that
compare data are false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench.static_report.operands import (
    Mask,
    Read,
    State,
    Step,
    UnsupportedError,
    is_zero_register,
    predicate_row,
    read32,
    read64,
    read_predicate,
    write32,
    write64,
    write_predicate,
)
from bench.static_report.sass import Instruction


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Opcodes whose results are data; nothing is done.
DATA_OPCODES = _words(
    "FADD FMUL FFMA FMNMX FMNMX3 FSEL FSET FRND FSWZADD F2F F2FP HADD2 HMUL2 HMNMX2 HSET2 DADD DMUL DFMA DMNMX "
    "HMMA IMMA DMMA LDSM STSM MOVM SHFL LDL STL RED REDG ATOM ATOMG ATOMS REDUX FFMA2 FADD2 FMUL2 UFMUL UFADD UFFMA "
    "UFSEL UFMNMX I2FP UI2FP I2I"
)

#: Opcodes that change no register.
IDLE_OPCODES = _words(
    "NOP YIELD WARPSYNC BSSY BSYNC BREAK BMOV DEPBAR LDGDEPBAR MEMBAR ERRBAR CCTL CCTLL NANOSLEEP FENCE UCGABAR_ARV "
    "PREEXIT ACQBULK ENDCOLLECTIVE BAR EXIT BRA BRX BRXU JMP CALL RET UVIRTCOUNT PMTRIG"
)

#: Comparisons of data: all their predicates become false.
_DATA_COMPARISONS = _words("FSETP DSETP HSETP2 FCHK UFSETP")

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less,
    "LE": np.less_equal,
    "GT": np.greater,
    "GE": np.greater_equal,
    "EQ": np.equal,
    "NE": np.not_equal,
}
_BOOLEAN: dict[str, Callable[[Any, Any], Any]] = {
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}


def build(instruction: Instruction) -> Step | None:
    """Return what the instruction does to the registers; None if that is nothing that matters here.

    Raises:
        UnsupportedError: it is not known.
    """
    base = instruction.base
    if base in DATA_OPCODES or base in IDLE_OPCODES:
        return None
    builder = _BUILDERS.get(base) or _BUILDERS.get(base.removeprefix("U"))
    if builder is None:
        raise UnsupportedError(f"opcode {instruction.opcode}")
    return builder(instruction.suffixes, instruction.operands)


def _split_predicates(operands: Sequence[str], start: int) -> tuple[list[str], list[str]]:
    """Return the predicates at `start`, which are further destinations, and what follows."""
    end = start
    while end < len(operands) and predicate_row(operands[end]) is not None:
        end += 1
    return list(operands[start:end]), list(operands[end:])


def _trailing_predicates(operands: list[str]) -> tuple[list[str], list[str]]:
    end = len(operands)
    while end > 0 and predicate_row(operands[end - 1]) is not None:
        end -= 1
    return operands[:end], operands[end:]


def _signed(value: Any) -> Any:
    return value.view(np.int32)


def _long(value: Any) -> Any:
    return value.astype(np.uint64)


def _sign_extended(value: Any) -> Any:
    return value.view(np.int32).astype(np.int64).view(np.uint64)


# ------------------------------------------------------------------------------------------------------------- integers


def _iadd3(suffixes: list[str], operands: Sequence[str]) -> Step:
    if "64" in suffixes:
        return _add64(suffixes, operands)
    carries_out, rest = _split_predicates(operands, 1)
    sources, carries_in = _trailing_predicates(rest)
    extended = "X" in suffixes
    # With .X the sign is a complement; otherwise -a is (~a) + 1 with the carry that this makes.
    reads = []
    for source in sources:
        negative = source.startswith("-") and not source.startswith("-0x")
        reads.append((read32("~" + source.lstrip("-~") if negative else source), negative and not extended))
    ins = [read_predicate(text) for text in carries_in] if extended else []
    write = write32(operands[0])
    outs = [write_predicate(text) for text in carries_out]
    needs_carry = any(predicate_row(text) not in (7, 15) for text in carries_out)

    def step(s: State, mask: Mask | None) -> None:
        if not needs_carry and not ins:
            total32 = reads[0][0](s) + np.uint32(reads[0][1])
            for read, plus_one in reads[1:]:
                total32 = total32 + (read(s) + np.uint32(1) if plus_one else read(s))
            write(s, total32, mask)
            return
        total: Any = np.uint64(sum(plus_one for _, plus_one in reads))
        for read, _ in reads:
            total = total + _long(read(s))
        for carry in ins:
            total = total + carry(s).astype(np.uint64)
        for index, out in enumerate(outs):
            out(s, total >= np.uint64((index + 1) << 32), mask)
        write(s, (total & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return step


def _add64(suffixes: list[str], operands: Sequence[str]) -> Step:
    _, sources = _split_predicates(operands, 1)
    reads = [read64(text) for text in _trailing_predicates(sources)[0]]
    write = write64(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        total = reads[0](s)
        for read in reads[1:]:
            total = total + read(s)
        write(s, total, mask)

    return step


def _imad(suffixes: list[str], operands: Sequence[str]) -> Step:
    carries_out, rest = _split_predicates(operands, 1)
    sources, carries_in = _trailing_predicates(rest)
    unsigned = "U32" in suffixes
    widen = _long if unsigned else _sign_extended
    if "WIDE" in suffixes or "HI" in suffixes:
        a, b, c = read32(sources[0]), read32(sources[1]), read64(sources[2])
        carry = read_predicate(carries_in[0]) if "X" in suffixes and carries_in else None
        outs = [write_predicate(text) for text in carries_out]
        high_only = "HI" in suffixes
        write_low, write_pair = write32(operands[0]), write64(operands[0])

        def wide(s: State, mask: Mask | None) -> None:
            product, addend = widen(a(s)) * widen(b(s)), c(s)
            if carry is not None:
                addend = addend + carry(s).astype(np.uint64)
            total = product + addend
            for out in outs:
                out(s, total < product, mask)
            if high_only:
                write_low(s, (total >> np.uint64(32)).astype(np.uint32), mask)
            else:
                write_pair(s, total, mask)

        return wide
    a, b = read32(sources[0]), read32(sources[1])
    extended = "X" in suffixes
    third = sources[2]
    if extended and third.startswith("-"):
        third = "~" + third[1:]
    c32 = read32(third)
    carry = read_predicate(carries_in[0]) if extended and carries_in else None
    write = write32(operands[0])
    # a move or a sum, which most are
    if is_zero_register(sources[0]) or is_zero_register(sources[1]):
        plain: Read = c32
    elif sources[1] == "0x1":
        plain = lambda s: a(s) + c32(s)  # noqa: E731
    else:
        plain = lambda s: a(s) * b(s) + c32(s)  # noqa: E731
    if carry is not None:
        return lambda s, mask: write(s, plain(s) + carry(s).astype(np.uint32), mask)
    return lambda s, mask: write(s, plain(s), mask)


def _mov(suffixes: list[str], operands: Sequence[str]) -> Step:
    if "64" in suffixes:
        wide, write_pair = read64(operands[1]), write64(operands[0])
        return lambda s, mask: write_pair(s, wide(s), mask)
    read, write = read32(operands[1]), write32(operands[0])
    return lambda s, mask: write(s, read(s), mask)


def _load_constant(suffixes: list[str], operands: Sequence[str]) -> Step:
    if len(suffixes) == 1 and suffixes[0] in ("U8", "S8", "U16", "S16"):
        return _load_small_constant(suffixes[0], operands)
    count = next((int(suffix) // 32 for suffix in suffixes if suffix in ("64", "128")), 1)
    if not set(suffixes) <= {"64", "128", "CONSTANT"} or not operands[1].startswith("c["):
        raise UnsupportedError(f"LDC.{'.'.join(suffixes)} {operands[1]}")
    sources, targets = [operands[1]], [operands[0]]
    for _ in range(count - 1):
        sources.append(_next_constant(sources[-1]))
        targets.append(_next_register(targets[-1]))
    pairs = [(write32(target), read32(source)) for target, source in zip(targets, sources, strict=True)]

    def step(s: State, mask: Mask | None) -> None:
        values = [read(s) for _, read in pairs]
        for (write, _), value in zip(pairs, values, strict=True):
            write(s, value, mask)

    return step


def _load_small_constant(suffix: str, operands: Sequence[str]) -> Step:
    match = re.fullmatch(r"c\[0x([0-9a-f]+)\]\[0x([0-9a-f]+)\]", operands[1].replace(" ", ""))
    if match is None:
        raise UnsupportedError(f"LDC.{suffix} {operands[1]}")
    bank, address, bits = int(match[1], 16), int(match[2], 16), int(suffix[1:])
    write = write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        value = int(s.constants[bank][address // 4]) >> address % 4 * 8 & (1 << bits) - 1
        if suffix[0] == "S" and value >> bits - 1:
            value -= 1 << bits
        write(s, np.uint32(value & 0xFFFFFFFF), mask)

    return step


def _next_register(text: str) -> str:
    return re.sub(r"\d+", lambda match: str(int(match[0]) + 1), text, count=1)


def _next_constant(text: str) -> str:
    head, _, address = text.rpartition("[")
    address = address.rstrip("]")
    base, _, offset = address.rpartition("+")
    if "0x" not in offset:
        base, offset = offset, "0x0"
    moved = hex(int(offset, 16) + 4)
    return f"{head}[{base + '+' if base and base not in ('RZ', 'URZ') else ''}{moved}]"


def _lea(suffixes: list[str], operands: Sequence[str]) -> Step:
    carries_out, rest = _split_predicates(operands, 1)
    sources, carries_in = _trailing_predicates(rest)
    shift = read32(sources[-1])
    high, extended, sign_extend = "HI" in suffixes, "X" in suffixes, "SX32" in suffixes
    negative = sources[0].startswith("-")
    low = read32(sources[0].lstrip("-"))
    b = read32(sources[1])
    upper = read32(sources[2]) if high and not sign_extend and len(sources) == 4 else None
    carry = read_predicate(carries_in[0]) if extended and carries_in else None
    write = write32(operands[0])
    outs = [write_predicate(text) for text in carries_out]

    def step(s: State, mask: Mask | None) -> None:
        value = _sign_extended(low(s)) if sign_extend else _long(low(s))
        if upper is not None:
            value = value | _long(upper(s)) << np.uint64(32)
        value = value << (_long(shift(s)) & np.uint64(31))
        if negative:
            value = ~value + np.uint64(1) if not extended else ~value
        part = (value >> np.uint64(32) if high else value) & np.uint64(0xFFFFFFFF)
        total = part + _long(b(s))
        if carry is not None:
            total = total + carry(s).astype(np.uint64)
        for out in outs:
            out(s, total >> np.uint64(32) != 0, mask)
        write(s, (total & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return step


def _shift(suffixes: list[str], operands: Sequence[str]) -> Step:
    low, amount, high = (read32(text) for text in operands[1:4])
    left = "L" in suffixes
    signed = "S32" in suffixes or "S64" in suffixes
    wide = "U64" in suffixes or "S64" in suffixes
    take_high = "HI" in suffixes
    limit = np.uint64(63)
    if "W" in suffixes:
        raise UnsupportedError("SHF.W")
    write = write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        n = np.minimum(_long(amount(s)), limit)
        if left:
            value = (_long(high(s)) << np.uint64(32) | _long(low(s))) if wide or take_high else _long(low(s))
            result = value << n
            part = result >> np.uint64(32) if take_high else result
        elif wide:
            value = _long(high(s)) << np.uint64(32) | _long(low(s))
            result = (value.view(np.int64) >> n.astype(np.int64)).view(np.uint64) if signed else value >> n
            part = result >> np.uint64(32) if take_high else result
        elif take_high:  # of the upper word alone
            word = _sign_extended(high(s)) if signed else _long(high(s))
            part = (word.view(np.int64) >> n.astype(np.int64)).view(np.uint64) if signed else word >> n
        else:
            value = _long(high(s)) << np.uint64(32) | _long(low(s))
            part = value >> n
        write(s, (part & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return step


def _isetp(suffixes: list[str], operands: Sequence[str]) -> Step:
    compare = next(_COMPARE[suffix] for suffix in suffixes if suffix in _COMPARE)
    combine = next((_BOOLEAN[suffix] for suffix in suffixes if suffix in _BOOLEAN), np.logical_and)
    unsigned = "U32" in suffixes or "U64" in suffixes
    wide = "U64" in suffixes or "S64" in suffixes
    targets, rest = _split_predicates(operands, 0)
    sources, predicates = _trailing_predicates(rest)
    read = read64 if wide else read32
    a, b = (read(text) for text in sources[:2])
    outs = [write_predicate(text) for text in targets]
    other = read_predicate(predicates[0]) if predicates else None
    # .EX: the upper words decide, and where they are equal the comparison of the lower ones does.
    lower = read_predicate(predicates[1]) if "EX" in suffixes else None
    equality = compare in (np.equal, np.not_equal)

    def step(s: State, mask: Mask | None) -> None:
        left, right = a(s), b(s)
        if not unsigned:
            left, right = (v.view(np.int64 if wide else np.int32) for v in (left, right))
        if lower is None:
            result = compare(left, right)
        elif equality:
            below = lower(s)
            result = (left == right) & below if compare is np.equal else (left != right) | below
        else:
            strict = np.greater if compare in (np.greater, np.greater_equal) else np.less
            result = strict(left, right) | (left == right) & lower(s)
        values = [result, ~result] if other is None else [combine(result, other(s)), combine(~result, other(s))]
        for out, value in zip(outs, values, strict=False):
            out(s, value, mask)

    return step


def _lop3(suffixes: list[str], operands: Sequence[str]) -> Step:
    targets, rest = _split_predicates(operands, 0)
    target, *sources = rest
    sources, _ = _trailing_predicates(sources)
    a, b, c = (read32(text) for text in sources[:3])
    table = int(sources[3], 16)
    write = write32(target)
    outs = [write_predicate(text) for text in targets]

    def step(s: State, mask: Mask | None) -> None:
        x, y, z = a(s), b(s), c(s)
        result = _lut(table, x, y, z, np.uint32(0))
        write(s, result, mask)
        for out in outs:
            out(s, result != 0, mask)

    return step


def _lut(table: int, x: Any, y: Any, z: Any, zero: Any) -> Any:
    """Return the function of three bits whose value for bits x y z is bit (4x + 2y + z) of the table."""
    if table == 0xC0:
        return x & y
    if table == 0xFC:
        return x | y
    result = zero
    for index in range(8):
        if table >> index & 1:
            term = (x if index & 4 else ~x) & (y if index & 2 else ~y) & (z if index & 1 else ~z)
            result = result | term
    return result


def _plop3(suffixes: list[str], operands: Sequence[str]) -> Step:
    predicates = [text for text in operands if predicate_row(text) is not None]
    tables = [int(text, 16) for text in operands if text.startswith("0x")]
    targets, sources = predicates[:2], [read_predicate(text) for text in predicates[2:5]]
    outs = [write_predicate(text) for text in targets]

    def step(s: State, mask: Mask | None) -> None:
        x, y, z = (read(s) for read in sources)
        false = np.zeros(s.threads, np.bool_)
        values = [_lut(table, x, y, z, false) for table in tables]
        for out, value in zip(outs, values, strict=False):
            out(s, value, mask)

    return step


def _select(suffixes: list[str], operands: Sequence[str]) -> Step:
    condition = read_predicate(operands[-1])
    if "64" in suffixes:
        wide_a, wide_b, write_pair = read64(operands[1]), read64(operands[2]), write64(operands[0])
        return lambda s, mask: write_pair(s, np.where(condition(s), wide_a(s), wide_b(s)), mask)
    a, b, write = read32(operands[1]), read32(operands[2]), write32(operands[0])
    return lambda s, mask: write(s, np.where(condition(s), a(s), b(s)), mask)


def _minmax(suffixes: list[str], operands: Sequence[str]) -> Step:
    wide = "S64" in suffixes or "U64" in suffixes
    # Of 64 bits, from sm_100 on, predicates that nobody reads come first, and one more comes last.
    _, operands = _split_predicates(operands, 0)
    _, rest = _split_predicates(operands, 1)
    sources, predicates = _trailing_predicates(rest)
    unsigned = "U32" in suffixes or "U64" in suffixes
    read = read64 if wide else read32
    reads = [read(text) for text in sources]
    takes_minimum = read_predicate(predicates[0 if wide else -1])
    at_least_zero = "RELU" in suffixes
    write = write64(operands[0]) if wide else write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        values = [value(s) for value in reads]
        if not unsigned:
            values = [value.view(np.int64 if wide else np.int32) for value in values]
        low, high = values[0], values[0]
        for value in values[1:]:
            low, high = np.minimum(low, value), np.maximum(high, value)
        result = np.where(takes_minimum(s), low, high)
        if at_least_zero:
            result = np.maximum(result, result.dtype.type(0))
        write(s, result.view(np.uint64 if wide else np.uint32), mask)

    return step


def _add_minmax(suffixes: list[str], operands: Sequence[str]) -> Step:
    _, rest = _split_predicates(operands, 1)
    sources, predicates = _trailing_predicates(rest)
    a, b, c = (read32(text) for text in sources)
    takes_minimum, write = read_predicate(predicates[-1]), write32(operands[0])
    at_least_zero = "RELU" in suffixes
    view = np.uint32 if "U32" in suffixes else np.int32

    def step(s: State, mask: Mask | None) -> None:
        total, other = (a(s) + b(s)).view(view), c(s).view(view)
        result = np.where(takes_minimum(s), np.minimum(total, other), np.maximum(total, other))
        if at_least_zero:
            result = np.maximum(result, view(0))
        write(s, result.view(np.uint32), mask)

    return step


def _absolute(suffixes: list[str], operands: Sequence[str]) -> Step:
    read, write = read32(operands[1]), write32(operands[0])
    return lambda s, mask: write(s, np.abs(_signed(read(s))).view(np.uint32), mask)


def _permute(suffixes: list[str], operands: Sequence[str]) -> Step:
    if suffixes:
        raise UnsupportedError("PRMT with a mode")
    a, selector, b, write = read32(operands[1]), read32(operands[2]), read32(operands[3]), write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        both = _long(a(s)) | _long(b(s)) << np.uint64(32)
        choice = _long(selector(s))
        result: Any = np.uint64(0)
        for byte in range(4):
            nibble = choice >> np.uint64(4 * byte) & np.uint64(15)
            value = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
            sign = np.where(value >> np.uint64(7) != 0, np.uint64(255), np.uint64(0))
            result = result | np.where(nibble >> np.uint64(3) != 0, sign, value) << np.uint64(8 * byte)
        write(s, result.astype(np.uint32), mask)

    return step


def _sign_extend(suffixes: list[str], operands: Sequence[str]) -> Step:
    read, bits, write = read32(operands[1]), read32(operands[2]), write32(operands[0])
    unsigned = "U32" in suffixes

    def step(s: State, mask: Mask | None) -> None:
        shift = np.uint32(32) - (bits(s) & np.uint32(31))
        shifted = read(s) << shift
        result = shifted >> shift if unsigned else (_signed(shifted) >> shift.astype(np.int32)).view(np.uint32)
        write(s, result, mask)

    return step


def _bit_mask(suffixes: list[str], operands: Sequence[str]) -> Step:
    position, width, write = read32(operands[1]), read32(operands[2]), write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        ones = (np.uint64(1) << np.minimum(_long(width(s)), np.uint64(32))) - np.uint64(1)
        shifted = ones << np.minimum(_long(position(s)), np.uint64(32))
        write(s, (shifted & np.uint64(0xFFFFFFFF)).astype(np.uint32), mask)

    return step


def _population(suffixes: list[str], operands: Sequence[str]) -> Step:
    read, write = read32(operands[1]), write32(operands[0])
    return lambda s, mask: write(s, np.bitwise_count(read(s)).astype(np.uint32), mask)


def _leading_one(suffixes: list[str], operands: Sequence[str]) -> Step:
    if suffixes not in (["U32"], ["U32", "SH"]):
        raise UnsupportedError(f"FLO.{'.'.join(suffixes)}")
    read, write = read32(operands[1]), write32(operands[0])
    distance = "SH" in suffixes

    def step(s: State, mask: Mask | None) -> None:
        value = read(s)
        position = np.floor(np.log2(np.maximum(value, 1).astype(np.float64))).astype(np.uint32)
        result = np.uint32(31) - position if distance else position
        write(s, np.where(value == 0, np.uint32(0xFFFFFFFF), result), mask)

    return step


# ---------------------------------------------------------------------------------------- special registers, predicates


def _special(suffixes: list[str], operands: Sequence[str]) -> Step:
    name = operands[1]
    pair = "32" not in suffixes and operands[1] == "SRZ"
    write, write_next = write32(operands[0]), write32(_next_register(operands[0])) if pair else None

    def step(s: State, mask: Mask | None) -> None:
        if name not in s.special:
            raise UnsupportedError(f"special register {name}")
        write(s, s.special[name], mask)
        if write_next is not None:
            write_next(s, np.uint32(0), mask)

    return step


def _special_uniform(suffixes: list[str], operands: Sequence[str]) -> Step:
    return _special(["32"], operands)


def _data_comparison(suffixes: list[str], operands: Sequence[str]) -> Step:
    targets, _ = _split_predicates(operands, 0)
    outs = [write_predicate(text) for text in targets]

    def step(s: State, mask: Mask | None) -> None:
        for out in outs:
            out(s, np.False_, mask)

    return step


def _to_uniform(suffixes: list[str], operands: Sequence[str]) -> Step:
    if predicate_row(operands[0]) is not None:
        raise UnsupportedError("R2UR with a predicate")
    read, write = read32(operands[-1]), write32(operands[0])
    # NOTE: a uniform register is one value a warp; kept a thread here, it is right as the value is the same in all.
    return lambda s, mask: write(s, read(s), mask)


def _vote(suffixes: list[str], operands: Sequence[str]) -> Step:
    texts = list(operands)
    target = texts.pop(0) if predicate_row(texts[0]) is None else None
    outs = [write_predicate(texts[0])] if len(texts) > 1 else []
    source = read_predicate(texts[-1])
    mode = next((suffix for suffix in suffixes if suffix in ("ANY", "ALL")), "ANY")
    write = write32(target) if target is not None and not is_zero_register(target) else None

    def step(s: State, mask: Mask | None) -> None:
        active = np.ones(s.threads, np.bool_) if mask is None else mask
        votes = (source(s) & active).reshape(-1, 32)
        if outs:
            there = active.reshape(-1, 32)
            result = votes.any(1) if mode == "ANY" else (votes | ~there).all(1)
            outs[0](s, np.repeat(result, 32), mask)
        if write is not None:
            ballots = (votes.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(1).astype(np.uint32)
            write(s, np.repeat(ballots, 32), mask)

    return step


def _registers_to_predicates(suffixes: list[str], operands: Sequence[str]) -> Step:
    read = read32(operands[1])
    selected = int(operands[2], 16) if len(operands) > 2 else 0x7F

    def step(s: State, mask: Mask | None) -> None:
        value = read(s)
        for index in range(7):
            if selected >> index & 1:
                write_predicate(f"P{index}")(s, (value >> np.uint32(index) & np.uint32(1)) != 0, mask)

    return step


def _predicates_to_register(suffixes: list[str], operands: Sequence[str]) -> Step:
    if suffixes or operands[1] != "PR":
        raise UnsupportedError(f"P2R.{'.'.join(suffixes)}")
    kept, write = read32(operands[2]), write32(operands[0])
    selected = int(operands[3], 16)

    def step(s: State, mask: Mask | None) -> None:
        bits = np.zeros(s.threads, np.uint32)
        for index in range(7):
            if selected >> index & 1:
                bits |= s.predicates[index].astype(np.uint32) << np.uint32(index)
        write(s, kept(s) & ~np.uint32(selected) | bits, mask)

    return step


# ---------------------------------------------------------------------------------- floating point for integer division


def _half_constant(suffixes: list[str], operands: Sequence[str]) -> Step | None:
    """A half FMA of zeros and two constants is how the compiler writes a constant on another unit."""
    if not (is_zero_register(operands[1]) and is_zero_register(operands[2]) and len(operands) == 5):
        return None
    bfloat = "BF16_V2" in suffixes or "BF16" in suffixes
    word = 0
    for text in operands[3:5]:
        number = float(text.replace("INF", "inf").replace("QNAN", "nan"))
        bits = int(np.float32(number).view(np.uint32)) >> 16 if bfloat else int(np.float16(number).view(np.uint16))
        word = word << 16 | bits
    write, value = write32(operands[0]), np.uint32(word)
    return lambda s, mask: write(s, value, mask)


def _integer_to_float(suffixes: list[str], operands: Sequence[str]) -> Step:
    wide = "U64" in suffixes or "S64" in suffixes
    if "F64" in suffixes or "F16" in suffixes or {"U8", "S8", "U16", "S16"} & set(suffixes):
        raise UnsupportedError(f"I2F.{'.'.join(suffixes)}")
    unsigned = "U32" in suffixes or "U64" in suffixes
    read, write = (read64 if wide else read32)(operands[1]), write32(operands[0])
    up = "RP" in suffixes

    def step(s: State, mask: Mask | None) -> None:
        value = read(s)
        if not unsigned:
            value = value.view(np.int64 if wide else np.int32)
        result = value.astype(np.float32)
        if up:  # towards infinity
            exact = value.astype(np.longdouble)  # has 64 bits of mantissa
            result = np.where(result.astype(np.longdouble) < exact, np.nextafter(result, np.float32(np.inf)), result)
        write(s, result.astype(np.float32).view(np.uint32), mask)

    return step


def _float_to_integer(suffixes: list[str], operands: Sequence[str]) -> Step:
    wide = "U64" in suffixes or "S64" in suffixes
    if "TRUNC" not in suffixes or "F64" in suffixes:
        raise UnsupportedError(f"F2I.{'.'.join(suffixes)}")
    read, write = read32(operands[1]), (write64 if wide else write32)(operands[0])
    unsigned = "U32" in suffixes or "U64" in suffixes
    limit = 2.0 ** ((64 if wide else 32) - (0 if unsigned else 1))

    def step(s: State, mask: Mask | None) -> None:
        value = np.nan_to_num(read(s).view(np.float32).astype(np.float64), nan=0.0)
        low = 0.0 if unsigned else -limit
        clipped = np.clip(np.trunc(value), low, limit * (1 - 2.0**-53))
        if wide:
            result = clipped.astype(np.uint64 if unsigned else np.int64).view(np.uint64)
        else:
            result = clipped.astype(np.int64).astype(np.uint32)
        write(s, result, mask)

    return step


def _special_function(suffixes: list[str], operands: Sequence[str]) -> Step | None:
    if suffixes != ["RCP"]:
        return None
    try:
        read = read32(operands[1])
    except UnsupportedError:
        return None  # of data
    write = write32(operands[0])

    def step(s: State, mask: Mask | None) -> None:
        with np.errstate(all="ignore"):
            write(s, (np.float32(1) / read(s).view(np.float32)).astype(np.float32).view(np.uint32), mask)

    return step


_BUILDERS: dict[str, Callable[[list[str], Sequence[str]], Step | None]] = {
    "IADD3": _iadd3,
    "IADD": _iadd3,
    "VIADD": _iadd3,
    "IMAD": _imad,
    "MOV": _mov,
    "LDC": _load_constant,
    "LDCU": _load_constant,
    "ULDC": _load_constant,
    "LEA": _lea,
    "SHF": _shift,
    "ISETP": _isetp,
    "LOP3": _lop3,
    "PLOP3": _plop3,
    "SEL": _select,
    "IMNMX": _minmax,
    "VIMNMX": _minmax,
    "VIMNMX3": _minmax,
    "VIADDMNMX": _add_minmax,
    "IABS": _absolute,
    "PRMT": _permute,
    "SGXT": _sign_extend,
    "BMSK": _bit_mask,
    "POPC": _population,
    "FLO": _leading_one,
    "S2R": _special,
    "CS2R": _special,
    "S2UR": _special_uniform,
    "R2UR": _to_uniform,
    "VOTE": _vote,
    "VOTEU": _vote,
    "R2P": _registers_to_predicates,
    "P2R": _predicates_to_register,
    "HFMA2": _half_constant,
    "I2F": _integer_to_float,
    "F2I": _float_to_integer,
    "MUFU": _special_function,
    **dict.fromkeys(_DATA_COMPARISONS, _data_comparison),
}
