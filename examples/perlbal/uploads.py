"""Bodies of requests: chunks taken apart, and what is kept on disk until it is whole."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Final

from examples.perlbal.files import write_all
from examples.perlbal.heads import Refused

_MAX_LINE: Final = 1024
"""Bytes of a chunk's size and its extensions."""
_MAX_TRAILER: Final = 16_384
_SIZE_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\0-\x08\n-\x1f\x7f]*)?\r")


class ChunkDecoder:
    """Takes a chunked body apart, as strictly as RFC 9112, 7.1 has it. Extensions and trailers are
    thrown away."""

    def __init__(self) -> None:
        self.done = False
        self.size = 0
        """Bytes of the body so far."""
        self._before: bytes = b""
        """What isn't a whole line yet."""
        self._left: int = 0
        """Bytes of the present chunk that are to come, and the CRLF behind it; 0: a size is next."""
        self._trailer = -1
        """Bytes of the trailer so far; -1 before it begins."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """What of `data` is body; and, when the body is done, what is behind it. Raises
        `Refused`."""
        data, self._before = self._before + data, b""
        pieces: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                pieces.append(piece)
                self.size += len(piece)
                self._left -= len(piece)
                at += len(piece)
            elif self._left:
                end = data[at : at + self._left]
                if not b"\r\n"[2 - self._left :].startswith(end):
                    raise Refused(400, "A chunk is longer than it says")
                self._left -= len(end)
                at += len(end)
            elif (newline := data.find(b"\n", at)) >= 0:
                self._line(data[at:newline])
                at = newline + 1
            else:
                self._before, at = data[at:], len(data)
                if len(self._before) > _MAX_LINE:
                    raise Refused(400, "A chunk's size takes too much room")
        return b"".join(pieces), data[at:]

    def _line(self, line: bytes) -> None:
        """Take a line of a size or of the trailer, of which the empty one is the last."""
        if len(line) > _MAX_LINE or line[-1:] != b"\r":
            raise Refused(400, "A chunk's line ends oddly")
        if self._trailer >= 0:
            self._trailer += len(line) - 1
            if self._trailer > _MAX_TRAILER:
                raise Refused(400, "The trailer is too long")
            self.done = line == b"\r"
            return
        found = _SIZE_LINE.fullmatch(line)
        if found is None:
            raise Refused(400, "Invalid chunk size")
        if size := int(found[1], 16):
            self._left = size + 2
        else:
            self._trailer = 0


class Body:
    """What has come of a body and has nowhere to go yet: in memory, or in a file, which is made
    when there is something to put in it."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes that have come."""
        self.left = 0
        """Bytes of them that weren't read yet."""
        self.file: str | None = None
        """The file's name; None: it is in memory."""
        self._fd = -1
        self._memory = bytearray()

    def write(self, data: bytes) -> None:
        """Put `data` at the end. In a file: open(2) the first time, write(2). Raises `OSError`."""
        self.size += len(data)
        self.left += len(data)
        self._memory += data
        if self.file is not None:
            if self._fd < 0:
                flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
                self._fd = os.open(self.file, flags, 0o644)
            write_all(self._fd, self._memory)
            self._memory.clear()

    def read(self, count: int) -> bytes:
        """The next bytes; of a file, none if it has become shorter. pread(2), which raises
        `OSError`."""
        if self.file is not None:
            data = os.pread(self._fd, count, self.size - self.left)
        else:
            data = bytes(self._memory[:count])
            del self._memory[:count]
        self.left -= len(data)
        return data

    def purge(self) -> None:
        """Have nothing of it any more, and take the file away. Doing it twice is no harm."""
        self.left = 0
        self._memory.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0 and self.file is not None:
            os.close(fd)
            with suppress(OSError):
                os.unlink(self.file)
