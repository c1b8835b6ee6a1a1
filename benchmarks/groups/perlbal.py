"""examples/perlbal compared with Perlbal and nginx: as a proxy, as a web server, and when idle."""

import re
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import instructions
from benchmarks.groups.cpu import REQUESTS, user_seconds
from benchmarks.load import ANSWER_SECONDS
from benchmarks.peers import PEERS, SERVERS, nothing, program
from benchmarks.processes import PYTHON, ROOT, Server, as_we_were, environment, memory, running
from benchmarks.table import Bench, Figures, Group, Row, Step

START_SECONDS = 60  # under valgrind
BODY = b"x" * 1024
LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Peer:
    """A server that proxies and serves: its configuration file, and the command to start it."""

    name: str
    title: str
    missing: Callable[[], str]
    configuration: str
    command: Callable[[Path], list[str]]


def no_perlbal() -> str:
    return program("perlbal", "perlbal libbsd-resource-perl")()


def perlbal(file: Path) -> list[str]:
    return ["perl", shutil.which("perlbal") or "perlbal", "--config", str(file)]


def nginx_program() -> str:
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin") or ""


PROXIES = {
    peer.name: peer
    for peer in (
        Peer(
            "ours",
            "examples/perlbal",
            nothing,
            "perlbal.conf",
            lambda file: [PYTHON, str(ROOT / "examples" / "perlbal"), str(file)],
        ),
        Peer("perlbal", "Perlbal, pure Perl", no_perlbal, "perlbal.conf", perlbal),
        Peer(
            "nginx",
            "nginx",
            lambda: "" if nginx_program() else "apt-get install nginx",
            "nginx.conf",
            lambda file: [nginx_program(), "-c", str(file), "-p", str(file.parent)],
        ),
    )
}
SERVICES = {"proxy": "as a proxy", "web": "as a web server, 1 KiB"}


def present() -> list[Peer]:
    return [peer for peer in PROXIES.values() if not peer.missing()]


@dataclass
class Deployment:
    """A running peer, with a port for each of its services."""

    pid: int
    ports: Mapping[str, int]


@contextmanager
def proxying(
    bench: Bench, peer: Peer, wrapper: tuple[str, ...] = (), pinned: bool = False
) -> Iterator[Deployment]:
    """Start a peer in its own folder with a backend, both on our processor if `pinned`."""
    env = environment(bench.package)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=bench.scratch)))
        (folder / "1k.txt").write_bytes(BODY)
        backend: Server = stack.enter_context(
            running(PEERS["danga_raw"].command(bench.scratch), env, pinned)
        )
        ports = {"backend": backend.port}
        for name in ("proxy", "web", "management"):
            # Bound, so that no other program gets the port; a socket with SO_REUSEADDR can listen.
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", 0))
            ports[name] = holder.getsockname()[1]
        file = folder / peer.configuration
        text = (SERVERS / peer.configuration).read_text()
        file.write_text(text.format(folder=folder, **ports))
        stack.enter_context(as_we_were())
        process = subprocess.Popen(
            [*wrapper, *peer.command(file)],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(process, ports["management"], peer.title)
            yield Deployment(process.pid, ports)
        finally:
            finish(process, peer, ports["management"])


def wait_for(process: subprocess.Popen[bytes], port: int, title: str) -> None:
    limit = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"{title} did not start") from None
            time.sleep(0.02)


def finish(process: subprocess.Popen[bytes], peer: Peer, port: int) -> None:
    """End it in a way that lets valgrind write its counts."""
    if process.poll() is None and peer.configuration == "perlbal.conf":
        with socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS) as manager:
            manager.sendall(b"shutdown\r\n")
            manager.recv(1)
        process.wait(ANSWER_SECONDS)
        return
    # nginx in one process misses a signal that arrives between its check for signals and its wait,
    # as often happens under valgrind: it then waits for minutes, or for the next signal.
    for _ in range(ANSWER_SECONDS):
        process.terminate()
        try:
            process.wait(1)
            return
        except subprocess.TimeoutExpired:
            pass
    process.wait(0)


class Client:
    """A persistent connection to a service."""

    def __init__(self, port: int, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, times: int = 1) -> None:
        for _ in range(times):
            self.socket.sendall(self.request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += self._more(answer)
            head, _, body = answer.partition(b"\r\n\r\n")
            found = LENGTH.search(head + b"\r\n")
            if b" 200 " not in head or not found:
                raise RuntimeError(f"answered {answer!r}")
            while len(body) < int(found[1]):
                body += self._more(body)

    def _more(self, before: bytes) -> bytes:
        data = self.socket.recv(4096)
        if not data:
            raise RuntimeError(f"hung up on behind {before!r}")
        return data


def path_of(service: str) -> str:
    return "/1k.txt" if service == "web" else "/"


def a_request(bench: Bench, peer: Peer, service: str) -> float:
    """User-mode instructions per request, on one persistent connection and one to the backend."""

    with proxying(bench, peer):
        pass  # a first run may compile its imports

    def served(requests: int) -> int:
        with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
            out = f"{folder}/callgrind.out"
            with proxying(bench, peer, tuple(instructions.valgrind(out))) as deployment:
                with Client(deployment.ports[service], path_of(service)) as client:
                    client.ask(requests)
            return instructions.total(out)

    return instructions.of_each(served, 50, bench.count(450, 250))


def under_wrk(bench: Bench, peer: Peer, service: str) -> float:
    """Microseconds of user CPU per request, 64 connections."""
    with proxying(bench, peer) as deployment:
        url = f"http://127.0.0.1:{deployment.ports[service]}{path_of(service)}"
        before = user_seconds(deployment.pid)
        command = ["wrk", "-t1", "-c64", f"-d{bench.count(2, 1)}s", "--timeout", "30s", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = user_seconds(deployment.pid) - before
    found = REQUESTS.search(done.stdout)
    if not found or "Non-2xx" in done.stdout or not int(found[1]):
        raise RuntimeError(f"{peer.title} under wrk: {done.stdout}")
    return used / int(found[1]) * 1e6


def an_idle_client(bench: Bench, peer: Peer) -> float:
    """Bytes of anonymous resident memory per client that has sent no request yet."""
    fewer, more = 500, bench.count(2500, 1500)
    with proxying(bench, peer) as deployment, ExitStack() as clients:

        def connect(count: int) -> None:
            for number in range(1, count + 1):
                client = clients.enter_context(Client(deployment.ports["proxy"], "/"))
                if number % 250 == 0:
                    client.ask()  # the server has accepted it and all before it

        connect(fewer)
        before = memory(deployment.pid, "RssAnon")
        connect(more - fewer)
        return (memory(deployment.pid, "RssAnon") - before) / (more - fewer)


def plan(bench: Bench) -> list[Step]:
    rounds = bench.count(5, 1)
    seen: dict[str, list[float]] = {}

    def counted(peer: Peer, service: str) -> Step:
        def measure(figures: Figures) -> None:
            figures[f"perlbal.{service}.{peer.name}"] = (a_request(bench, peer, service),)

        return Step(f"instructions per request, {SERVICES[service]}: {peer.title}", measure)

    def timed(peer: Peer, service: str, number: int) -> Step:
        def measure(figures: Figures) -> None:
            name = f"perlbal.cpu.{service}.{peer.name}"
            seen.setdefault(name, []).append(under_wrk(bench, peer, service))
            if number == rounds:
                figures[name] = (statistics.median(seen[name]),)

        what = f"user CPU under wrk, {SERVICES[service]}, round {number} of {rounds}"
        return Step(f"{what}: {peer.title}", measure)

    def weighed(peer: Peer) -> Step:
        def measure(figures: Figures) -> None:
            figures[f"perlbal.memory.{peer.name}"] = (an_idle_client(bench, peer),)

        return Step(f"memory for an idle client: {peer.title}", measure)

    steps = [counted(peer, service) for service in SERVICES for peer in present()]
    if shutil.which("wrk"):
        steps += [
            timed(peer, service, number)
            for service in SERVICES
            for number in range(1, rounds + 1)
            for peer in present()
        ]
    return [*steps, *(weighed(peer) for peer in present())]


def over(service: str, kind: str, what: str, must: float, aim: float | None) -> tuple[Row, Row]:
    """Our figure divided by the original's, with a limit, and by nginx's, without one."""
    title = f"examples/perlbal {SERVICES[service]}, {what}"
    ours = f"perlbal{kind}.{service}.ours"
    return (
        Row(f"{title}, over Perlbal", ours, f"perlbal{kind}.{service}.perlbal", must=must, aim=aim),
        Row(f"{title}, over nginx", ours, f"perlbal{kind}.{service}.nginx"),
    )


GROUP = Group(
    "perlbal",
    "examples/perlbal beside Perlbal and nginx, as a proxy and as a web server",
    (
        *over("proxy", "", "instructions per request", 0.6, 0.48),
        *over("web", "", "instructions per request", 0.5, 0.35),
        *over("proxy", ".cpu", "user CPU under wrk", 0.6, None),
        *over("web", ".cpu", "user CPU under wrk", 0.5, None),
        Row(
            "examples/perlbal, memory for an idle client",
            "perlbal.memory.ours",
            must=3072,
            unit="bytes",
        ),
        Row("Perlbal, memory for an idle client", "perlbal.memory.perlbal", unit="bytes"),
        Row("nginx, memory for an idle client", "perlbal.memory.nginx", unit="bytes"),
    ),
    plan,
)
