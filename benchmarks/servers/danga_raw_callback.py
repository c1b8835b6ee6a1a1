"""The package, with a post-loop callback: danga_raw_callback.py loop|objects.

Either one for the whole loop, or one for each connection.
"""

import socket
import sys

from danga_raw_server import Connection, serve

from danga_raw import Socket
from danga_raw.types import DescriptorMapping, OtherFdMapping


def go_on(objects: DescriptorMapping, other_fds: OtherFdMapping) -> bool:
    return True


def connect(sock: socket.socket) -> Connection:
    connection = Connection(sock)
    if sys.argv[1] == "objects":
        connection.SetPostLoopCallback(go_on)
    return connection


if sys.argv[1] == "loop":
    Socket.SetPostLoopCallback(go_on)
serve(connect)
