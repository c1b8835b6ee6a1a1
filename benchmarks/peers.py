"""The servers to measure: the same minimal HTTP responder on each loop, each a file in servers/"""

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.processes import HERE, PYTHON

SERVERS = HERE / "servers"


@dataclass(frozen=True)
class Peer:
    """One server: `missing` says what it needs that isn't here, and is empty if it can run."""

    name: str
    title: str
    missing: Callable[[], str]
    command: Callable[[Path], list[str]]


def nothing() -> str:
    return ""


def module(name: str, package: str) -> Callable[[], str]:
    """Missing unless Python can import it."""

    def missing() -> str:
        return "" if importlib.util.find_spec(name) else f"pip install {package}"

    return missing


def program(name: str, package: str) -> Callable[[], str]:
    """Missing unless it is on the path."""

    def missing() -> str:
        return "" if shutil.which(name) else f"apt-get install {package}"

    return missing


@cache
def no_perl_original() -> str:
    if not shutil.which("perl"):
        return "apt-get install perl libdanga-socket-perl"
    found = subprocess.run(["perl", "-MDanga::Socket", "-e", "1"], capture_output=True)
    return "apt-get install libdanga-socket-perl" if found.returncode else ""


def python(file: str) -> Callable[[Path], list[str]]:
    return lambda scratch: [PYTHON, str(SERVERS / file)]


def perl(file: str) -> Callable[[Path], list[str]]:
    return lambda scratch: ["perl", str(SERVERS / file)]


def c(file: str) -> Callable[[Path], list[str]]:
    def compiled(scratch: Path) -> list[str]:
        binary = scratch / Path(file).stem
        if not binary.exists():
            subprocess.run(["gcc", "-O2", "-o", str(binary), str(SERVERS / file)], check=True)
        return [str(binary)]

    return compiled


PEERS = {
    peer.name: peer
    for peer in (
        Peer("c", "C, epoll", program("gcc", "gcc"), c("epoll.c")),
        Peer("uvloop", "uvloop Protocol", module("uvloop", "uvloop"), python("uvloop_protocol.py")),
        Peer("bare-os", "bare hand-written loop, os.read", nothing, python("select_epoll_os.py")),
        Peer("bare", "bare hand-written loop", nothing, python("select_epoll.py")),
        Peer("fair", "fair hand-written loop", nothing, python("select_epoll_fair.py")),
        Peer("danga_raw", "danga_raw", nothing, python("danga_raw_server.py")),
        Peer(
            "asyncore",
            "asyncore (pyasyncore)",
            module("asyncore", "pyasyncore"),
            python("pyasyncore_dispatcher.py"),
        ),
        Peer("asyncio", "asyncio Protocol", nothing, python("asyncio_protocol.py")),
        Peer(
            "gevent",
            "gevent StreamServer",
            module("gevent", "gevent"),
            python("gevent_streamserver.py"),
        ),
        Peer("perl", "Danga::Socket, Perl", no_perl_original, perl("danga_socket.pl")),
    )
}


def present() -> list[Peer]:
    return [peer for peer in PEERS.values() if not peer.missing()]


def left_out() -> dict[str, str]:
    """The peers that can't run here, each with how to install it."""
    return {peer.title: peer.missing() for peer in PEERS.values() if peer.missing()}
