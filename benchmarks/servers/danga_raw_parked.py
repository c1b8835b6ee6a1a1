"""The package, beside objects that are parked: danga_raw_parked.py COUNT.

They have pushed-back data, and don't watch for reading.
"""

import os
import resource
import socket
import sys

from danga_raw_server import Connection, serve

from danga_raw import Socket

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
# Left free for the server: Python caches the ints up to 256, and makes the others each time.
low = [os.dup(0) for _ in range(8)]
parked = []
for _ in range(int(sys.argv[1])):
    parked.append(Socket(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
    parked[-1].push_back_read(b"later")
for fd in low:
    os.close(fd)
serve(Connection)
