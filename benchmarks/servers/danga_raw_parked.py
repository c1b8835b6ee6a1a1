"""The package, beside objects that are parked: danga_raw_parked.py COUNT.

They have pushed-back data, and don't watch for reading.
"""

import resource
import socket
import sys

from danga_raw_server import Connection, serve

from danga_raw import Socket

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
parked = []
for _ in range(int(sys.argv[1])):
    parked.append(Socket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    parked[-1].push_back_read(b"later")
serve(Connection)
