"""Compare the package with the Perl original: the same stories must make the same system calls.

Each pair in `scenarios/` tells one story, in Perl on Danga::Socket and in Python on this package.
Both run under strace, and their calls on the story's descriptors are compared call for call, with
arguments and results, as are the notes that the stories make. `DIFFERENCES` lists what may differ,
line by line, and it must differ in exactly that way.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.needs import REQUIRED
from tests.strace import Call, StraceError, own_calls, parse, run_under_strace

ROOT = Path(__file__).parent.parent
SCENARIOS = Path(__file__).parent / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.pl"))

WHOLE = 1 << 16
"""Longer than any string in a story, so that data are compared to the last byte."""


@dataclass(frozen=True)
class Difference:
    """A run of lines that differs on purpose."""

    why: str
    original: tuple[str, ...] = ()
    here: tuple[str, ...] = ()


def _add(fd: str) -> str:
    event = f"{{events=EPOLLIN, data={fd}}}"
    return f"epoll_ctl(epoll, EPOLL_CTL_ADD, {fd}, {event}) = 0"


def _ready(fd: str) -> str:
    return f"epoll_wait(epoll, [{{events=EPOLLIN, data={fd}}}], 1000, 0) = 1"


def _again(fd: str) -> str:
    return _add(fd).replace("= 0", "= -1 EEXIST")


def _mod(events: str) -> str:
    event = f"{{events={events}EPOLLERR|EPOLLHUP|EPOLLNVAL, data=fd1}}"
    return f"epoll_ctl(epoll, EPOLL_CTL_MOD, fd1, {event}) = 0"


_NOTHING = "epoll_wait(epoll, [], 1000, 0) = 0"
_AT_ONCE = "other fds are registered when they are added, not when the loop starts"

DIFFERENCES: dict[str, list[Difference]] = {
    "other_fds_early": [
        Difference(_AT_ONCE, here=(_add("fd1"),)),
        Difference(_AT_ONCE, original=(_add("fd1"),)),
    ],
    "other_fds_late": [
        Difference(
            _AT_ONCE + ", so one that is added while it runs is heard in this run",
            original=(_NOTHING, "# batch 2", "# again"),
        ),
        Difference(
            _AT_ONCE + ", so one that is added while it runs is heard in this run",
            here=("# batch 2", "# again", _NOTHING),
        ),
    ],
    "other_fds_run_again": [
        Difference(_AT_ONCE, here=(_add("fd1"),)),
        Difference(_AT_ONCE, original=(_add("fd1"),)),
        Difference("a second run does not register other fds again", original=(_again("fd1"),)),
    ],
    "other_fds_replaced": [
        Difference(
            "an other fd that is replaced is unregistered at once",
            here=("epoll_ctl(epoll, EPOLL_CTL_DEL, fd1, ADDRESS) = 0",),
        ),
        Difference(
            "an other fd that is replaced is not closed: it is not the loop's own",
            original=(
                _ready("fd1"),
                "epoll_ctl(epoll, EPOLL_CTL_DEL, fd1, ADDRESS) = 0",
                "close(fd1) = 0",
            ),
            here=(_NOTHING,),
        ),
    ],
    "handler_dies": [
        Difference("an exception does not keep the closes waiting", here=("close(fd1) = 0",)),
        Difference("an exception does not keep the closes waiting", original=("close(fd1) = 0",)),
    ],
    "failing_wait": [
        Difference(
            "a wait that fails raises instead of being tried for ever",
            original=(
                "# batch 2",
                "# went on",
                _ready("fd1").replace("1000, 0", "1000, -1"),
                "# s event_read",
                'read(fd1, "y", 10) = 1',
                "# s read 1 [y]",
                "# batch 3",
            ),
            here=("# raised",),
        )
    ],
    "dead_descriptor_watched": [
        Difference(
            "a watch that fails raises, and is tried again when asked for again",
            here=(
                "# raised",
                "epoll_ctl(epoll, EPOLL_CTL_MOD, fd1, {events=EPOLLIN|EPOLLERR|EPOLLHUP|EPOLLNVAL, "
                "data=fd1}) = -1 EBADF",
                "# raised",
            ),
        )
    ],
    "reset": [Difference("a reset closes what still waits for it", here=("close(fd3) = 0",))],
    "timer_cancelled_alone": [
        Difference(
            "a timer that is cancelled is not waited for",
            original=("epoll_wait(epoll, [], 1000, 5) = 0",),
            here=("epoll_wait(epoll, [], 1000, 20) = 0",),
        )
    ],
    "timer_slow": [
        Difference(
            "the clock is read again after timers ran, so that the wait ends at the deadline",
            original=("epoll_wait(epoll, [], 1000, 11) = 0",),
            here=("epoll_wait(epoll, [], 1000, 7) = 0",),
        )
    ],
    "have_epoll": [
        Difference(
            "the poller is made when there is something to watch, not by asking which it would be",
            original=("epoll_create close-on-exec = epoll",),
        ),
        Difference(
            "the poller is made when there is something to watch, not by asking which it would be",
            here=("epoll_create close-on-exec = epoll",),
        ),
    ],
    "empty_behind_callable": [
        Difference(
            "with nothing but empty strings queued the original writes past them, and dies of a "
            "negative length if that is partial; here they keep their place",
            here=(
                "# s write 0",
                "# s state queued=2 watch=56 closed=0 corked=0",
                "# s state offset=0 size=7 set_watch=0",
                'write(fd1, "", 0) = 0',
            ),
        ),
        Difference(
            "the same empty string",
            original=(
                "# s write 1",
                "# s state queued=1 watch=56 closed=0 corked=0",
                "# s state offset=0 size=0 set_watch=0",
                'write(fd1, "", 0) = 0',
            ),
        ),
    ],
    "watch_write_overridden": [
        Difference(
            "the original takes a watch that write() began for the class's own where the class "
            "overrides watch_write, and never drops it; here it is dropped",
            here=(
                "# s watch_write 0",
                _mod(""),
            ),
        ),
        Difference(
            "the same watch",
            original=(_ready("fd1").replace("EPOLLIN", "EPOLLOUT"), "# s event_write"),
            here=(_NOTHING,),
        ),
    ],
    "timer_overdue": [
        Difference(
            "what a timer adds waits for the next turn even if it is due, so that a timer which "
            "always adds itself can't keep the loop from its events or from other timers",
            original=("# timer overdue",),
        ),
        Difference("the next turn", here=("# timer overdue",)),
    ],
    "callable_dies": [
        Difference(
            "what is queued behind a callable that died is watched for; the original leaves it "
            "until something else kicks the queue",
            here=(_mod("EPOLLOUT|"),),
        ),
        Difference(
            "the same watch",
            original=(
                "# s state queued=1 watch=56 closed=0 corked=0",
                "# s state offset=0 size=8 set_watch=0",
            ),
            here=(
                "# s state queued=1 watch=60 closed=0 corked=0",
                "# s state offset=0 size=8 set_watch=1",
            ),
        ),
        Difference("the same watch dropped", here=(_mod(""),)),
    ],
}
"""Scenario -> its intended differences, in order."""

REAL_CLOCK = {"timer_real_clock": (3_500_000, 3_600_001)}
"""Scenario -> a range of waits, in milliseconds, that count as equal: they depend on the machine's
speed."""


def differences(original: Sequence[str], here: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """The runs of lines in which two traces differ."""
    matcher = difflib.SequenceMatcher(None, original, here, autojunk=False)
    return [
        (list(original[a:b]), list(here[c:d]))
        for kind, a, b, c, d in matcher.get_opcodes()
        if kind != "equal"
    ]


def pairs(declared: Sequence[Difference]) -> list[tuple[list[str], list[str]]]:
    """The same for declared differences."""
    return [(list(one.original), list(one.here)) for one in declared]


def alike(lines: Sequence[str], name: str) -> list[str]:
    """The lines, with all waits that depend on the machine's clock made equal."""
    if name not in REAL_CLOCK:
        return list(lines)
    low, high = REAL_CLOCK[name]

    def wait(match: re.Match[str]) -> str:
        return f"1000, PENDING) = {match[2]}" if low <= int(match[1]) <= high else match[0]

    return [
        re.sub(r"1000, (\d+)\) = (.*)$", wait, line) if line.startswith("epoll_wait(") else line
        for line in lines
    ]


def told(name: str, side: str) -> list[str]:
    """The calls of one side of a scenario."""
    script = SCENARIOS / f"{name}.pl"
    inject = re.findall(r"^# inject (\S+)$", script.read_text(), re.MULTILINE)
    # The C library may use epoll_pwait(2): musl does, and glibc on machines that have only that.
    inject = [
        expression.replace("epoll_wait:", "?epoll_wait,epoll_pwait:") for expression in inject
    ]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("DANGA_RAW_")
    }
    if side == "perl":
        argv = ["perl", str(script)]
        environment["STORIES"] = str(SCENARIOS)
    else:
        argv = [sys.executable, str(SCENARIOS / f"{name}.py")]
        environment["PYTHONPATH"] = str(ROOT)
    return own_calls(run_under_strace(argv, inject=inject, env=environment, strings=WHOLE))


@pytest.mark.needs("perl", "danga", "strace")
@pytest.mark.parametrize("name", NAMES if REQUIRED else NAMES[::4])
def test_same_calls_as_the_original(name: str) -> None:
    original = alike(told(name, "perl"), name)
    here = alike(told(name, "python"), name)
    assert "epoll_create close-on-exec = epoll" in original
    found = differences(original, here)
    if found != pairs(DIFFERENCES.get(name, [])):
        shown = difflib.unified_diff(original, here, "the original", "here", lineterm="")
        pytest.fail("\n".join(line[:160] for line in shown) or "a declared difference is gone")


def test_each_scenario_has_both_sides() -> None:
    python = {path.stem for path in SCENARIOS.glob("*.py")} - {"story"}
    assert python == set(NAMES)
    assert len(NAMES) >= 18
    assert set(DIFFERENCES) | set(REAL_CLOCK) <= set(NAMES)


def test_difference_is_found_wherever_it_is() -> None:
    lines = ["write(fd1) = 1", "close(fd1) = 0", "close(fd2) = 0"]
    assert differences(lines, lines) == []
    assert differences(lines, lines[:2]) == [(["close(fd2) = 0"], [])]
    assert differences(lines, [lines[1], lines[0], lines[2]]) == [
        ([], ["close(fd1) = 0"]),
        (["close(fd1) = 0"], []),
    ]
    assert differences(lines, [*lines[:2], "close(fd2) = -1 EBADF"]) == [
        (["close(fd2) = 0"], ["close(fd2) = -1 EBADF"])
    ]


def test_only_waits_of_the_real_clock_count_as_equal() -> None:
    waits = [f"epoll_wait(epoll, [], 1000, {ms}) = 0" for ms in (7, 3_599_990, 3_600_002)]
    assert alike(waits, "loop_timeout") == waits
    assert alike(waits, "timer_real_clock") == [
        waits[0],
        "epoll_wait(epoll, [], 1000, PENDING) = 0",
        waits[2],
    ]


# --- the reader of traces -------------------------------------------------------------------------


def one(line: str) -> Call:
    (call,) = parse([line])
    return call


def test_call_is_parsed_with_its_result() -> None:
    line = 'read(3, "a,b) = 1\\"(", 10)            = 9'
    assert one(line) == Call("read", ("3", '"a,b) = 1\\"("', "10"), 9, None, False, line)
    assert one(line).fd == 3


def test_error_is_parsed_by_name() -> None:
    call = one("read(3, 0x7ffe, 10) = -1 EAGAIN (Resource temporarily unavailable)")
    assert (call.result, call.errno, call.injected) == (-1, "EAGAIN", False)


def test_injected_error_is_marked() -> None:
    line = "epoll_wait(5, 0x55, 1000, -1) = -1 EINTR (Interrupted system call) (INJECTED)"
    assert (one(line).errno, one(line).injected) == ("EINTR", True)


def test_result_with_an_explanation_is_parsed() -> None:
    assert one("fcntl(5, F_GETFD) = 0x1 (flags FD_CLOEXEC)").result == 1


def test_call_that_never_returned_has_no_result() -> None:
    assert one("exit_group(0) = ?").result is None


def test_structs_are_not_split() -> None:
    call = one("epoll_ctl(5, EPOLL_CTL_ADD, 3, {events=EPOLLIN|0x40 /* EPOLL??? */, data=0x3}) = 0")
    assert call.args[:3] == ("5", "EPOLL_CTL_ADD", "3")
    assert len(call.args) == 4
    assert call.events == [("EPOLLIN|0x40 /* EPOLL??? */", 3)]


def test_all_events_of_a_wait_are_parsed() -> None:
    call = one(
        "epoll_wait(5, [{events=EPOLLIN, data=0x3}, "
        "{events=EPOLLOUT|EPOLLHUP, data=0x7}], 1000, -1) = 2"
    )
    assert call.events == [("EPOLLIN", 3), ("EPOLLOUT|EPOLLHUP", 7)]
    assert call.args[2:] == ("1000", "-1")


def test_both_descriptors_of_a_pair_are_parsed() -> None:
    assert one("socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, [3, 4]) = 0").descriptors == [3, 4]
    assert one("pipe2([5, 6], O_CLOEXEC) = 0").descriptors == [5, 6]
    assert one("accept4(3, NULL, NULL, SOCK_CLOEXEC) = 7").descriptors == [7]
    assert one("accept4(3, NULL, NULL, 0) = -1 EAGAIN (Try again)").descriptors == []


def test_signals_and_exits_are_not_calls() -> None:
    lines = ["--- SIGPIPE {si_signo=SIGPIPE} ---", "+++ exited with 0 +++", ""]
    assert list(parse(lines)) == []


def test_interrupted_lines_are_joined_by_process() -> None:
    calls = list(
        parse(
            [
                "101 epoll_wait(5,  <unfinished ...>",
                "102 getpid() = 102",
                "101 <... epoll_wait resumed>[], 1000, 7) = 0",
                "[pid   101] close(5) = 0",
            ]
        )
    )
    assert [call.name for call in calls] == ["getpid", "epoll_wait", "close"]
    assert calls[1].args == ("5", "[]", "1000", "7")


@pytest.mark.parametrize(
    "line", ["nonsense", "read(3, ", "close(3)", "<... close resumed>) = 0", 'write(1, "a']
)
def test_line_that_is_not_a_call_is_an_error(line: str) -> None:
    with pytest.raises(StraceError):
        list(parse([line]))


def test_only_own_descriptors_between_the_marks_are_kept() -> None:
    trace = """\
close(9) = 0
socketpair(AF_UNIX, SOCK_STREAM, 0, [20, 21]) = 0
write(1000, "begin", 5) = -1 EBADF (Bad file descriptor)
socketpair(AF_UNIX, SOCK_STREAM, 0, [3, 4]) = 0
setsockopt(3, SOL_SOCKET, SO_SNDBUF, [4608], 4) = 0
read(5, "module", 10) = 6
epoll_create(1024) = 5
fcntl(5, F_SETFD, FD_CLOEXEC) = 0
epoll_ctl(5, EPOLL_CTL_ADD, 4, {events=EPOLLIN, data=0x4}) = 0
write(1000, "hello", 5) = -1 EBADF (Bad file descriptor)
setsockopt(4, SOL_TCP, TCP_CORK, [1], 4) = -1 EOPNOTSUPP (Operation not supported)
epoll_wait(5, [{events=EPOLLIN, data=0x4}], 1000, -1) = 1
read(4, 0x5555, 10) = -1 EAGAIN (Resource temporarily unavailable)
close(4) = 0
close(4) = -1 EBADF (Bad file descriptor)
openat(AT_FDCWD, "module", O_RDONLY) = 4
read(4, "text", 10) = 4
close(4) = 0
read(4, 0x5555, 10) = -1 EBADF (Bad file descriptor)
pipe([4, 6]) = 0
close(6) = 0
write(1000, "end", 3) = -1 EBADF (Bad file descriptor)
close(3) = 0
"""
    assert own_calls(parse(trace.splitlines())) == [
        "epoll_create close-on-exec = epoll",
        "epoll_ctl(epoll, EPOLL_CTL_ADD, fd2, {events=EPOLLIN, data=fd2}) = 0",
        "# hello",
        "setsockopt(fd2, SOL_TCP, TCP_CORK, [1], 4) = -1 EOPNOTSUPP",
        "epoll_wait(epoll, [{events=EPOLLIN, data=fd2}], 1000, -1) = 1",
        "read(fd2, ADDRESS, 10) = -1 EAGAIN",
        "close(fd2) = 0",
        "close(fd2) = -1 EBADF",
        "read(fd2, ADDRESS, 10) = -1 EBADF",
        "close(fd4) = 0",
    ]


def test_creating_the_poller_in_one_call_or_two_is_equivalent() -> None:
    begin, end = 'write(1000, "begin", 5) = -1 EBADF (x)', 'write(1000, "end", 3) = -1 EBADF (x)'
    two = [begin, "epoll_create(1024) = 5", "fcntl(5, F_SETFD, FD_CLOEXEC) = 0", end]
    in_one = [begin, "epoll_create1(EPOLL_CLOEXEC) = 5", end]
    without = [begin, "epoll_create1(0) = 5", end]
    assert own_calls(parse(two)) == own_calls(parse(in_one))
    assert own_calls(parse(in_one)) != own_calls(parse(without))


def test_trace_without_its_marks_is_an_error() -> None:
    with pytest.raises(StraceError, match="marks"):
        own_calls(parse(["close(3) = 0"]))


@pytest.mark.needs("strace")
def test_failing_command_is_an_error_that_shows_its_output() -> None:
    with pytest.raises(StraceError, match="oh dear"):
        run_under_strace(["sh", "-c", "echo oh dear >&2; exit 3"])
