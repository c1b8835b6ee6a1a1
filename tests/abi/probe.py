"""Gets numbers from a C compiler without running what it compiles.

The probe is one constant array. Each answer in it is nine bytes: whether there is an answer, and
its value as eight bytes, the highest first. So it can be read from an object file of any format and
byte order.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.abi.targets import Target

Facts = Mapping[str, int]
"""C expression -> its value. Expressions that the headers don't define are absent."""

START, END = b"<danga_raw abi", b"danga_raw abi>"

HEADERS = """\
#include <stddef.h>
#include <stdint.h>
#include <sys/param.h>
#include <sys/types.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <fcntl.h>
#include <poll.h>
#include <time.h>
#ifdef __linux__
#include <linux/version.h>
#include <sys/epoll.h>
#else
#include <sys/event.h>
#endif
#ifdef __APPLE__
#include <Availability.h>
#endif
#define B(v, n) (unsigned char)((unsigned long long)(long long)(v) >> n)
#define ANSWER(v) 1, B(v, 56), B(v, 48), B(v, 40), B(v, 32), B(v, 24), B(v, 16), B(v, 8), B(v, 0),
#define NO_ANSWER 0, 0, 0, 0, 0, 0, 0, 0, 0,
"""

MACROS = """
EPOLL_CLOEXEC EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD EPOLLIN EPOLLOUT EPOLLERR EPOLLHUP
POLLIN POLLOUT POLLERR POLLHUP POLLNVAL
EVFILT_READ EVFILT_WRITE EV_ADD EV_DELETE EV_ENABLE EV_DISABLE EV_ONESHOT EV_EOF EV_ERROR
IPPROTO_TCP TCP_CORK TCP_NOPUSH SOL_SOCKET F_SETFD FD_CLOEXEC O_CLOEXEC CLOCK_MONOTONIC
__GLIBC__ __GLIBC_MINOR__ LINUX_VERSION_CODE __FreeBSD_version __NetBSD_Version__ OpenBSD
__MAC_OS_X_VERSION_MAX_ALLOWED
""".split()

STRUCTS: Mapping[str, tuple[str, ...]] = {
    "epoll_event": ("events", "data"),
    "pollfd": ("fd", "events", "revents"),
    "kevent": ("ident", "filter", "flags", "fflags", "data", "udata", "ext"),
    "timespec": ("tv_sec", "tv_nsec"),
}

WHERE = {"epoll_event": "defined(__linux__)", "kevent": "!defined(__linux__)"}
"""For structs that only some platforms have: a preprocessor condition for these platforms."""

ABSENT_FIELDS: Mapping[str, str] = {
    "ext": "defined(__FreeBSD__) || defined(__NetBSD__)",
}
"""The same for fields that only some platforms have, since the preprocessor can't test for one."""

POINTERS = ("udata",)
AGGREGATES = ("epoll_event.data", "kevent.ext")

COUNTS = {
    f"kevent counts are {c}": (
        "__builtin_types_compatible_p(__typeof__(kevent), int(int, const struct kevent *, "
        f"{c}, struct kevent *, {c}, const struct timespec *))"
    )
    for c in ("int", "size_t")
}
NFDS = {
    f"nfds_t is {c}": f"__builtin_types_compatible_p(nfds_t, {c})"
    for c in ("unsigned int", "unsigned long")
}


class Answer(NamedTuple):
    """The answers of one target's headers."""

    facts: Facts
    symbol: str = ""
    """The linker's name of `kevent`."""
    missing: str = ""
    """zig's first error message, if there is no answer."""


def questions(types: Iterable[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """Declarations, and for each question the condition, the name and the C expression."""
    declarations = []
    asked: list[tuple[str, str, str]] = [(f"defined({m})", m, m) for m in MACROS]
    for number, c_type in enumerate(types):
        declarations.append(f"struct of_{number} {{ char c; {c_type} v; }};")
        asked.append(("1", f"sizeof({c_type})", f"sizeof({c_type})"))
        asked.append(("1", f"alignof({c_type})", f"offsetof(struct of_{number}, v)"))
        if not c_type.endswith("*"):
            asked.append(("1", f"signed({c_type})", f"({c_type})-1 < ({c_type})1"))
    for name, fields in STRUCTS.items():
        where = WHERE.get(name, "1")
        asked.append((where, f"sizeof({name})", f"sizeof(struct {name})"))
        for field in fields:
            present = f"({where}) && ({ABSENT_FIELDS.get(field, '1')})"
            value = f"((struct {name} *)0)->{field}"
            full = f"{name}.{field}"
            asked.append((present, f"offsetof({full})", f"offsetof(struct {name}, {field})"))
            asked.append((present, f"sizeof({full})", f"sizeof({value})"))
            if field not in POINTERS and full not in AGGREGATES:
                cast = f"(__typeof__({value}))"
                asked.append((present, f"signed({full})", f"{cast}-1 < {cast}1"))
    for name, expression in COUNTS.items():
        asked.append(("!defined(__linux__)", name, expression))
    for name, expression in NFDS.items():
        asked.append(("1", name, expression))
    asked.append(("1", "big-endian", "__BYTE_ORDER__ == __ORDER_BIG_ENDIAN__"))
    return "\n".join(declarations), asked


def source(types: Iterable[str]) -> str:
    """The probe in C, which asks for the size and alignment of `types`."""
    declarations, asked = questions(types)
    lines = [HEADERS, declarations]
    lines.append("extern const unsigned char danga_raw_abi[];")
    lines.append("const unsigned char danga_raw_abi[] = {")
    lines.append(", ".join(str(byte) for byte in START) + ",")
    for condition, _, expression in asked:
        lines += [f"#if {condition}", f"ANSWER({expression})", "#else", "NO_ANSWER", "#endif"]
    lines.append(", ".join(str(byte) for byte in END) + "};")
    # Taking the function's address puts the name that the header gives it into the symbol table.
    lines += [
        "#ifndef __linux__",
        "extern const void *const danga_raw_pointer;",
        "const void *const danga_raw_pointer = (const void *)kevent;",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def read(image: bytes, types: Iterable[str]) -> Answer:
    """The answers in a compiled probe, which asked for the same `types`."""
    _, asked = questions(types)
    begin, end = image.find(START), image.find(END)
    body = image[begin + len(START) : end]
    if begin < 0 or image.count(START) != 1 or len(body) != 9 * len(asked):
        raise ValueError("the compiled probe is not in the object file as it was written")
    facts = {}
    for number, (_, name, _) in enumerate(asked):
        answer = body[9 * number : 9 * number + 9]
        if answer[0]:
            facts[name] = int.from_bytes(answer[1:], "big", signed=True)
    symbols = set(re.findall(rb"(?<=\0)_{0,3}kevent\d*(?=\0)", image))
    if len(symbols) > 1:
        raise ValueError(f"which of {sorted(symbols)} is kevent's name?")
    return Answer(facts, symbols.pop().decode() if symbols else "")


def zig_version() -> str:
    """The version of the zig that `run` uses. Raises `OSError` if there is none."""
    command = [sys.executable, "-m", "ziglang", "version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError("no ziglang here: pip install 'danga_raw[abi]'")
    return done.stdout.strip()


def run(target: Target, types: Iterable[str], scratch: Path) -> Answer:
    """Compile the probe for `target` in the folder `scratch` and read its answers."""
    types = tuple(types)
    code, image = scratch / f"{target.triple}.c", scratch / f"{target.triple}.o"
    code.write_text(source(types))
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target.triple]
    # -w, because the probe compares an unsigned -1 with 1 on purpose.
    flags = ["-g0", "-w", "-std=gnu11", "-c", str(code), "-o", str(image)]
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(scratch / "cache")}
    done = subprocess.run(
        zig + flags, env={**os.environ, **cache}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        complaint = re.search(r"error: (.*)", done.stderr)
        return Answer({}, missing=complaint[1] if complaint else done.stderr[:80])
    answer = read(image.read_bytes(), types)
    if target.platform == "darwin":
        # There the linker's name of every C function begins with an underscore.
        return answer._replace(symbol=answer.symbol.removeprefix("_"))
    return answer
