"""Which C library this is, in which version, and for which machine.

This is read from memory, without running a program or opening a file: a minimal container may have
no shell, no /proc, and no libc under a known name.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from struct import Struct
from typing import Final, NamedTuple

GLIBC: Final = "glibc"
MUSL: Final = "musl"


class Where(NamedTuple):
    """A C library and a machine."""

    libc: str
    """`GLIBC`, `MUSL`, or "" for another."""
    version: tuple[int, ...]
    """(2, 36) for 2.36; empty if unknown."""
    machine: str
    """The program's, not the kernel's: "x86_64", "i386", "arm", ...; others as `uname -m` says."""
    old_stat: bool = False
    """True if Python was built on a glibc before 2.33. Then fstat(2) was compiled into the program
    as a call of `__fxstat`, which newer versions of glibc have kept as it was."""

    def __str__(self) -> str:
        return f"{self.libc} {'.'.join(map(str, self.version))}".strip() or "unknown"


def where() -> Where:
    """The C library and machine of the running program."""
    machine = _machine(os.uname().machine, ctypes.sizeof(ctypes.c_void_p))
    version = _glibc()
    if version is not None:
        return Where(GLIBC, _numbers(version), machine, _old_stat())
    version = _musl()
    if version is not None:
        return Where(MUSL, _numbers(version), machine)
    return Where("", (), machine)


def _numbers(version: str) -> tuple[int, ...]:
    """(1, 2, 5) for "1.2.5", and for "1.2.5-git-20-g0a1b2c3"."""
    found = re.match(r"[\d.]*", version)
    return tuple(int(part) for part in found[0].split(".") if part) if found else ()


_X86: Final = re.compile(r"x86_64|i[3-6]86")
_ARM: Final = re.compile(r"aarch64|armv?\d*\w*")


def _machine(kernels: str, pointer: int) -> str:
    """The machine of a program whose pointers have `pointer` bytes, where uname(2) says `kernels`.
    A 64-bit kernel runs 32-bit programs, and can be told to report a 32-bit machine."""
    if _X86.fullmatch(kernels):
        if pointer == 8:
            return "x86_64"
        # x32 is x86-64 with 32-bit pointers, and aligns as that does.
        return "i386" if ctypes.alignment(ctypes.c_int64) == 4 else "x32"
    if _ARM.fullmatch(kernels) and sys.byteorder == "little":
        return "aarch64" if pointer == 8 else "arm"
    if pointer == 4 and "64" in kernels or kernels == "s390x" and pointer == 4:
        return f"{kernels} with 32-bit programs"
    return kernels


def _glibc() -> str | None:
    """The version of glibc. Other C libraries don't know the name, and musl fails with EINVAL."""
    try:
        told = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return None
    return told.removeprefix("glibc ") if told.startswith("glibc ") else None


def _old_stat() -> bool:
    """True if Python calls fstat(2) as programs built on a glibc before 2.33 do."""
    return b"\0__fxstat" in b"".join(_read_only_data(_OF_PYTHON))


# --- musl, which prints its version only when its loader is run -----------------------------------

_SIGN: Final = re.compile(rb"musl libc \([^)\0]*\)\n")
"""The first line that it prints then (ldso/dynlink.c)."""
_VERSION: Final = re.compile(rb"(?<![\w.])(\d+\.\d+\.\d+(?:-git-[-\w]+)?)\0")


def _musl() -> str | None:
    """The version of musl; "" if it is musl, but the version is unknown."""
    if sys.platform != "linux":
        return None
    image = b"".join(_read_only_data(_OF_LIBC))
    if not _SIGN.search(image):
        return None
    found = set(_VERSION.findall(image))
    return found.pop().decode() if len(found) == 1 else ""


class _DlInfo(ctypes.Structure):
    """Dl_info of <dlfcn.h>."""

    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


class _Elf(NamedTuple):
    """The layout of the fields of an ELF image that are read here (elf(5))."""

    header: Struct
    """e_phoff, e_phentsize, e_phnum."""
    segment: Struct
    """p_type, p_vaddr, p_filesz, and p_flags at the index `flags`."""
    flags: int


_ELF: Final = {
    4: _Elf(Struct("=28xI10xHH"), Struct("=I4xI4xI4xI4x"), 3),
    8: _Elf(Struct("=32xQ14xHH"), Struct("=II8xQ8xQ16x"), 1),
}
_PT_LOAD: Final = 1
_PF_W: Final = 2
_PF_R: Final = 4

# On some machines, the address of a function that the program calls may be that of a jump to it in
# the program itself. So these are functions that nobody calls.
_OF_LIBC: Final = "hsearch"
"""A function of every C library (it is in POSIX)."""
_OF_PYTHON: Final = "PyOS_FSPath"
"""A function of CPython; none is known for PyPy."""


def _read_only_data(name: str) -> Iterator[bytes]:
    """The read-only segments in memory of the program or library that defines the function `name`:
    dladdr(3) tells where it is loaded, and its ELF header how large they are."""
    program = ctypes.CDLL(None)
    try:
        dladdr, function = program.dladdr, getattr(program, name)
    except AttributeError:
        return
    info = _DlInfo()
    if not dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info)):
        return
    base: int = info.dli_fbase or 0
    elf = _ELF[ctypes.sizeof(ctypes.c_void_p)]
    header = ctypes.string_at(base, elf.header.size)
    table, size, count = elf.header.unpack(header)
    if not header.startswith(b"\x7fELF"):
        return
    first: int | None = None
    for number in range(count):
        entry = ctypes.string_at(base + table + number * size, elf.segment.size)
        fields: list[int] = list(elf.segment.unpack(entry))
        flags = fields.pop(elf.flags)
        segment, start, length = fields
        if segment == _PT_LOAD:
            first = start if first is None else first  # The first is loaded at the base.
            if flags & (_PF_R | _PF_W) == _PF_R:
                yield ctypes.string_at(base + start - first, length)
