"""Bodies of requests: decoding chunks, and storing bodies until a backend takes them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Final

from examples.perlbal.files import close_file, write_all
from examples.perlbal.heads import Refused

_MAX_LINE: Final = 1024
"""The longest line of a chunk's size and extensions, in bytes."""
_MAX_TRAILER: Final = 16_384
_SIZE_LINE: Final = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[^\0-\x08\n-\x1f\x7f]*)?\r")


class ChunkDecoder:
    """Decodes a chunked body, as strictly as RFC 9112, 7.1 defines it. Extensions and trailers are
    discarded."""

    def __init__(self) -> None:
        self.done = False
        self.size = 0
        """Bytes of the body so far."""
        self._partial: bytes = b""
        """The beginning of an incomplete line."""
        self._left: int = 0
        """Bytes left of the current chunk and the CRLF after it; 0 if a size line is next."""
        self._trailer = -1
        """Bytes of the trailer so far; -1 before it begins."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The part of `data` that belongs to the body, and what follows the body once that is done.
        Raises `Refused`."""
        data, self._partial = self._partial + data, b""
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
                self._partial, at = data[at:], len(data)
                if len(self._partial) > _MAX_LINE:
                    raise Refused(400, "A chunk's size takes too much room")
        return b"".join(pieces), data[at:]

    def _line(self, line: bytes) -> None:
        """Process a line with a size, or a line of the trailer, which ends with an empty one."""
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
    """The part of a body that waits for a backend, in memory or in a file. The file is created with
    the first write."""

    def __init__(self) -> None:
        self.size = 0
        """Bytes written."""
        self.left = 0
        """Bytes not read yet."""
        self.file: str | None = None
        """The file's name; None if it is in memory."""
        self._fd = -1
        self._memory = bytearray()

    def write(self, data: bytes) -> None:
        """Append `data`. For a file: open(2) the first time, write(2). Raises `OSError`."""
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
        """The next bytes; none if the file has shrunk. For a file: pread(2). Raises `OSError`."""
        if self.file is not None:
            data = os.pread(self._fd, count, self.size - self.left)
        else:
            data = bytes(self._memory[:count])
            del self._memory[:count]
        self.left -= len(data)
        return data

    def purge(self) -> None:
        """Discard it, and delete the file. May be called twice."""
        self.left = 0
        self._memory.clear()
        fd, self._fd = self._fd, -1
        if fd >= 0 and self.file is not None:
            close_file(fd)
            with suppress(OSError):
                os.unlink(self.file)
