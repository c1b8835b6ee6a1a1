"""The seccomp profile that `info --seccomp` prints, as OCI runtimes and `docker run --security-opt
seccomp=FILE` take it.

It allows the surface of this package on every C library and machine of the table (`_kernel.py`), and
what every program of it needs beside that, by name and with any arguments. A name that a machine
doesn't have is skipped by the runtime. What isn't allowed fails with ENOSYS, as on a kernel without
it: then a C library that is newer than this page tries an older call.

The lists are measured: `python -m tests.audit.interpreter` for Python's, `tests.audit.container` for
the container's; tests/test_seccomp_profile.py looks again on the Python that it runs on. To add what
another Python needs is to add the name in its line.
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
"""What CPython itself needs."""

SOCKETS: Final = """
    socketpair bind listen accept shutdown send sendto sendmsg recv recvfrom recvmsg
"""
"""What programs bring themselves: their sockets, by Python's module of that name."""

CONTAINER: Final = """
    capget capset prctl setuid setgid setgroups chdir fstatfs getppid nanosleep epoll_pwait
"""
"""What runc does between the filter, which is on by then, and the program."""

ARCHITECTURES: Final[Mapping[str, tuple[str, ...]]] = {
    "SCMP_ARCH_X86_64": ("SCMP_ARCH_X86",),
    "SCMP_ARCH_AARCH64": ("SCMP_ARCH_ARM",),
    "SCMP_ARCH_S390X": (),
    "SCMP_ARCH_PPC64LE": (),
    "SCMP_ARCH_RISCV64": (),
    "SCMP_ARCH_LOONGARCH64": (),
}
"""The machines of the table, and those whose programs each of them runs too. The native one is always
allowed, and of these the runtime takes the entry of the native one alone."""

NOT_LINUX: Final = frozenset(("kqueue", "kevent", "sigaction"))
"""What is asked of the BSDs' kernels alone; the last is the oldest call of that kind on Linux, and no
machine of the table makes it."""

Json: TypeAlias = "str | int | list[str] | list[Mapping[str, Json]] | Mapping[str, Json]"


def surface() -> set[str]:
    """What this package can ask the kernel, anywhere; that of the BSDs is no call of Linux's."""
    return set(every_call()) - NOT_LINUX


def groups() -> Mapping[str, set[str]]:
    """The names that are allowed, by what they are for."""
    return {
        "danga_raw": surface(),
        **{f"CPython, {what}": set(names.split()) for what, names in INTERPRETER.items()},
        "the program's own sockets": set(SOCKETS.split()),
        "the container's start": set(CONTAINER.split()),
    }


def allowed() -> frozenset[str]:
    """All the names."""
    return frozenset[str]().union(*groups().values())


def profile() -> Mapping[str, Json]:
    """The profile. Each entry has the names that no earlier one has."""
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
