"""The types of the public surface, for annotations.

Importing `typing` would double the import time of the package, so at run time its protocols and
type variables are plain stand-ins. Only type checkers see the lower modules import this one. It is
imported last, and copies its names to them for `typing.get_type_hints`.
"""

from __future__ import annotations

import sys
from _collections_abc import Callable, Mapping
from _socket import socket as RawSocket

from danga_raw._poller import Poller as Poller
from danga_raw._typing import Protocol
from danga_raw.listener import Listener as Listener
from danga_raw.loop import Loop as Loop
from danga_raw.socket import Socket as Socket
from danga_raw.timers import Timer as Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as PythonSocket
    from typing import TypeAlias

    from typing_extensions import TypeVar
else:
    PythonSocket = RawSocket
    TypeAlias = object


class Handle(Protocol):
    """An object with a descriptor: a `socket.socket`, a file, or anything with these methods."""

    def fileno(self) -> int: ...
    def close(self) -> object: ...


if TYPE_CHECKING:
    HandleT = TypeVar("HandleT", bound=Handle, default=PythonSocket, covariant=True)
    """The type of a `Socket`'s handle; by default, `socket.socket`."""
    SocketT = TypeVar("SocketT", bound=Socket[Handle])
    LoopT = TypeVar("LoopT", bound=Loop)
else:
    HandleT, SocketT, LoopT = Handle, Socket, Loop


class Constructor(Protocol):
    """A constructor with arguments that only its class knows."""

    def __call__(self, /, *args: object, **more: object) -> object: ...


AnySocket: TypeAlias = Socket[Handle]
"""A `Socket` with any kind of handle."""
DescriptorMapping: TypeAlias = Mapping[int, Socket]
"""fd -> its object."""
Callback: TypeAlias = Callable[[], object]
"""Called without arguments; the result is ignored."""
OtherFdCallback: TypeAlias = Callable[[int], object]
"""Called with the event mask when an other fd is readable."""
OtherFdMapping: TypeAlias = Mapping[int, OtherFdCallback]
"""fd -> its callback."""
PostLoopCallback: TypeAlias = Callable[[DescriptorMapping, OtherFdMapping], object]
"""Called after each batch; a false result ends the loop."""
ExceptionCallback: TypeAlias = Callable[[Socket | None, Exception], object]
"""Called with the object whose handler raised, or None, and the exception."""
Accepted: TypeAlias = Callable[[PythonSocket, object], object]
"""Called with a new connection and its peer's address."""
ProfileMapping: TypeAlias = Mapping[str, tuple[float, float, int]]
"""Class and event -> (seconds of user time, seconds of system time, number of calls)."""

Block: TypeAlias = bytes | memoryview
"""Data to be written; it is never copied."""
Queued: TypeAlias = Block | Callback
"""What the write queue may contain."""
Writable: TypeAlias = bytes | bytearray | memoryview | Callback | None
"""What `write` takes."""
WriterFunc: TypeAlias = Callable[[Block, int, int], int]
"""Writes `data[offset:offset + count]`, called with (data, count, offset). Returns how many bytes
it wrote; raises BlockingIOError if it would block, and any other OSError if it failed."""
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""An IPv4 or IPv6 address with its port, or the path of a UNIX socket."""

if not TYPE_CHECKING:
    _names = {name: value for name, value in globals().items() if not name.startswith("_")}
    for _room in "_connecting", "_registry", "listener", "loop", "socket", "timers":
        for _name, _value in _names.items():
            vars(sys.modules[f"danga_raw.{_room}"]).setdefault(_name, _value)
