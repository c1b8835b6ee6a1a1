"""The system call surface of danga_raw on one page: every function it can call, as C declares it.

The names are C's. The C library may make a system call of another name: `python3 -m danga_raw info
--syscalls` prints which on this system, and docs/syscalls.md lists all of them.

The functions of the first part are called in the C library through ctypes. Those of the second are
Python's own wrappers of one call each, under the call's name. The package reaches the operating
system in no other way.
"""

from _ctypes import _CArgObject as Reference
from collections.abc import Callable
from ctypes import Array, Structure, c_int, c_size_t, c_uint, c_ulong
from os import stat_result
from resource import struct_rusage
from socket import socket as Socket
from types import FrameType
from typing import Protocol, TypeAlias

from _typeshed import ReadableBuffer

platform: str
"""The platform whose constants and layouts apply: "linux", "freebsd", "netbsd", "darwin", ..."""

SockAddr: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes

# --- by ctypes -----------------------------------------------------------------------------------

def epoll_create1(flags: int, /) -> int:
    """`int epoll_create1(int flags)`: a new epoll descriptor. epoll_create1(2), Linux 2.6.27."""

def epoll_ctl(epfd: int, op: int, fd: int, event: bytes, /) -> int:
    """`int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)`: epoll_ctl(2)."""

def epoll_wait(epfd: int, events: Reference, maxevents: int, timeout: int, /) -> int:
    """`int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout)`.

    The number of ready descriptors, at most `maxevents`; `timeout` in milliseconds. epoll_wait(2).
    """

def kqueue() -> int:
    """`int kqueue(void)`: a new kqueue descriptor, which a forked child doesn't have. kqueue(2)."""

class Kevent(Structure):
    """The fields of every platform's struct kevent, in the order of EV_SET(2)'s arguments."""

    ident: int
    filter: int
    flags: int
    fflags: int
    data: int

def kevent(
    kq: int,
    changelist: Array[Kevent] | None,
    nchanges: int | c_size_t,
    eventlist: Array[Kevent] | None,
    nevents: int | c_size_t,
    timeout: Reference | None,
    /,
) -> int:
    """`int kevent(int kq, const struct kevent *changelist, int nchanges, struct kevent *eventlist,
    int nevents, const struct timespec *timeout)`: kevent(2).

    The counts are size_t on NetBSD.
    """

class KQueueLibrary(Protocol):
    """What a kqueue poller is built on: the C library, libkqueue, or another kernel's entry points.

    Both calls return as in C: -1 for an error, with its number in `ctypes.get_errno()`. If the
    library has `fcntl` too, its kqueue is closed on exec, and if it has `close`, that closes it:
    in this process the number may belong to another descriptor.
    """

    def kqueue(self) -> int: ...
    def kevent(
        self,
        kq: int,
        changelist: Array[Kevent] | None,
        nchanges: int | c_size_t,
        eventlist: Array[Kevent] | None,
        nevents: int | c_size_t,
        timeout: Reference | None,
        /,
    ) -> int: ...

def poll(fds: Reference, nfds: c_ulong | c_uint, timeout: int, /) -> int:
    """`int poll(struct pollfd *fds, nfds_t nfds, int timeout)`: poll(2).

    nfds_t is unsigned long on Linux and unsigned int on the BSDs and macOS.
    """

def setsockopt(sockfd: int, level: int, optname: int, optval: Reference, optlen: int, /) -> int:
    """`int setsockopt(int sockfd, int level, int optname, const void *optval, socklen_t optlen)`.

    setsockopt(2), tcp(7).
    """

def fcntl(fd: int, op: int, arg: int, /) -> int:
    """`int fcntl(int fd, int op, ...)`: fcntl(2), here F_SETFD or F_SETFL with an int."""

def pipe2(pipefd: Array[c_int], flags: int, /) -> int:
    """`int pipe2(int pipefd[2], int flags)`: pipe2(2), to wake a loop."""

def pipe(pipefd: Array[c_int], /) -> int:
    """`int pipe(int pipefd[2])`: pipe(2), where there is no pipe2 (macOS)."""

# --- by Python's own wrappers, which raise OSError ------------------------------------------------

def read(fd: int, count: int, /) -> bytes:
    """`ssize_t read(int fd, void *buf, size_t count)`: read(2), by `os.read`; EINTR is retried."""

def write(fd: int, buf: ReadableBuffer, /) -> int:
    """`ssize_t write(int fd, const void *buf, size_t count)`: write(2), by `os.write`; EINTR is
    retried."""

def close(fd: int, /) -> None:
    """`int close(int fd)`: close(2), by `os.close`; a Python socket is closed by its own method, as
    long as this is `os.close`."""

def fstat(fd: int, /) -> stat_result:
    """`int fstat(int fd, struct stat *statbuf)`: fstat(2), by `os.fstat`."""

def accept(sock: Socket, /) -> tuple[Socket, SockAddr]:
    """`int accept4(int sockfd, struct sockaddr *addr, socklen_t *addrlen, int flags)`: accept4(2)
    with SOCK_CLOEXEC, by the listener's own method; Python calls getsockname(2) to make a socket of
    the result."""

def setblocking(sock: Socket, /) -> None:
    """`int ioctl(int fd, FIONBIO, int *on)`: ioctl(2), by the socket's own method; it makes the
    socket non-blocking."""

def socket(family: int, type: int, /) -> Socket:
    """`int socket(int domain, int type, int protocol)`: socket(2) with SOCK_CLOEXEC, by
    `socket.socket`."""

def connect(sock: Socket, address: SockAddr, /) -> None:
    """`int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen)`: connect(2), by the
    socket's own method."""

def getsockopt(sock: object, /) -> int:
    """`int getsockopt(int sockfd, SOL_SOCKET, SO_ERROR, void *optval, socklen_t *optlen)`:
    getsockopt(2), by the socket's own method."""

def signal(number: int, handler: Callable[[int, FrameType | None], object] | int, /) -> object:
    """`int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact)`:
    rt_sigaction(2), by `signal.signal`."""

def getpeername(sock: object, /) -> SockAddr:
    """`int getpeername(int sockfd, struct sockaddr *addr, socklen_t *addrlen)`: getpeername(2), by
    the handle's own method, which knows its address family."""

def getsockname(sock: object, /) -> SockAddr:
    """`int getsockname(int sockfd, struct sockaddr *addr, socklen_t *addrlen)`: getsockname(2), by
    the handle's own method."""

def getpid() -> int:
    """`pid_t getpid(void)`: getpid(2), by `os.getpid`; detects a fork, which loses a kqueue."""

def getrusage(who: int, /) -> struct_rusage:
    """`int getrusage(int who, struct rusage *usage)`: getrusage(2), by `resource.getrusage`."""

def clock_gettime(clk_id: int, /) -> float:
    """`int clock_gettime(clockid_t clk_id, struct timespec *tp)`, in seconds: clock_gettime(2), by
    `time.clock_gettime`. The C library answers without entering the kernel (vdso(7))."""
