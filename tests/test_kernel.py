"""The table of the system calls that are made, and finding out which C library and machine this is.

`python -m tests.test_kernel` prints the correct table for docs/syscalls.md.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from danga_raw import _clibrary
from danga_raw._backends import backends
from danga_raw._clibrary import GLIBC, MUSL, Where, where
from danga_raw._kernel import (
    HERE,
    MACHINES,
    RULES,
    SURFACE,
    Asked,
    Rule,
    asked,
    every_call,
    in_c,
    known,
    surface,
)
from danga_raw._strace import CALLS, Call, asked_again, calls
from tests.audit.lines import in_its_words
from tests.surface import stub

ROOT = Path(__file__).parents[1]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )


# --- the table ------------------------------------------------------------------------------------


def test_table_has_the_functions_of_the_stub_and_their_arguments() -> None:
    assert set(SURFACE) == set(stub())
    for name, function in stub().items():
        documented = ast.get_docstring(function) or ""
        prototype = re.search(rf"\b{in_c(name)}\(([^`]*?)\)`", documented, re.DOTALL)
        assert prototype, name
        inside = prototype[1]
        count = 0 if inside == "void" else inside.count(",") + 1
        assert SURFACE[name].arguments == count, name


def test_every_traced_function_is_named_as_in_the_table() -> None:
    for name, (printed, _) in CALLS.items():
        assert printed in (asked(name, HERE).name, in_c(name))


X86 = "x86_64"
FACTS = [
    ("epoll_wait", Where(GLIBC, (2, 36), X86), ("epoll_wait", 4)),
    ("epoll_wait", Where(GLIBC, (2, 36), "i386"), ("epoll_wait", 4)),
    ("epoll_wait", Where(GLIBC, (2, 36), "aarch64"), ("epoll_pwait", 6)),
    ("epoll_wait", Where(GLIBC, (2, 41), "riscv64"), ("epoll_pwait", 6)),
    ("epoll_wait", Where(MUSL, (1, 2, 3), X86), ("epoll_pwait", 6)),
    ("poll", Where(MUSL, (1, 2, 3), X86), ("poll", 3)),
    ("poll", Where(GLIBC, (2, 36), "arm"), ("poll", 3)),
    ("poll", Where(GLIBC, (2, 36), "aarch64"), ("ppoll", 5)),
    ("fstat", Where(GLIBC, (2, 32), X86), ("fstat", 2)),
    ("fstat", Where(GLIBC, (2, 33), X86), ("newfstatat", 4)),
    ("fstat", Where(GLIBC, (2, 38), "s390x"), ("newfstatat", 4)),
    ("fstat", Where(GLIBC, (2, 39), X86), ("fstat", 2)),
    ("fstat", Where(GLIBC, (2, 31), "i386"), ("fstat64", 2)),
    ("fstat", Where(GLIBC, (2, 41), "arm"), ("statx", 5)),
    ("fstat", Where(MUSL, (1, 2, 5), "i386"), ("statx", 5)),
    ("fstat", Where(MUSL, (1, 2, 5), X86), ("fstat", 2)),
    ("fstat", Where(GLIBC, (2, 36), X86, old_stat=True), ("fstat", 2)),
    ("fstat", Where(GLIBC, (2, 41), "i386", old_stat=True), ("fstat64", 2)),
    ("setsockopt", Where(GLIBC, (2, 36), "s390x"), ("socketcall", 2)),
    ("setsockopt", Where(MUSL, (1, 2, 3), "s390x"), ("setsockopt", 5)),
    ("clock_gettime", Where(GLIBC, (2, 30), "arm"), ("clock_gettime", 2)),
    ("clock_gettime", Where(GLIBC, (2, 31), "arm"), ("clock_gettime64", 2)),
]
"""As strace and qemu show; `python -m tests.audit` and `tests.audit.probe` check again."""


@pytest.mark.parametrize(("function", "place", "call"), FACTS)
def test_function_makes_the_call_that_was_observed(
    function: str, place: Where, call: tuple[str, int]
) -> None:
    assert asked(function, place)[:2] == call
    assert known(place)


@pytest.mark.parametrize("place", [Where("", (), X86), Where(GLIBC, (2, 36), "alpha")])
def test_unknown_platform_uses_the_names_of_c(place: Where) -> None:
    assert not known(place)
    for name, function in SURFACE.items():
        assert asked(name, place) == (in_c(name), function.arguments, ())
    assert all(printed == in_c(name) for name, (printed, _) in calls(place).items())


def test_every_rule_refers_to_functions_and_machines_in_the_table() -> None:
    for rule in RULES:
        assert rule.function in SURFACE and rule.machines <= MACHINES
        assert rule.since < rule.before
        # No rule follows one that applies wherever it does.
        places = [
            Where(library, (*rule.since, 0), machine)
            for library in rule.libraries
            for machine in sorted(rule.machines)
        ]
        assert [asked(rule.function, place) for place in places] == [rule.asked] * len(places)


def test_musl_makes_another_call_after_a_failed_fstat() -> None:
    failed = Call("fstat", (9, ""), -1, 9, 1.5)
    again = asked_again("fstat", failed, Where(MUSL, (1, 2, 3), X86))
    assert str(again) == "fcntl(9, F_GETFD)".ljust(40) + f"= -1 EBADF ({os.strerror(9)})"
    refused = Call("accept4", (9, "", 5, 0), -1, 22, 1.5)
    again = asked_again("accept", refused, Where(MUSL, (1, 2, 3), X86))
    assert again is not None and again[:4] == ("accept", (9, "", 5), -1, 22)
    assert asked_again("fstat", failed, Where(GLIBC, (2, 40), X86)) is None
    other = failed._replace(errno=5)
    assert asked_again("fstat", other, Where(MUSL, (1, 2, 3), X86)) is None


# --- the page -------------------------------------------------------------------------------------


def page_rows() -> list[str]:
    """The rows of the page's table, from the rules."""
    return [
        f"| `{in_c(rule.function)}` | {_versions(rule)}, {_machines(rule)} | {_written(rule.asked)} |"
        for rule in RULES
    ]


def _versions(rule: Rule) -> str:
    since = ".".join(map(str, rule.since))
    last = ".".join(map(str, (*rule.before[:-1], rule.before[-1] - 1)))
    library = " and ".join(rule.libraries)
    if rule.before < (9999,):
        return f"{library} {since} to {last}" if since else f"{library} up to {last}"
    return f"{library} from {since} on" if since else library


def _machines(rule: Rule) -> str:
    return "all" if rule.machines == MACHINES else ", ".join(sorted(rule.machines))


def _written(call: Asked) -> str:
    match call:
        case Asked("epoll_pwait" | "ppoll", _, (_, size)):
            limit = "timespec, " if call.name == "ppoll" else ""
            return f"`{call.name}(…, {limit}NULL, {size})`"
        case Asked("rt_sigaction", _, (size,)):
            return f"`rt_sigaction(…, {size})`"
        case Asked("newfstatat"):
            return '`newfstatat(fd, "", …, AT_EMPTY_PATH)`'
        case Asked("statx", _, (flags,)):
            more = "AT_NO_AUTOMOUNT\\|" if flags == 0x1800 else ""
            return f'`statx(fd, "", {more}AT_EMPTY_PATH, STATX_BASIC_STATS, …)`'
        case _:
            return f"`{call.name}`"


def test_page_has_the_rules_of_the_table() -> None:
    page = (ROOT / "docs" / "syscalls.md").read_text()
    _, _, behind = page.partition("| C function | where | system call |\n|---|---|---|\n")
    table, _, _ = behind.partition("\n\n")
    assert table.splitlines() == page_rows()


# --- the text, where another machine's calls are made here -------------------------------------

FOREIGN = """
import ctypes, os, socket, sys
from danga_raw._clibrary import Where
from danga_raw._epoll import EVENT, epoll_event
from danga_raw._poll import pollfd
from danga_raw._strace import Call, calls

libc = ctypes.CDLL(None, use_errno=True)
output = open(sys.argv[1], "w")
NUMBERS = {"epoll_pwait": 281, "ppoll": 271, "newfstatat": 262, "statx": 332, "fstat": 5}

def tell(function, place, given, kernels_arguments, python=None):
    # The machine's call is made by its number on this one, and its line made as there.
    name, take = calls(place)[function]
    result = libc.syscall(NUMBERS[name], *kernels_arguments)
    error = ctypes.get_errno() if result < 0 else 0
    answer = python if function == "fstat" else result
    output.write(Call(name, take(given, answer), result, error, 0.0).line() + "\\n")

arm, musl = Where("glibc", (2, 36), "aarch64"), Where("musl", (1, 2, 5), "aarch64")
near, far = socket.socketpair()
fd = near.fileno()
epfd = libc.epoll_create1(0)
libc.epoll_ctl(epfd, 1, fd, EVENT.pack(5, fd))
events = (epoll_event * 3)()
null = ctypes.c_void_p()
for ep in (epfd, -1):
    for place in (arm, musl):
        given = (ep, ctypes.byref(events), 3, 0)
        tell("epoll_wait", place, given, (ep, events, 3, 0, null, ctypes.c_size_t(8)))
for count in (0, 1, 31, 32, 33, 40):
    table = (pollfd * count)(*(pollfd(fd, 5, 0) for _ in range(count)))
    for timeout in (-1, 0, 1500) if count else (0, 1):
        for place, size in ((arm, 0), (musl, 8)):
            limit = (ctypes.c_long * 2)(timeout // 1000, timeout % 1000 * 1000000)
            given = (ctypes.byref(table), ctypes.c_ulong(count), timeout)
            pointer = null if timeout < 0 else limit
            asked = (table, ctypes.c_ulong(count), pointer, null, ctypes.c_size_t(size))
            tell("poll", place, given, asked)
buffer = ctypes.create_string_buffer(256)
for other in (fd, 9999):
    python = os.fstat(other) if other == fd else None
    for libc_name, version, machine in (
        ("glibc", (2, 36), "s390x"), ("glibc", (2, 39), "x86_64"),
        ("glibc", (2, 36), "i386"), ("musl", (1, 2, 3), "arm"), ("musl", (1, 2, 5), "arm"),
    ):
        place = Where(libc_name, version, machine)
        name = calls(place)["fstat"][0]
        flags = 0x1000 if version == (1, 2, 3) else 0x1800
        kernels = {"fstat": (other, buffer), "newfstatat": (other, b"", buffer, 0x1000),
                   "statx": (other, b"", flags, 0x7FF, buffer)}[name]
        tell("fstat", place, (other,), kernels, python)
"""
"""Makes the calls of other machines and other C libraries by syscall(2), on x86-64."""


@pytest.mark.needs("strace")
@pytest.mark.skipif(platform.machine() != X86, reason="the numbers are those of x86-64")
def test_calls_of_other_machines_are_printed_as_by_strace(tmp_path: Path) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    command = ["strace", "-qq", "-o", str(theirs), "-e", "trace=epoll_pwait,ppoll,%fstat,statx"]
    program = [sys.executable, "-c", FOREIGN, str(own)]
    subprocess.run([*command, *program], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    expected = [in_its_words(line) for line in theirs.read_text().splitlines()]
    lines = own.read_text().splitlines()
    # The other list doesn't have the interpreter's calls for its own files.
    unknown = re.compile(r"0x[0-9a-f.]{6,}|0x\.\.\.")
    kept = [re.sub(r" +=", " =", unknown.sub("ADDRESS", line)) for line in expected]
    for line in lines:
        line = re.sub(r" +=", " =", unknown.sub("ADDRESS", line))
        assert line in kept
        del kept[: kept.index(line) + 1]
    assert len(lines) > 40


# --- where this is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernels", "pointer", "machine"),
    [
        ("x86_64", 8, "x86_64"),
        ("i686", 8, "x86_64"),
        ("aarch64", 8, "aarch64"),
        ("armv8l", 8, "aarch64"),
        ("aarch64", 4, "arm"),
        ("armv7l", 4, "arm"),
        ("s390x", 8, "s390x"),
        ("ppc64le", 8, "ppc64le"),
        ("riscv64", 8, "riscv64"),
        ("loongarch64", 8, "loongarch64"),
    ],
)
def test_program_may_be_built_for_another_machine_than_its_kernel(
    kernels: str, pointer: int, machine: str
) -> None:
    if sys.byteorder == "little" or machine == "s390x":
        assert _clibrary._machine(kernels, pointer) == machine


@pytest.mark.parametrize("kernels", ["s390x", "ppc64le", "riscv64", "mips64"])
def test_32_bit_programs_of_other_machines_are_not_mistaken_for_known_ones(kernels: str) -> None:
    assert _clibrary._machine(kernels, 4) not in MACHINES


def test_version_of_the_c_library_is_a_tuple_of_numbers() -> None:
    assert _clibrary._numbers("2.36") == (2, 36)
    assert _clibrary._numbers("1.2.5-git-20-g0a1b2c3") == (1, 2, 5)
    assert _clibrary._numbers("") == ()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known")
def test_c_library_in_use_is_identified_and_its_image_is_found() -> None:
    assert where() == HERE and HERE.libc in (GLIBC, MUSL)
    image = b"".join(_clibrary._read_only_data(_clibrary._OF_LIBC))
    sign = {GLIBC: b"GNU C Library", MUSL: b"musl libc ("}[HERE.libc]
    assert sign in image and ".".join(map(str, HERE.version)).encode() in image


@pytest.mark.skipif(HERE.libc != GLIBC, reason="a matter of glibc's")
def test_python_built_on_an_old_glibc_is_identified_by_the_function_it_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = b"".join(_clibrary._read_only_data(_clibrary._OF_PYTHON))
    if sys.implementation.name == "cpython":
        assert (b"\0__fxstat" in image) is not (b"\0fstat64\0" in image or b"\0fstat\0" in image)
    for symbol, old in ((b"\0__fxstat64\0", True), (b"\0fstat64\0", False)):
        monkeypatch.setattr(_clibrary, "_read_only_data", lambda name, s=symbol: iter([s]))
        assert where().old_stat is old


NO_ANSWER = """
import errno, os, sys

def confstr(name):
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # As musl answers.

{how}
from danga_raw.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["os.confstr = confstr", "del os.confstr"])
@pytest.mark.skipif(HERE.libc != GLIBC, reason="where it is glibc without its answer")
def test_unidentified_c_library_breaks_no_command(how: str, tmp_path: Path) -> None:
    code = NO_ANSWER.format(how=how)
    done = run("-c", code, "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nlibc: unknown\n" in done.stdout
    done = run("-c", code, "info", "--syscalls")
    assert "its system calls are unknown" in done.stdout.splitlines()[0]
    program = tmp_path / "program.py"
    program.write_text(
        "import danga_raw, socket\n"
        "a, b = socket.socketpair()\n"
        "with danga_raw.Loop('epoll') as loop: danga_raw.Socket(a, loop)\n"
    )
    done = run("-c", code, "trace", str(program))
    assert done.returncode == 0 and "\nepoll_create1(EPOLL_CLOEXEC)" in f"\n{done.stderr}"


# --- info --syscalls --------------------------------------------------------------------------------


def test_info_prints_the_complete_list_for_this_system() -> None:
    done = run("-m", "danga_raw", "info", "--syscalls")
    assert (done.returncode, done.stderr) == (0, "")
    head, title, *rows = done.stdout.splitlines()
    assert head == f"# the system calls of {HERE} on {HERE.machine}"
    assert title.split() == ["C", "function", "system", "call", "arguments", "when"]
    expected = list(surface(HERE, backends()))
    assert len(rows) == len(expected)
    for row, entry in zip(rows, expected):
        assert row.split(maxsplit=3) == [
            entry.function,
            entry.call,
            str(entry.arguments),
            entry.when,
        ]


def test_info_prints_the_same_list_as_json() -> None:
    facts = json.loads(run("-m", "danga_raw", "info", "--syscalls", "--json").stdout)
    assert (facts["libc"], facts["machine"]) == (str(HERE), HERE.machine)
    assert facts["known"] is known(HERE)
    rows = facts["syscalls"]
    assert [tuple(row.values()) for row in rows] == [tuple(e) for e in surface(HERE, backends())]
    assert list(rows[0]) == ["function", "call", "arguments", "when"]


def test_calls_that_only_kqueue_needs_are_not_listed_without_it() -> None:
    def names(*kinds: str) -> set[str]:
        return {entry.function for entry in surface(HERE, kinds)}

    assert "kevent" not in names("epoll", "poll") and "epoll_ctl" in names("epoll", "poll")
    assert names("kqueue", "poll") >= {"kqueue", "kevent", "fcntl", "getpid", "poll", "read"}
    assert names("epoll", "kqueue", "poll") == set(map(in_c, SURFACE))


def test_additional_calls_made_by_python_are_listed() -> None:
    for place, call in (
        (HERE, asked("fstat", HERE).name),
        (Where(MUSL, (1, 2, 5), "arm"), "statx"),
    ):
        found = [(entry.function, entry.call) for entry in surface(place, {"epoll"})]
        assert ("fstat", call) in found
        assert ("fcntl", asked("fcntl", place).name) in found
        assert ("getsockname", asked("getsockname", place).name) in found


def test_info_names_the_c_library_and_its_version() -> None:
    facts = json.loads(run("-m", "danga_raw", "info", "--json").stdout)
    assert facts["libc"] == str(where())


def test_every_call_returns_all_names_of_the_table() -> None:
    names = set(every_call())
    assert names > set(map(in_c, SURFACE))
    assert {"epoll_pwait", "ppoll", "statx", "newfstatat", "fcntl64", "socketcall"} <= names


if __name__ == "__main__":
    print("\n".join(page_rows()))
