"""The types of the public surface, for annotations.

`typing` would double the time that the package takes to import, so at run time its protocols and
type variables have plain stand-ins. Type checkers alone see the lower rooms import this one; for
`typing.get_type_hints` this room, the last to be imported, hands its names down to them.
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
    """What a descriptor is known by: a `socket.socket`, a file, or anything with these two."""

    def fileno(self) -> int: ...
    def close(self) -> object: ...


if TYPE_CHECKING:
    HandleT = TypeVar("HandleT", bound=Handle, default=PythonSocket, covariant=True)
    """The type of a `Socket`'s handle; of a `Socket` without brackets, `socket.socket`."""
    SocketT = TypeVar("SocketT", bound=Socket[Handle])
    LoopT = TypeVar("LoopT", bound=Loop)
else:
    HandleT, SocketT, LoopT = Handle, Socket, Loop


class Constructor(Protocol):
    """What makes an object, and takes what only its class knows."""

    def __call__(self, /, *args: object, **more: object) -> object: ...


AnySocket: TypeAlias = Socket[Handle]
"""An object on any kind of handle."""
DescriptorMapping: TypeAlias = Mapping[int, Socket]
"""fd -> the object that has it."""
Callback: TypeAlias = Callable[[], object]
"""Called with nothing, its result ignored."""
OtherFdCallback: TypeAlias = Callable[[int], object]
"""Called with the event mask when an other fd is readable."""
OtherFdMapping: TypeAlias = Mapping[int, OtherFdCallback]
"""fd -> its callback."""
PostLoopCallback: TypeAlias = Callable[[DescriptorMapping, OtherFdMapping], object]
"""Called after each batch; a false answer ends the loop."""
ExceptionCallback: TypeAlias = Callable[[Socket | None, Exception], object]
"""Called with the object whose handler raised, if it was an object's, and the exception."""
Accepted: TypeAlias = Callable[[PythonSocket, object], object]
"""Called with a new connection and the address of its other side."""
ProfileMapping: TypeAlias = Mapping[str, tuple[float, float, int]]
"""Class and event -> (seconds of user time, seconds of system time, number of calls)."""

Block: TypeAlias = bytes | memoryview
"""What data is on its way out; it is never copied."""
Queued: TypeAlias = Block | Callback
"""What may wait in the write queue."""
Writable: TypeAlias = bytes | bytearray | memoryview | Callback | None
"""What `write` takes."""
WriterFunc: TypeAlias = Callable[[Block, int, int], int]
"""Writes `data[offset:offset + count]`, given as (data, count, offset). Returns how many bytes it
wrote, raises BlockingIOError where it would block and any other OSError where it failed."""
SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | str | bytes
"""An IPv4 or IPv6 address with its port, or the path of a UNIX socket."""

if not TYPE_CHECKING:
    _names = {name: value for name, value in globals().items() if not name.startswith("_")}
    for _room in "_connecting", "_registry", "listener", "loop", "socket", "timers":
        for _name, _value in _names.items():
            vars(sys.modules[f"danga_raw.{_room}"]).setdefault(_name, _value)
