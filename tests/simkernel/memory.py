"""What the kernel sees of a program's memory: the bytes behind a pointer, and the C ints."""

from __future__ import annotations

import ctypes
from typing import cast

from tests.simkernel.errors import SimError

Buffer = bytes | bytearray | memoryview
_REFERENCE = type(ctypes.byref(ctypes.c_int()))


def memory(pointer: object, need: int, what: str) -> memoryview:
    """The bytes that `pointer` (an array, or what `byref` gives) points to, `need` of them or more."""
    target = getattr(pointer, "_obj") if isinstance(pointer, _REFERENCE) else pointer
    if not isinstance(target, (ctypes.Array, ctypes.Structure, ctypes._SimpleCData)):
        raise SimError(f"{what}: {pointer!r} is no pointer")
    view = memoryview(target).cast("B")
    if len(view) < need:
        raise SimError(f"{what}: {need} bytes are used of a buffer that has {len(view)}")
    return view


def item_size(array: object) -> int:
    """sizeof of one element of a ctypes array or of what a reference points to."""
    target = getattr(array, "_obj") if isinstance(array, _REFERENCE) else array
    if isinstance(target, ctypes.Array):
        return ctypes.sizeof(cast("type[ctypes.Structure]", type(target)._type_))
    return ctypes.sizeof(cast(ctypes.Structure, target))


def c_int(value: object, what: str) -> int:
    """A C int as ctypes takes it without a prototype: a Python int of 32 bits, or a c_int."""
    if isinstance(value, ctypes.c_int):
        return value.value
    if not isinstance(value, int):
        raise SimError(f"{what} is {value!r}, which is no C int")
    if not -(2**31) <= value < 2**32:
        raise SimError(f"{what} is {value}, which a C int can't hold")
    return ctypes.c_int(value).value
