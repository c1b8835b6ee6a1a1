"""The package, with its connections spread over several subclasses: danga_raw_subclasses.py COUNT.

Python caches in the code where an attribute is, for the last class it saw there. Each subclass
has its own handler, as in real programs; all of them share the package's code.
"""

import itertools
import socket
import sys
from types import FunctionType

from danga_raw_server import Connection, serve


def subclass(number: int) -> type[Connection]:
    handler = Connection.event_read
    own = FunctionType(handler.__code__.replace(), handler.__globals__)
    return type(f"Connection{number}", (Connection,), {"__slots__": (), "event_read": own})


in_turn = itertools.cycle([subclass(number) for number in range(int(sys.argv[1]))])


def connect(sock: socket.socket) -> Connection:
    return next(in_turn)(sock)


serve(connect)
