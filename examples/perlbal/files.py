"""Files: opened, sent to clients, and written by them."""

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
"""A file's descriptor, the place of the first byte that is sent, and of that behind the last."""


def open_file(path: bytes) -> tuple[int, os.stat_result]:
    """The descriptor of what was found to be a regular file, and what it is: it may have been
    replaced by another since. open(2), fstat(2); raises `OSError`."""
    # Not waited for if it is a pipe by now, or somebody has a lease on it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    info = os.fstat(fd)
    if stat.S_ISREG(info.st_mode):
        return fd, info
    os.close(fd)
    raise FileNotFoundError


def code_of(error: Exception) -> int:
    """What a client is told where a file can't be had."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (EAGAIN, EMFILE, ENFILE, ENOMEM, ESTALE):
        return 503  # It may be had later.
    return 403 if number in (EACCES, EPERM) else 404


def opened(files: list[tuple[bytes, os.stat_result]]) -> Iterator[Part]:
    """Files that were found to be this, each opened when it is its turn. Raises `OSError`, also for
    one that is another by then: its length is promised."""
    for path, found in files:
        fd, info = open_file(path)
        if (info.st_size, info.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
            os.close(fd)
            raise OSError(ESTALE, "replaced by another", path)
        yield fd, 0, info.st_size


class SentFiles:
    """Files that are on their way to a client, one after another: sendfile(2), where the system
    has it."""

    def __init__(self, client: Client, parts: Iterator[Part]) -> None:
        """`parts` opens one after another. Raises what that does for the first."""
        self._client = client
        self._parts = parts
        self._fd, self._offset, self._end = next(parts, (-1, 0, 0))

    def go_on(self) -> None:
        """Send some more, as there is room, and not more than a piece, as others have their turn
        between."""
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
            # Not with this kind of file, or not on this system; or the client is gone, which
            # writing will tell.
            data = os.pread(self._fd, count, self._offset)
            sent = len(data)
            client.write(data)
        self._offset += sent
        if not sent:
            client.close("the file has shrunk")  # Its length is promised.
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
            os.close(fd)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """write(2) until all is written. Raises `OSError`."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _make_folders(folder: str) -> None:
    """Make a folder and those that it is in. Raises `OSError`."""
    # os.makedirs calls itself for those that it is in, and there may be more than on Python's stack.
    missing: list[str] = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    while missing:
        os.makedirs(missing.pop(), 0o755, exist_ok=True)  # Another process may have been faster.


class NewFile:
    """A file that PUT writes; one whose sum is to be checked has another name until it is."""

    def __init__(self, path: str, md5: str) -> None:
        """`md5`: the sum in base64, or empty. Makes folders that aren't there. Raises `OSError`."""
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
        """Put `data` at its end. Raises `OSError`."""
        write_all(self._file.fileno(), data)
        if self._name != self._path:
            self._sum.update(data)

    def finish(self) -> tuple[int, str]:
        """It is whole: the code and the text of the answer. Raises `OSError`."""
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
        """Close it if it is open, and take away what wasn't checked. Twice is no harm."""
        self._file.close()
        if self._name != self._path:
            with suppress(OSError):
                os.unlink(self._name)
            self._name = self._path
