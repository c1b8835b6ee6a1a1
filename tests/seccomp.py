"""Run a program under a seccomp filter: the kernel kills it at the first call that isn't allowed.

    python -m tests.seccomp [--without CALL] PROGRAM [ARG ...]
    python -m tests.seccomp [--without CALL] --profile FILE COMMAND [ARG ...]

PROGRAM is `echo`, a file of `examples/` or a file of `tests/scenarios/`. The filter is installed
after the interpreter has started and imported everything, just before the program's own work. It
allows the calls of the package on the backend in use, of the running interpreter, and of the
program itself, all three listed below. seccomp(2), x86-64.

With `--profile` it allows what an OCI seccomp profile allows, such as the one that `python3 -m
danga_raw info --seccomp` prints, and applies to COMMAND from its exec on, that is, also to the
interpreter's start.
"""

from __future__ import annotations

import argparse
import ctypes
import encodings.idna
import json
import logging
import os
import re
import resource
import runpy
import sys
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from danga_raw import Loop, _kernel, _waker

IMPORTED_LATE = (logging, resource, _waker, encodings.idna)
"""Modules that are imported when first needed, which reads files: by the package for a warning, for
profiling, and to be woken; by Python for a host name."""

INTERPRETER = frozenset(
    "brk mmap munmap mremap madvise "  # memory
    "futex sched_yield "  # the interpreter's locks
    "rt_sigaction rt_sigprocmask rt_sigreturn "  # a signal's handler; the second is musl's
    "getpid "  # logging, for each warning
    "exit_group".split()
)
"""The calls that CPython itself makes in a running program."""

PROGRAMS = {
    "echo": "bind listen socketpair recvfrom",
    "httpd.py": "bind listen shutdown stat open lseek fstat getrlimit",
    "ddlockd.py": "bind listen",
    "scenarios": "bind listen shutdown socketpair",
}
"""The C functions that a program calls itself, without those above."""

KERNEL = {
    "fstat": {"fstat", "newfstatat"},
    "getrlimit": {"prlimit64"},
    "open": {"open", "openat"},
    "stat": {"stat", "newfstatat"},
}
"""C function -> the system calls that C libraries make for it."""

_AUDIT_ARCH_X86_64 = 0xC000003E
_NO_CALL = 0xFFFFFFFF
"""The number of a call that a tracer has skipped, as strace does when it injects an error."""

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_NO_NEW_PRIVS = 38
_RET_KILL_PROCESS, _RET_ALLOW = 0x80000000, 0x7FFF0000
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K and BPF_RET|BPF_K."""


class sock_filter(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class sock_fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(sock_filter))]


def header() -> Path | None:
    """The kernel's own list of its call numbers, if its headers are installed."""
    places = Path("/usr/include"), Path("/usr/include/x86_64-linux-gnu")
    found = (place / "asm/unistd_64.h" for place in places)
    return next((path for path in found if path.exists()), None)


def numbers() -> dict[str, int]:
    """Every system call of x86-64 in the installed kernel headers."""
    path = header()
    if path is None:
        raise OSError("the kernel's headers are missing: apt-get install linux-libc-dev")
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", path.read_text(), re.MULTILINE)
    return {name: int(number) for name, number in found}


def kernels_name(function: str) -> str:
    """The kernel's name, here, for a C function, of the package's surface or not."""
    if function in _kernel.SURFACE:
        return _kernel.asked(function, _kernel.HERE).name
    return function


def surface(backend: str) -> set[str]:
    """The package's calls on `backend`, by the kernel's names."""
    return {entry.call for entry in _kernel.surface(_kernel.HERE, {backend})}


def allowed(backend: str, program: str) -> set[str]:
    """The calls that a program may make: the package's, the interpreter's, and its own."""
    own = PROGRAMS.get(program, PROGRAMS["scenarios"]).split()
    return surface(backend).union(INTERPRETER, *(KERNEL.get(name, {name}) for name in own))


def profiled(profile: str) -> set[str]:
    """The calls that an OCI profile allows. Raises `ValueError` if it depends on arguments."""
    entries = json.loads(profile)["syscalls"]
    if any(entry["action"] != "SCMP_ACT_ALLOW" or entry.get("args") for entry in entries):
        raise ValueError("a profile that does more than allow calls by their names")
    return {name for entry in entries for name in entry["names"]}


def instructions(numbers: Collection[int]) -> list[tuple[int, int, int, int]]:
    """A filter that allows the calls with these numbers and kills at any other."""
    kill, allow = (_RETURN, 0, 0, _RET_KILL_PROCESS), (_RETURN, 0, 0, _RET_ALLOW)
    # struct seccomp_data: the number at 0, the architecture at 4. The calls of x32 have other
    # numbers, so they are not allowed.
    made = [(_LOAD, 0, 0, 4), (_JUMP_IF_EQUAL, 1, 0, _AUDIT_ARCH_X86_64), kill, (_LOAD, 0, 0, 0)]
    for number in sorted(numbers):
        made += [(_JUMP_IF_EQUAL, 0, 1, number), allow]
    return [*made, kill]


def install(names: Collection[str]) -> None:
    """Allow this process only the calls with these names from now on; it dies at any other.

    Ignores names that x86-64 doesn't have. Raises `OSError` if the kernel refuses.
    """
    known = numbers()
    made = instructions([known[name] for name in names if name in known] + [_NO_CALL])
    filters = (sock_filter * len(made))(*(sock_filter(*each) for each in made))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    word = ctypes.c_ulong
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, word(1), word(0), word(0), word(0)),
        (_PR_SET_SECCOMP, word(_SECCOMP_MODE_FILTER), ctypes.byref(sock_fprog(len(made), filters))),
    ):
        if prctl(*arguments) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl({arguments[0]}): {os.strerror(number)}")


def prepared(path: str) -> Callable[[], object]:
    """A program, as a function that runs it once everything is imported."""
    if path == "echo":
        from danga_raw.__main__ import echo

        return lambda: echo("127.0.0.1", 0)
    if Path(path).parent.name == "examples":
        work: Callable[[], object] = runpy.run_path(path)["main"]
        return work
    from tests.scenarios import story

    tales: list[Callable[[], None]] = []
    tell = story.story
    setattr(story, "story", tales.append)
    runpy.run_path(path)
    (tale,) = tales
    return lambda: tell(tale)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.seccomp", description=__doc__)
    parser.add_argument("--without", metavar="CALL", help="allow all but this one")
    parser.add_argument("--profile", metavar="FILE", type=Path, help="allow what that profile does")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    argv = [options.program, *options.arguments]
    work: Callable[[], object]
    if options.profile:
        names = profiled(options.profile.read_text())
        work = partial(os.execvp, options.program, argv)
    else:
        names = allowed(Loop().backend, Path(options.program).name)
        sys.argv = argv
        work = prepared(options.program)
    if options.without and options.without not in names:
        parser.error(f"{options.without} isn't allowed in the first place")
    install(names - {options.without})
    work()


if __name__ == "__main__":
    main()
