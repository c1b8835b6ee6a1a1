"""Danga::Socket, the Perl event loop and socket base class, on ctypes calls to libc alone.

`Socket` is the class to inherit from, in the manual's own spelling; `Loop` is the event loop in
Python's, and `Listener` a socket that accepts. `danga_raw.types` has what annotations need,
`danga_raw.trace` the audit.
"""

from danga_raw import types as types
from danga_raw._log import log_exception
from danga_raw.listener import Listener
from danga_raw.loop import Loop
from danga_raw.socket import Socket, default_loop
from danga_raw.timers import Timer

__version__ = "1.1.0"

__all__ = ["Listener", "Loop", "Socket", "Timer", "default_loop", "log_exception"]
