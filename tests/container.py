"""Makes a root folder that contains only what a server on this package needs.

    python -m tests.container [FOLDER]

The server is the README's. It needs the files that it has loaded after serving a client: the
modules that aren't built in, and the libraries of dl_iterate_phdr(3). The folder gets those files,
under their own names, and the server: no shell, no loader's cache, no /proc. Then the server serves
a client from there, and the files are counted. Needs root, or unshare(1).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from danga_raw._clibrary import where

ROOT = Path(__file__).parents[1]
PATIENCE = 60

SERVER = Path("/server.py")
"""The server's path in the root; the package is next to it."""

LEAN = ("-E", "-s", "-S", "-B")
"""Options for Python: no environment, no site, no writing. The script finds the package."""

# Until it has printed its list, it may import nothing that the server doesn't.
NEEDS = """
import _signal, os, sys

opened = []
sys.addaudithook(lambda event, given: opened.append(given[0]) if event == "open" else None)

def tell(*_):
    # A module may put another in its place: what was opened is told too.
    modules, files = list(sys.modules.values()), [*opened, os.__file__]
    from ctypes import CDLL, CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_size_t, c_void_p
    class dl_phdr_info(Structure):
        _fields_ = [("dlpi_addr", c_void_p), ("dlpi_name", c_char_p)]
    @CFUNCTYPE(c_int, POINTER(dl_phdr_info), c_size_t, c_void_p)
    def library(info, size, data):
        print(info[0].dlpi_name.decode())
        return 0
    CDLL(None).dl_iterate_phdr(library, None)
    for module in modules:
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.origin != "frozen":
            files.append(getattr(module, "__file__", None))
    print(*files, sep="\\n")
    sys.stdout.flush()
    os._exit(0)

_signal.signal(_signal.SIGTERM, tell)
sys.path[0] = sys.argv.pop(1)
exec(compile(sys.argv.pop(1), "server.py", "exec"))
"""


def server() -> str:
    """The README's server."""
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^<!-- test: echo -->\n```python\n(.*?)^```", readme, re.M | re.S)
    assert found
    return found[1]


def interpreter() -> Path:
    """The executable of this Python, outside any virtual environment."""
    return Path(os.path.realpath(sys.executable))


@contextmanager
def serving(
    command: Sequence[str], **environment: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A running server, and the port that it has printed. Raises `OSError` if it prints none."""
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            if not line:
                raise OSError(process.stderr.read().strip() or "the server said nothing")
            yield process, int(line.split()[-1])
        finally:
            process.kill()


def talk(port: int) -> None:
    """Have an echo server answer a client that sends more than fits into the buffers."""
    said = bytes(range(256)) * 16384
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        sender = threading.Thread(target=client.sendall, args=(said,))
        sender.start()
        answer = bytearray()
        while len(answer) < len(said) and (piece := client.recv(1 << 20)):
            answer += piece
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert answer == said


def needs() -> dict[Path, Path]:
    """The files that the server has loaded after serving a client: path here -> path there."""
    program = interpreter()
    with tempfile.TemporaryDirectory() as folder:
        # Not with -c, for which Python imports more.
        script = Path(folder, "needs.py")
        script.write_text(NEEDS)
        command = [str(program), *LEAN, str(script), str(ROOT), server()]
        with serving(command) as (process, port):
            talk(port)
            process.send_signal(signal.SIGTERM)
            told, errors = process.communicate(timeout=PATIENCE)
    if process.returncode:
        raise OSError(errors)
    found = {program: program}
    for line in told.splitlines():
        path = Path(os.path.normpath(line))
        if path.parent.name == "__pycache__":
            path = path.parent.with_name(path.name.partition(".")[0] + ".py")
        if not path.is_absolute() or not path.is_file():
            continue  # the program itself, the vDSO, a module without a file
        if path.is_relative_to(ROOT):
            found[path] = Path("/", path.relative_to(ROOT))
        else:
            found[path] = path
    return found


def make(root: Path) -> dict[Path, Path]:
    """Copy the server, and what it needs, below `root`; the copied files, and their new paths."""
    copies = needs()
    for here, there in copies.items():
        target = Path(f"{root}{there}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, target)
    Path(f"{root}{SERVER}").write_text(server())
    return copies


def changed_root(root: Path) -> list[str]:
    """The beginning of a command that runs with `root` as its root folder."""
    tool, *options = (
        ["chroot", str(root)]
        if os.geteuid() == 0
        else ["unshare", "--map-root-user", f"--root={root}"]
    )
    program = shutil.which(tool)
    if program is None:
        raise OSError(f"there is no {tool} here")
    return [program, *options]


def serve(root: Path, **environment: str) -> None:
    """Have the server in `root` serve a client, without any error message."""
    command = [*changed_root(root), str(interpreter()), *LEAN, str(SERVER)]
    with serving(command, **environment) as (process, port):
        talk(port)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    if errors or process.returncode != -signal.SIGTERM:
        raise OSError(errors or f"the server ended with {process.returncode}")


def figures(root: Path) -> str:
    """A line about what is in `root`."""
    files = [path for path in root.rglob("*") if path.is_file()]
    library = [path for path in files if path.suffix == ".py"]
    own = [path for path in library if path.parent in (root, root / "danga_raw")]
    standard = [path for path in library if path not in own]
    machine = [path for path in files if path.suffix != ".py"]

    def size(paths: Sequence[Path]) -> str:
        return f"{len(paths)} files, {sum(path.stat().st_size for path in paths) / 1e6:.1f} MB"

    return (
        f"{size(files)}: the interpreter, its extension modules and the C library {size(machine)}; "
        f"the standard library {size(standard)}; danga_raw and the server {size(own)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.container", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="default: one that is deleted again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (options.folder or Path(scratch)).resolve()
        make(root)
        serve(root)
        print(f"Python {platform.python_version()}, {where()}: {figures(root)}")


if __name__ == "__main__":
    main()
