"""The seccomp profile: its form, and that it allows the observed calls."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from errno import ENOSYS
from pathlib import Path

import pytest

from danga_raw._backends import backends
from danga_raw._kernel import ASKED_AGAIN, MACHINES, RULES, SURFACE, in_c
from danga_raw._seccomp import ARCHITECTURES, CONTAINER, INTERPRETER, SOCKETS, allowed, profile
from tests.audit.interpreter import measure

ROOT = Path(__file__).parents[1]


def entries() -> list[Mapping[str, object]]:
    found = profile()["syscalls"]
    assert isinstance(found, list)
    return [entry for entry in found if isinstance(entry, Mapping)]


def names() -> list[str]:
    return [str(name) for entry in entries() for name in _list(entry["names"])]


def _list(value: object) -> list[object]:
    assert isinstance(value, list)
    return value


def test_info_prints_the_profile_as_json() -> None:
    command = [sys.executable, "-m", "danga_raw", "info", "--seccomp"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == profile()


def test_profile_has_the_format_that_docker_accepts() -> None:
    seccomp = profile()
    assert seccomp["defaultAction"] == "SCMP_ACT_ERRNO"
    assert seccomp["defaultErrnoRet"] == ENOSYS == 38
    # Docker refuses a profile with both.
    assert "archMap" in seccomp and "architectures" not in seccomp
    for machine in _list(seccomp["archMap"]):
        assert isinstance(machine, Mapping)
        assert set(machine) == {"architecture", "subArchitectures"}
    for entry in entries():
        assert set(entry) == {"names", "action", "comment"}  # Only by name, with any arguments.
        assert entry["action"] == "SCMP_ACT_ALLOW"
        assert entry["names"] == sorted(map(str, _list(entry["names"])))


def test_each_name_is_in_the_profile_once() -> None:
    assert len(names()) == len(set(names())) and set(names()) == allowed()
    assert all(re.fullmatch(r"[a-z_][a-z0-9_]+", name) for name in names())


def test_profile_has_each_machine_of_the_table() -> None:
    have = {
        name.removeprefix("SCMP_ARCH_").lower()
        for machine, others in ARCHITECTURES.items()
        for name in (machine, *others)
    }
    kernels = {"i386": "x86"}
    assert have == {kernels.get(machine, machine) for machine in MACHINES}


def test_profile_allows_the_surface_everywhere() -> None:
    asked = {rule.asked.name for rule in RULES} | {rule.asked.name for rule in ASKED_AGAIN}
    asked |= {in_c(name) for name in SURFACE}
    assert asked - allowed() == {"kqueue", "kevent", "sigaction"}


def test_profile_allows_nothing_dangerous() -> None:
    dangerous = """
        ptrace process_vm_readv process_vm_writev mount umount2 pivot_root chroot unshare setns
        bpf perf_event_open init_module finit_module kexec_load reboot keyctl userfaultfd
        unlink unlinkat rename renameat mkdir rmdir chmod chown truncate link symlink execveat
        io_uring_setup io_uring_enter open_by_handle_at fork vfork
    """
    assert set(dangerous.split()) & allowed() == set()


def test_each_name_is_in_one_group_only() -> None:
    told: list[str] = []
    for group in INTERPRETER.values():
        told += group.split()
    assert len(told) == len(set(told))
    for group in (SOCKETS, CONTAINER):
        assert len(group.split()) == len(set(group.split()))


@pytest.mark.needs("strace")
@pytest.mark.skipif("epoll" not in backends(), reason="a matter of Linux")
def test_profile_allows_everything_that_this_python_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = measure([sys.executable])
    with capsys.disabled():
        counts = ", ".join(f"{doing} {len(made)}" for doing, made in seen.items())
        print(f"\nsystem calls of this Python: {counts}")
    assert {doing: made - allowed() for doing, made in seen.items()} == {d: set() for d in seen}
    assert {"execve", "mmap", "rt_sigaction", "exit_group"} <= seen["life"]
    assert {"accept4", "bind", "epoll_ctl"} <= seen["served"]
