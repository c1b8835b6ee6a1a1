"""A system with no compiler, no ldconfig and nothing in PATH: a minimal container, or musl.

`ctypes.util.find_library` runs programs (ldconfig, gcc, ld, objdump) to find the C library, and
finds none on musl. The package must find its functions without it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ECHO = """
import sys

REFUSED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
           "os.forkpty", "pty.spawn")

def refuse(event, arguments):
    if event in REFUSED:
        raise RuntimeError(f"{event} {arguments}: there is nothing to run here")

sys.addaudithook(refuse)

import danga_raw

assert "ctypes.util" not in sys.modules, "somebody may ask for find_library"

import socket

class Echo(danga_raw.Socket):
    def event_read(self):
        data = self.read(10)
        if data is None:
            self.close()
            self.loop.stop()
        elif data:
            self.write(data)

here, there = socket.socketpair()
here.setblocking(False)
with danga_raw.Loop(sys.argv[1]) as loop:
    Echo(here, loop=loop).watch_read(True)
    there.sendall(b"!")
    there.shutdown(socket.SHUT_WR)
    loop.run()
    print(loop.backend, there.recv(10), there.recv(10))
there.close()
"""


def backends() -> list[str]:
    return ["epoll", "poll"] if sys.platform == "linux" else ["poll"]


@pytest.mark.parametrize("backend", backends())
def test_byte_is_echoed_where_no_program_can_be_run(backend: str, tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # in case this Python itself needs it
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ECHO, backend],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == f"{backend} b'!' b''\n"


def test_guard_of_this_test_detects_find_library(tmp_path: Path) -> None:
    guard = ECHO.partition("import danga_raw")[0]
    # On Linux, find_library runs one program and falls back to another; both end here.
    code = f"{guard}\nimport ctypes.util\nctypes.util.find_library('c')\n"
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    if sys.platform == "linux":
        assert "there is nothing to run here" in done.stderr


WITHOUT_FILES = """
import logging
import os
import socket
import sys
import threading
from danga_raw import Listener, Loop, Socket, log_exception

class Client(Socket):
    def event_connect(self, error):
        self.watch_read(True)
        raise RuntimeError("on purpose")

    def close(self, reason=None):
        super().close(reason)
        dead, other = socket.socketpair()  # which block: that is warned about
        Socket(dead, loop)
        os.kill(os.getpid(), 15)

def work():
    work_is_done = []
    loop.call_soon_threadsafe(lambda: work_is_done.append(Client.connect(address, loop)))

with Loop(sys.argv[1]) as loop, socket.create_server(("127.0.0.1", 0)) as listener:
    loop.on_exception = log_exception
    loop.call_soon_threadsafe(lambda: None)
    address = listener.getsockname()
    Listener(listener, lambda connection, address: connection.close(), loop)
    try:
        Socket(None)
    except TypeError as error:
        log_exception(None, error)  # What Python itself imports for it hangs on its version.
    sys.meta_path.clear()
    loop.add_signal_handler(15, loop.stop)
    thread = threading.Thread(target=work)
    thread.start()
    loop.run()
    thread.join()
print("done")
"""


@pytest.mark.parametrize("backend", backends())
def test_program_without_access_to_its_files_imports_nothing_more(backend: str) -> None:
    """As the manual says: after a chroot(2), or in a sandbox, an import finds no files."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FILES, backend],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "done\n", done.stderr
    assert "RuntimeError: on purpose" in done.stderr and "socket that blocks" in done.stderr
    assert "ImportError" not in done.stderr and "ModuleNotFound" not in done.stderr
