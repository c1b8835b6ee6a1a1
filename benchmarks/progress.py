"""A bar on the terminal; plain lines where there is no terminal."""

import sys
import time
from typing import TextIO

WIDTH = 30


class Progress:
    """Shows which step of how many is running, and the total time so far."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = sys.stderr if out is None else out
        self.live = self.out.isatty()
        self.steps = 0
        self.done = 0
        self.started = 0.0

    def begin(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.started = time.monotonic()

    def step(self, label: str) -> None:
        """The previous step is done; this one begins."""
        filled = WIDTH * self.done // self.steps
        self.done += 1
        seconds = int(time.monotonic() - self.started)
        bar = f"[{'#' * filled}{'.' * (WIDTH - filled)}]"
        text = f"{bar} {self.done}/{self.steps} {seconds // 60}:{seconds % 60:02} {label}"
        self.out.write(f"\r\033[K{text}" if self.live else f"{text}\n")
        self.out.flush()

    def end(self) -> None:
        if self.live:
            self.out.write("\r\033[K")
            self.out.flush()
