"""Danga::Socket, the Perl event loop and socket base class, on ctypes calls to libc alone.

`Socket` is the class to inherit from, in the manual's own spelling; `Loop` is the event loop in
Python's, and `Listener` a socket that accepts. `danga_raw.types` has what annotations need,
`danga_raw.trace` the audit.
"""

import sys

if sys.version_info < (3, 10):
    # In syntax that an older Python knows, which answers the other rooms with a SyntaxError.
    needed = "danga_raw needs Python 3.10 or later; this is Python %d.%d" % sys.version_info[:2]
    # True for `python -m danga_raw` while the module is looked for; in Python 2 argv says -c.
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
