"""Danga::Socket, the Perl event loop and socket base class, on ctypes calls to libc alone.

`Socket` is the class to inherit from, in the manual's own spelling; `Loop` is the event loop in
Python's. `danga_raw.types` has what annotations need, `danga_raw.trace` the audit.
"""

from danga_raw.loop import Loop
from danga_raw.socket import Socket, default_loop
from danga_raw.timers import Timer

__all__ = ["Loop", "Socket", "Timer", "default_loop"]
