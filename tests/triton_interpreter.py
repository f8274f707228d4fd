"""Triton's interpreter, made right and fast enough to test with.

Import this before the kernels, with TRITON_INTERPRET=1 set before cnnext was imported (tests/conftest.py). What it
changes in `triton.runtime.interpreter`:

- float32 to bfloat16 is rounded to nearest even, as the hardware does; the interpreter truncates, and loses carries;
- tl.dot of bfloat16 multiplies the numbers; the interpreter multiplies their bit patterns as integers;
- a scalar truth spread over a tile stays one (in Triton 3.9 it becomes a number, which is no mask);
- triton.language is patched once for each module that it is used in and stays so; the interpreter does it at every call
  of a device function (5 ms each, and the patches pile up);
- integer arithmetic is not checked for overflow by computing it twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

__all__ = ["repair"]

_BFLOAT16_NAN = 0x7FC0


def _to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of float32 values, rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), _BFLOAT16_NAN, rounded).astype(np.uint16)


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _numbers(handle: Any) -> np.ndarray:
    return _from_bfloat16(handle.data) if handle.dtype.scalar == tl.bfloat16 else handle.data


def repair() -> None:
    """Changes the interpreter, once for the process.

    Raises:
        AttributeError: this version of Triton has another interpreter, and this module must follow it.
    """
    builder = interpreter.InterpreterBuilder
    cast_as_it_was = builder.cast_impl
    dot_as_it_was = builder.create_dot
    splat_as_it_was = builder.create_splat

    def cast(self: Any, source: Any, target: Any) -> Any:
        pair = (source.dtype.scalar, target.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_to_bfloat16(source.data), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(_from_bfloat16(source.data), tl.float32)
        return cast_as_it_was(self, source, target)

    def dot(self: Any, a: Any, b: Any, sums: Any, *rest: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(_numbers(t), tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b)
        )
        return dot_as_it_was(self, a, b, sums, *rest)

    def splat(self: Any, target: Any, scalar: Any) -> Any:
        if scalar.data.dtype == np.bool_:
            return interpreter.TensorHandle(np.full(target.shape, scalar.data, dtype=np.bool_), tl.int1)
        return splat_as_it_was(self, target, scalar)

    def patch_once(function: Any) -> Any:
        module = function.__module__
        if module not in patched:
            patched.add(module)
            patch_as_it_was(function)
        return interpreter._LangPatchScope()  # what it restores afterwards: nothing

    patched: set[str] = set()
    patch_as_it_was = interpreter._patch_lang
    builder.cast_impl = cast
    builder.create_dot = dot
    builder.create_splat = splat
    interpreter._patch_lang = patch_once
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)
