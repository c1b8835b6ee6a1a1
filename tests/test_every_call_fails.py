"""Every call of the package fails once, on the real kernel: a seeded sample of the runs of
`python -m tests.every_call_fails`."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from tests import failing_parts
from tests.every_call_fails import (
    ERRORS,
    NAMES,
    SERVERS,
    ServerStage,
    clean_runs,
    outcomes,
    own_calls,
    runs_of,
    spin,
)
from tests.needs import REQUIRED
from tests.strace import Call, parse

SAMPLE = 300 if REQUIRED else 40


@pytest.mark.needs("strace")
def test_failing_call_costs_at_most_its_own_connection() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    clean = clean_runs([*NAMES, *SERVERS])
    runs = runs_of(clean)
    assert {run.own.kind for run in runs} == set(ERRORS)
    assert len(runs) > 4000
    chosen = random.Random(seed).sample(runs, SAMPLE)
    assert [f"{run}: {fault}" for run, _, fault in outcomes(chosen, clean, 2) if fault] == []


@pytest.mark.needs("strace")
@pytest.mark.parametrize("name", SERVERS)
def test_server_whose_wait_fails_waits_again_and_loses_no_client(name: str) -> None:
    with closing(ServerStage()) as stage:
        told = stage.tell(name, ["epoll_wait,epoll_pwait:error=EBADF:when=2"])
        assert [call.errno for call in told.calls if call.injected] == ["EBADF"]
        assert stage.lost == 0


def test_failing_call_while_waking_accepting_or_connecting_does_limited_harm() -> None:
    chosen = failing_parts.runs()
    assert {run.kind for run in chosen} == set(failing_parts.PART_ERRORS)
    assert len(chosen) > 1000
    assert [f"{run}: {wrong}" for run in chosen if (wrong := failing_parts.failed(run).wrong)] == []


# --- the judge ------------------------------------------------------------------------------------


def calls(text: str) -> list[Call]:
    return list(parse(text.splitlines()))


def test_only_calls_of_the_package_are_made_to_fail() -> None:
    found = own_calls(
        calls(
            """\
close(3) = 0
socketpair(AF_UNIX, SOCK_STREAM|SOCK_CLOEXEC, 0, [3, 4]) = 0
epoll_create1(EPOLL_CLOEXEC) = 5
read(3, "x", 10) = 1
write(1001, "theirs", 6) = -1 EBADF (Bad file descriptor)
read(3, "y", 10) = 1
openat(AT_FDCWD, "/etc/hosts", O_RDONLY) = 6
read(6, "z", 10) = 1
close(6) = 0
setsockopt(3, SOL_SOCKET, SO_SNDBUF, [4608], 4) = 0
setsockopt(3, SOL_TCP, TCP_CORK, [1], 4) = 0
epoll_ctl(5, EPOLL_CTL_DEL, 4, 0x7f) = 0
write(1001, "theirs", 6) = -1 EBADF (Bad file descriptor)
close(3) = 0
close(4) = 0"""
        )
    )
    assert [(own.kind, own.number, own.fd) for own in found] == [
        ("read", 1, "fd1"),
        ("setsockopt", 2, "fd1"),
        ("epoll_ctl DEL", 1, "fd2"),
        ("close", 4, "fd2"),
    ]


def test_repeated_waits_without_effect_count_as_a_spin() -> None:
    wait = "epoll_wait(5, [{events=EPOLLIN, data=0x3}], 1000, -1) = 1\n"
    assert spin(calls(wait * 4))
    assert not spin(calls((wait * 3 + 'read(3, "x", 10) = 1\n') * 4))
    assert not spin(calls("epoll_wait(5, [], 1000, 0) = 0\n" * 9))
