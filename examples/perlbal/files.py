"""Opening files, sending them to clients, and writing what clients PUT."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import stat
from collections.abc import Iterator
from contextlib import suppress
from errno import EACCES, EAGAIN, EMFILE, ENFILE, ENOMEM, EPERM, ESTALE
from io import FileIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from examples.perlbal.clients import Client

PIECE: Final = 131_072
"""Bytes of a file that are sent at a time."""
Part = tuple[int, int, int]
"""A file's descriptor, and the start and end (exclusive) of the part to send."""


def close_file(fd: int) -> None:
    """close(2), for a file that isn't needed any more. Some file systems report only then that an
    earlier write has failed."""
    with suppress(OSError):
        os.close(fd)


def open_file(path: bytes) -> tuple[int, os.stat_result]:
    """Open a regular file, and return its descriptor and status. The status is that of the open
    file, which may have replaced another. open(2), fstat(2); raises `OSError`."""
    # O_NONBLOCK, in case it is a pipe by now or somebody has a lease on it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with suppress(OSError):
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            return fd, info
    close_file(fd)
    raise FileNotFoundError


def status_for(error: Exception) -> int:
    """The status code for a file that can't be opened."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (EAGAIN, EMFILE, ENFILE, ENOMEM, ESTALE):
        return 503  # It may work later.
    return 403 if number in (EACCES, EPERM) else 404


def open_in_turn(files: list[tuple[bytes, os.stat_result]]) -> Iterator[Part]:
    """Open each file when it is its turn. Raises `OSError`, also if a file was replaced after the
    stat, because its length has already been sent to the client."""
    for path, found in files:
        fd, info = open_file(path)
        if (info.st_size, info.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
            os.close(fd)
            raise OSError(ESTALE, "replaced by another", path)
        yield fd, 0, info.st_size


class FileSender:
    """Sends files to a client, one after another, with sendfile(2) if the system has it."""

    def __init__(self, client: Client, parts: Iterator[Part]) -> None:
        """`parts` opens the files one by one. Raises what it raises for the first."""
        self._client = client
        self._parts = parts
        self._fd, self._offset, self._end = next(parts, (-1, 0, 0))

    def go_on(self) -> None:
        """Send more while the socket is writable, but at most a piece, so that other connections
        get their turn."""
        client = self._client
        left = PIECE
        try:
            while left > 0 and client.file is self and not client.write_buf_size:
                if self._offset < self._end:
                    left -= self._send(min(left, self._end - self._offset))
                else:
                    self._next()
        except BlockingIOError:
            pass
        except OSError as error:
            client.server.log(f"reading a file: {error}")
            client.close("a file is gone")

    def _send(self, count: int) -> int:
        client = self._client
        assert client.fd is not None
        try:
            sent = os.sendfile(client.fd, self._fd, self._offset, count)
        except BlockingIOError:
            raise
        except (OSError, AttributeError):
            # sendfile(2) doesn't support this file, or the system doesn't have it, or the client
            # has closed, which the write will report.
            data = os.pread(self._fd, count, self._offset)
            sent = len(data)
            client.write(data)
        self._offset += sent
        if not sent:
            client.close("the file has shrunk")  # Its length has already been sent.
        return sent

    def _next(self) -> None:
        self.close()
        part = next(self._parts, None)
        if part is not None:
            self._fd, self._offset, self._end = part
            return
        self._client.file = None
        self._client.watch_write(False)
        self._client.finished()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_file(fd)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """write(2) until all is written. Raises `OSError`."""
    done = 0
    with memoryview(data) as view:  # An error's traceback would hold it, and so `data` at its size.
        while done < len(data):
            done += os.write(fd, view[done:])


def _make_folders(folder: str) -> None:
    """Create a directory and its parents. Raises `OSError`."""
    # os.makedirs is recursive, and the path may be deeper than Python's stack.
    missing: list[str] = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    while missing:
        os.makedirs(missing.pop(), 0o755, exist_ok=True)  # Another process may have created it.


class NewFile:
    """A file that a PUT writes. If it has a checksum, it has a temporary name until that is
    checked."""

    def __init__(self, path: str, md5: str) -> None:
        """`md5`: the base64 checksum, or empty. Creates missing directories. Raises `OSError`."""
        self._path = self._name = path
        self._expected = md5.strip().rstrip("=")
        self._sum = hashlib.md5(usedforsecurity=False)
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_TRUNC
        if md5:
            self._name += f".{os.getpid()}.{random.randrange(0xFFFFFFFF)}.tmp"
            flags |= os.O_EXCL
        try:
            fd = os.open(self._name, flags, 0o644)
        except FileNotFoundError:
            _make_folders(os.path.dirname(path))
            fd = os.open(self._name, flags, 0o644)
        self._file = FileIO(fd, "w")

    def write(self, data: bytes) -> None:
        """Append `data`. Raises `OSError`."""
        write_all(self._file.fileno(), data)
        if self._name != self._path:
            self._sum.update(data)

    def finish(self) -> tuple[int, str]:
        """Complete the file, and return the answer's code and text. Raises `OSError`."""
        self._file.close()
        if self._name == self._path:
            return 200, ""
        actual = base64.b64encode(self._sum.digest()).decode().rstrip("=")
        if actual != self._expected:
            text = f"Content-MD5 mismatch, expected: {self._expected} actual: {actual}"
            return 400, text
        try:
            os.rename(self._name, self._path)
        except OSError:
            return 500, "Error renaming file"
        self._name = self._path
        return 201, ""

    def abandon(self) -> None:
        """Close it if it is open, and delete it if it is unchecked. May be called twice."""
        with suppress(OSError):
            self._file.close()
        if self._name != self._path:
            with suppress(OSError):
                os.unlink(self._name)
            self._name = self._path
