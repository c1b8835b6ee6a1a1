"""poll(2)."""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import TYPE_CHECKING

from tests.simkernel.errors import SimError
from tests.simkernel.files import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from tests.simkernel.memory import memory

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

_POLLFD = struct.Struct("=ihh")
_NFDS = ctypes.c_ulong if sys.platform == "linux" else ctypes.c_uint


def poll(kernel: SimKernel, pointer: object, nfds: object, timeout_ms: int) -> int:
    """poll(2). Raises `OSError`."""
    if not isinstance(nfds, _NFDS):
        raise SimError(f"poll: nfds is {nfds!r}, not a {_NFDS.__name__}")
    count = nfds.value
    view = memory(pointer, count * _POLLFD.size, "poll: fds")
    wanted = [_POLLFD.unpack_from(view, i * _POLLFD.size) for i in range(count)]
    for fd, events, _ in wanted:
        if events & ~(POLLIN | POLLOUT | POLLERR | POLLHUP | POLLNVAL):
            raise SimError(f"poll: unknown event bits {events:#x} for fd {fd}")

    def ready() -> dict[int, int]:
        found = {}
        for i, (fd, events, _) in enumerate(wanted):
            if fd < 0:
                continue
            file = kernel.table.files.get(fd)
            if file is None:
                if kernel.strict:
                    raise SimError(f"poll: descriptor {fd} is closed")
                found[i] = POLLNVAL
            elif mask := file.poll() & (events | POLLERR | POLLHUP):
                found[i] = mask
        return found

    found = kernel.wait(ready, timeout_ms, "poll")
    if wanted and kernel.luck.noisy("spurious event"):
        i = kernel.luck.random.randrange(count)
        file = kernel.table.files.get(wanted[i][0])
        if file and file.fickle() and (mask := wanted[i][1] & (POLLIN | POLLOUT)):
            found.setdefault(i, mask)
    for i, (fd, events, _) in enumerate(wanted):
        _POLLFD.pack_into(view, i * _POLLFD.size, fd, events, found.get(i, 0))
    return len(found)
