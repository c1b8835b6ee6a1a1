"""The package, with profiling on."""

from danga_raw import Socket
from danga_raw_server import Connection, serve

Socket.EnableProfiling()
serve(Connection)
