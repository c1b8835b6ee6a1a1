"""The package, with its connections spread over several subclasses: danga_raw_subclasses.py COUNT.

Python remembers in the code, for the class it saw there last, where an attribute is. Each subclass
has a handler of its own, as in real programs; the package's code is shared by all.
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
