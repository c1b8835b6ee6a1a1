"""Danga::Socket, the Perl event loop and socket base class, on ctypes calls to libc alone.

`Socket` is the class to inherit from, with the names of the original's manual. `Loop` is the event
loop, and `Listener` a socket that accepts. `danga_raw.types` has types for annotations, and
`danga_raw.trace` the audit.
"""

import sys

if sys.version_info < (3, 10):
    # In syntax that older Pythons know; the other modules would be a SyntaxError there.
    needed = "danga_raw needs Python 3.10 or later; this is Python %d.%d" % sys.version_info[:2]
    # True for `python -m danga_raw` while the module is looked up; in Python 2 argv is -c.
    running = "runpy" in sys.modules and getattr(sys, "argv", [])[:1] in (["-m"], ["-c"])
    raise (SystemExit if running else ImportError)(needed)

from danga_raw import types as types
from danga_raw._log import log_exception
from danga_raw.listener import Listener
from danga_raw.loop import Loop
from danga_raw.socket import Socket, default_loop
from danga_raw.timers import Timer

__version__ = "1.1.0"

__all__ = ["Listener", "Loop", "Socket", "Timer", "default_loop", "log_exception"]
