"""The kernel's view of a program's memory: the bytes at a pointer, and the C ints."""

from __future__ import annotations

import ctypes
from typing import Any, cast

from tests.simkernel.errors import SimError

Buffer = bytes | bytearray | memoryview
_REFERENCE = type(ctypes.byref(ctypes.c_int()))


def _target(pointer: object, what: str) -> object:
    target = getattr(pointer, "_obj") if isinstance(pointer, _REFERENCE) else pointer
    if not isinstance(target, (ctypes.Array, ctypes.Structure, ctypes._SimpleCData)):
        raise SimError(f"{what}: {pointer!r} is no pointer")
    return target


def memory(pointer: object, need: int, what: str) -> memoryview:
    """The bytes at `pointer` (bytes, an array, or a `byref` result), at least `need` of them."""
    target = pointer if isinstance(pointer, bytes) else _target(pointer, what)
    view = memoryview(cast("ctypes.Array[Any] | bytes", target)).cast("B")
    if len(view) < need:
        raise SimError(f"{what}: {need} bytes are used of a buffer that has {len(view)}")
    return view


def item_size(pointer: object, what: str) -> int:
    """The size of the object that a pointer points to, of one element if that is an array."""
    target = _target(pointer, what)
    kind = type(target)._type_ if isinstance(target, ctypes.Array) else type(target)
    return ctypes.sizeof(cast("type[ctypes.Structure]", kind))


def c_int(value: object, what: str) -> int:
    """A C int as ctypes takes it without a prototype: a Python int of 32 bits, or a c_int."""
    if isinstance(value, ctypes.c_int):
        return value.value
    if not isinstance(value, int):
        raise SimError(f"{what} is {value!r}, which is no C int")
    if not -(2**31) <= value < 2**32:
        raise SimError(f"{what} is {value}, which a C int can't hold")
    return ctypes.c_int(value).value
