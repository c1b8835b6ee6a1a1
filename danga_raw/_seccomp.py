"""The seccomp profile that `info --seccomp` prints, in the format of OCI runtimes and of `docker
run --security-opt seccomp=FILE`.

It allows the system calls of this package, for every C library and machine that `_kernel.py` knows,
and the other calls that all its programs need, by name and with any arguments. Runtimes skip names
that a machine doesn't have. Other calls fail with ENOSYS, as on a kernel that lacks them: then a C
library newer than these lists falls back to an older call.

The lists are measured: Python's by `python -m tests.audit.interpreter`, the container's by
`tests.audit.container`; tests/test_seccomp_profile.py checks them on the Python that runs it. If
another Python needs a call, add its name to the line that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from errno import ENOSYS
from typing import Final, TypeAlias

from danga_raw._kernel import every_call

INTERPRETER: Final[Mapping[str, str]] = {
    "to start": """
        execve arch_prctl set_thread_area set_tls set_tid_address set_robust_list rseq
        prlimit64 getrlimit ugetrlimit uname sysinfo getrandom riscv_hwprobe riscv_flush_icache
        getuid geteuid getgid getegid getuid32 geteuid32 getgid32 getegid32
        sched_getaffinity
    """,
    "to import": """
        open openat read readv pread64 close lseek _llseek ioctl fcntl fcntl64 dup
        access faccessat faccessat2 readlink readlinkat getcwd getdents64
        stat lstat fstat stat64 lstat64 fstat64 newfstatat fstatat64 statx
    """,
    "to have memory": "brk mmap mmap2 munmap mremap mprotect madvise membarrier",
    "to handle signals": """
        rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack restart_syscall
        kill tkill tgkill alarm setitimer pause ppoll pselect6 _newselect
        clock_nanosleep clock_nanosleep_time64 nanosleep
    """,
    "to have threads and locks": """
        clone clone3 futex futex_time64 gettid getpid sched_yield exit
    """,
    "to know the time": "clock_gettime clock_gettime64 gettimeofday time clock_getres",
    "to print": "write writev",
    "to be traced into a file": "flock",
    "to end": "exit_group",
}
"""The calls that CPython itself needs."""

SOCKETS: Final = """
    socketpair bind listen accept shutdown send sendto sendmsg recv recvfrom recvmsg
"""
"""The calls that programs need for sockets of their own, made by Python's `socket` module."""

CONTAINER: Final = """
    capget capset prctl setuid setgid setgroups chdir fstatfs getppid nanosleep epoll_pwait
"""
"""The calls that runc makes after it has set the filter and before the program starts."""

ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86",),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_S390X": (),
    "SCMP_ARCH_PPC64LE": (),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}
"""The machines that `_kernel.py` knows, each with those whose programs it can also run. The native
one is always allowed, and a runtime uses only the native one's entry."""

NOT_LINUX: Final = frozenset(("kqueue", "kevent", "sigaction"))
"""The calls of the BSDs alone. Linux has a sigaction too, the oldest of its kind, but no machine
that `_kernel.py` knows uses it."""

Json: TypeAlias = "str | int | list[str] | list[Mapping[str, Json]] | Mapping[str, Json]"


def surface() -> set[str]:
    """The Linux system calls that this package can make, on any machine."""
    return set(every_call()) - NOT_LINUX


def groups() -> Mapping[str, set[str]]:
    """The allowed names, by purpose."""
    return {
        "danga_raw": surface(),
        **{f"CPython, {what}": set(names.split()) for what, names in INTERPRETER.items()},
        "the program's own sockets": set(SOCKETS.split()),
        "the container's start": set(CONTAINER.split()),
    }


def allowed() -> frozenset[str]:
    """All allowed names."""
    return frozenset[str]().union(*groups().values())


def profile() -> Mapping[str, Json]:
    """The profile. Each entry lists only names that no earlier one has."""
    entries: list[Mapping[str, Json]] = []
    before: set[str] = set()
    for what, names in groups().items():
        if more := sorted(names - before):
            entries.append({"names": more, "action": "SCMP_ACT_ALLOW", "comment": what})
        before |= names
    machines: list[Mapping[str, Json]] = [
        {"architecture": machine, "subArchitectures": list(others)}
        for machine, others in ARCHITECTURES.items()
    ]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "archMap": machines,
        "syscalls": entries,
    }
