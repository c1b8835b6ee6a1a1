"""C structs as ctypes types, declared by field and C type as in their headers."""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, TypeAlias

Fields: TypeAlias = tuple[tuple[str, str], ...]
"""A C struct as its header declares it: the names of its fields and their C types, in order."""

C_TYPES: Final = {
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "uint64_t[4]": ctypes.c_uint64 * 4,
    "intptr_t": ctypes.c_ssize_t,
    "uintptr_t": ctypes.c_size_t,
    "void *": ctypes.c_void_p,
}
"""The C types in the structs of this package, on this platform."""


def structure(name: str, fields: Fields, *, pack: int = 0) -> type[ctypes.Structure]:
    """The ctypes type of a C struct. `pack` is as in `#pragma pack`; 0 means natural alignment."""
    body: dict[str, object] = {"_fields_": [(field, C_TYPES[c]) for field, c in fields]}
    if pack:
        body |= {"_pack_": pack, "_layout_": "ms"}  # 3.14 requires both.
    return type(name, (ctypes.Structure,), body)
