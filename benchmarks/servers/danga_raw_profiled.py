"""The package, with profiling on."""

from danga_raw_server import Connection, serve

from danga_raw import Socket

Socket.EnableProfiling()
serve(Connection)
