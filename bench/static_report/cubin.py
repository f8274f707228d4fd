"""Reads what the disassembly does not show from a cubin: where parameters lie, and tables in constant memory."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

#: In .nv.info.<kernel>: format 4 (sized value), attribute 0x0a (EIATTR_PARAM_CBANK), 8 bytes: symbol, offset, size.
_PARAMETER_BANK = b"\x04\x0a\x08\x00"


@dataclass(frozen=True)
class Constants:
    """A kernel's constant memory, apart from its arguments."""

    #: Offset of the first argument in bank 0, and the bytes of all.
    parameter_offset: int
    parameter_bytes: int
    #: What the compiler put into the other banks.
    banks: dict[int, bytes]


def _sections(image: bytes) -> dict[str, bytes]:
    """Return the sections of a 64-bit little-endian ELF file by name."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a cubin")
    (table,) = struct.unpack_from("<Q", image, 0x28)
    entry_bytes, count, names_index = struct.unpack_from("<HHH", image, 0x3A)

    def header(index: int) -> tuple[int, int, int, int]:
        name, kind, _, _, offset, size = struct.unpack_from("<IIQQQQ", image, table + index * entry_bytes)
        return name, kind, offset, size

    _, _, names_offset, _ = header(names_index)
    sections = {}
    for index in range(count):
        name, kind, offset, size = header(index)
        start = names_offset + name
        text = image[start : image.index(b"\0", start)].decode()
        sections[text] = b"" if kind == 8 else image[offset : offset + size]  # 8: NOBITS
    return sections


def read_constants(path: Path) -> dict[str, Constants]:
    """Return the constants of each kernel of a cubin, by mangled name."""
    sections = _sections(path.read_bytes())
    kernels = {}
    for name in (section.removeprefix(".text.") for section in sections if section.startswith(".text.")):
        info = sections.get(f".nv.info.{name}", b"")
        position = info.find(_PARAMETER_BANK)
        offset, size = struct.unpack_from("<HH", info, position + 8) if position >= 0 else (0, 0)
        banks = {}
        for bank in range(1, 8):
            for section in (f".nv.constant{bank}.{name}", f".nv.constant{bank}"):
                if section in sections:
                    banks[bank] = sections[section]
                    break
        kernels[name] = Constants(offset, size, banks)
    return kernels
