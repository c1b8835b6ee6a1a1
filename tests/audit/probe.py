"""The system calls that each C library makes: `python -m tests.audit.probe [MACHINE ...]`.

A C program that calls every function of the surface is compiled by zig for each machine, and run by
qemu on several versions of Debian's C libraries: glibc from 2.31 on, musl from 1.2.3 on. So the
table is also checked with libraries for which no Python is available. Prints where qemu's calls
differ from the table, and how many functions agreed. It needs the extra `abi` and qemu-user-static.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from danga_raw._clibrary import GLIBC, MUSL, Where
from danga_raw._kernel import ASKED_AGAIN, SURFACE, asked, in_c
from tests.abi import debian, foreign
from tests.audit.qemu import as_told, whole_lines

CALLS = {
    "epoll_create1": "ep = epoll_create1(EPOLL_CLOEXEC)",
    "epoll_ctl": "epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)",
    "epoll_wait": "epoll_wait(ep, &event, 1, 0)",
    "poll": "poll(&one, 1, 1500)",
    "fstat": "fstat(fd, &st)",
    "write": 'write(fd, "abc", 3)',
    "read": "read(pair[1], buffer, 9)",
    "setsockopt": "setsockopt(fd, IPPROTO_TCP, TCP_CORK, &number, sizeof number)",
    "fcntl": "fcntl(fd, F_SETFD, FD_CLOEXEC)",
    "getpeername": "getpeername(fd, (void *)&address, &length)",
    "getsockname": "getsockname(fd, (void *)&address, &length)",
    "pipe2": "pipe2(pair + 2, O_NONBLOCK | O_CLOEXEC)",
    "socket": "other = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)",
    "connect": "connect(other, (void *)&nobody, sizeof nobody)",
    "accept": "accept4(other, (void *)&address, &length, SOCK_CLOEXEC)",
    "getsockopt": "getsockopt(fd, SOL_SOCKET, SO_ERROR, &number, &length)",
    "setblocking": "ioctl(fd, FIONBIO, &number)",
    "signal": "sigaction(SIGUSR1, &action, 0)",
    "getpid": "getpid()",
    "getrusage": "getrusage(RUSAGE_SELF, &usage)",
    "clock_gettime": "clock_gettime(CLOCK_MONOTONIC, &now)",
    "close": "close(fd)",
}
"""A use of each function of the door that Linux has."""

DEAD = ("fstat", "fstat(fd, &st)")
"""The same on a closed descriptor, after all the others."""

MARK = 1000
"""A write to this descriptor or a higher one marks which function comes next."""

SOURCE = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
int main(void) {
  char buffer[9]; int number = 1, pair[4], fd, ep, other; struct stat st; struct rusage usage;
  struct sockaddr_in nobody = {AF_INET}; struct sigaction action = {SIG_IGN};
  struct timespec now; struct epoll_event event = {EPOLLIN}; struct sockaddr_storage address;
  socklen_t length = sizeof address;
  socketpair(AF_UNIX, SOCK_STREAM, 0, pair); fd = pair[0];
  struct pollfd one = {fd, POLLOUT};
%s
  write(%d, "", 0);
  return 0;
}
"""


class Machine(NamedTuple):
    """The names of a machine."""

    debian: str
    qemu: str
    zig: str
    """The first part of its zig targets."""
    abi: str = ""
    """The suffix of their last part."""


MACHINES = {
    "x86_64": Machine("amd64", "x86_64", "x86_64"),
    "i386": Machine("i386", "i386", "x86"),
    "aarch64": Machine("arm64", "aarch64", "aarch64"),
    "arm": Machine("armhf", "arm", "arm", "eabihf"),
    "s390x": Machine("s390x", "s390x", "s390x"),
    "ppc64le": Machine("ppc64el", "ppc64le", "powerpc64le"),
    "riscv64": Machine("riscv64", "riscv64", "riscv64"),
    "loongarch64": Machine("loong64", "loongarch64", "loongarch64"),
}

SUITES = ("bullseye", "bookworm", "trixie", "sid")
"""The Debian suites whose C libraries are tried, oldest first. Not every one has every machine."""

VERSIONS = {
    GLIBC: ("libc6", "libc.so.6", re.compile(rb"GNU C Library .* version (\d+\.\d+)")),
    MUSL: ("musl", "libc.so", re.compile(rb"(?<![\w.])(\d+\.\d+\.\d+)\0")),
}
"""For each library: its package, its file, and a pattern for its version in the file."""


class Build(NamedTuple):
    """What the program is compiled for."""

    libc: str
    since: str = ""
    """The oldest version that it runs on."""


BUILDS = (Build(GLIBC, "2.31"), Build(GLIBC, "2.36"), Build(MUSL))


def version_of(libc: str, root: Path) -> tuple[int, ...]:
    """The version of the library in `root`."""
    _, name, pattern = VERSIONS[libc]
    for path in root.rglob(name):
        if found := pattern.search(path.read_bytes()):
            return tuple(map(int, found[1].split(b".")))
    raise OSError(f"there is no {name} in {root}")


def source() -> str:
    calls = [*CALLS.values(), DEAD[1]]
    lines = [f'  write({MARK + n}, "", 0); {call};' for n, call in enumerate(calls)]
    return SOURCE % ("\n".join(lines), MARK + len(calls))


def compiled(machine: Machine, build: Build, folder: Path) -> Path:
    """The program for `machine`."""
    ending = {GLIBC: "gnu", MUSL: "musl"}[build.libc]
    version = f".{build.since}" if build.since else ""
    program = folder / f"{machine.zig}-{ending}{version}"
    (folder / "probe.c").write_text(source())
    zig = [sys.executable, "-m", "ziglang", "cc"]
    target = f"{machine.zig}-linux-{ending}{machine.abi}{version}"
    options = ["-target", target, "-dynamic", "-w", "-O1", "-o", str(program)]
    subprocess.run([*zig, *options, str(folder / "probe.c")], check=True)
    return program


def seen(machine: Machine, program: Path, root: Path) -> list[list[str]]:
    """The calls that qemu saw after each mark, with the libraries in `root`."""
    log = program.with_suffix(".log")
    known = foreign.MACHINES.get(machine.debian)
    qemu = foreign.emulator(known) if known else shutil.which(f"qemu-{machine.qemu}-static")
    if qemu is None:
        raise OSError(f"nothing here runs {machine.debian}: apt-get install qemu-user-static")
    subprocess.run([qemu, "-strace", "-D", log, "-L", root, program], check=True)
    stretches: list[list[str]] = []
    for line in whole_lines(log.read_text(errors="replace")):
        if re.match(rf"(?:\d+ )?write\({MARK + len(stretches)},", line):
            stretches.append([])
        elif stretches:
            stretches[-1].append(line)
    return stretches[:-1]


def differences(place: Where, stretches: list[list[str]]) -> list[str]:
    """Where the observed calls differ from the table."""
    wrong = []
    for function, lines in zip([*CALLS, DEAD[0]], stretches, strict=True):
        expected = [asked(function, place)]
        first = as_told(lines[0]) if lines else None
        error = 0 if first is None else first.error
        expected += [
            rule.asked for rule in ASKED_AGAIN if rule.holds(expected[0].name, error, place)
        ]
        calls = [call for call in map(as_told, lines) if call is not None]
        through = f"socketcall {in_c(function)}"
        names = [call.name.replace(through, "socketcall") for call in calls]
        if function == "clock_gettime" and not names:
            continue  # Done in the vDSO.
        if names != [call.name for call in expected]:
            wrong.append(f"{place} on {place.machine}: {function}: {names}, {expected}")
        for call, known in zip(calls, expected):
            constants = tuple(constant or 0 for constant in known.constants)
            if known.name in ("epoll_pwait", "ppoll", "newfstatat", "fcntl"):
                given = call.args[known.arguments - len(constants) : known.arguments]
            elif known.name == "statx":
                given = call.args[2:3]
            else:
                continue
            # A newer qemu omits the size of a mask.
            if given != constants[: len(given)]:
                wrong.append(f"{place} on {place.machine}: {function}: {lines}, {known}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit.probe", description=__doc__)
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help="; ".join(MACHINES))
    chosen = parser.parse_args().machines or [*MACHINES]
    elsewhere = {"kqueue", "kevent", "pipe"}
    assert set(CALLS) == set(SURFACE) - elsewhere, "a function is not in the probe, or only there"
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in chosen:
            machine = MACHINES[name]
            for build in BUILDS:
                if build.since == "2.31" and name == "loongarch64":
                    continue  # Its first glibc was 2.36.
                program = compiled(machine, build, Path(scratch))
                for suite in SUITES:
                    if suite == "bullseye" and build.since != "2.31":
                        continue
                    package, *_ = VERSIONS[build.libc]
                    where = debian.CACHE / f"{package}-{suite}-{machine.debian}"
                    try:
                        debian.unpack([package], where, suite=suite, architecture=machine.debian)
                    except OSError as error:
                        print(f"{package} of {suite} for {name}: {str(error)[-60:]}", flush=True)
                        continue
                    version = version_of(build.libc, where)
                    place = Where(build.libc, version, name, old_stat=build.since == "2.31")
                    stretches = seen(machine, program, where)
                    wrong = differences(place, stretches)
                    failed = failed or bool(wrong)
                    built = f", built on {build.since}" if build.since else ""
                    as_said = f"{len(stretches)} calls, {len(wrong)} otherwise than the table says"
                    print(f"{place} on {name}{built}: {as_said}", *wrong, sep="\n    ", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
