"""The kernel confirms that only the listed calls are made: programs on the package run under a
filter that kills at any other call (see `seccomp.py`), and die with one call less on the list."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import needs, seccomp
from tests.clients import PATIENCE, Server
from tests.strace import run_group

pytestmark = pytest.mark.needs("seccomp")

ROOT = Path(__file__).parents[1]
SCENARIOS = ROOT / "tests" / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.pl"))
BACKENDS = ["epoll", "poll"]
WAITS = {"epoll": "?epoll_wait,epoll_pwait", "poll": "poll"}


class Guard(NamedTuple):
    """One of the two filters that programs run under."""

    profile: Path | None = None
    """An OCI profile that applies from the exec on; None for the list of `seccomp.py`."""

    def command(self, *arguments: str, without: str = "") -> list[str]:
        """The command that runs a program under it, without the call `without`."""
        options = ["--without", without] if without else []
        if self.profile is not None:
            options += ["--profile", str(self.profile), sys.executable]
            if arguments == ("echo",):
                arguments = ("-m", "danga_raw", "echo")
        return [sys.executable, "-m", "tests.seccomp", *options, *arguments]

    def ended(self, backend: str, *arguments: str, without: str = "") -> int:
        """Run a program under it, and return the status."""
        command = self.command(*arguments, without=without)
        done = subprocess.run(
            command, env=environment(backend), capture_output=True, timeout=PATIENCE, check=False
        )
        return done.returncode

    def killed_at(self, backend: str, *arguments: str) -> str:
        """The last call of a program that it killed, to find out why."""
        if not needs.present("strace"):
            return "strace would tell at which call"
        command = ["strace", "-qq", "-o", "/dev/stdout", *self.command(*arguments)]
        said, _ = run_group(command, environment(backend), PATIENCE)
        return said[-200:]

    @contextlib.contextmanager
    def serving(self, backend: str, *arguments: str) -> Iterator[Server]:
        """A server under it, which lives until a signal ends it, and then ends by itself."""
        with subprocess.Popen(
            self.command(*arguments), env=environment(backend), stdout=subprocess.PIPE
        ) as process:
            try:
                assert process.stdout is not None
                greeting = process.stdout.readline().decode().strip()
                if not greeting.startswith("listening on "):
                    pytest.fail(f"ended with {process.wait(PATIENCE)}")
                server = Server(process, greeting, Path(os.devnull))
                try:
                    yield server
                finally:
                    assert process.poll() != -signal.SIGSYS
                # The interpreter's exit is allowed too.
                server.stop()
            finally:
                process.kill()


LISTED = Guard()


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Guard:
    info = [sys.executable, "-m", "danga_raw", "info", "--seccomp"]
    path = tmp_path_factory.mktemp("seccomp") / "profile.json"
    path.write_bytes(subprocess.run(info, cwd=ROOT, check=True, capture_output=True).stdout)
    return Guard(path)


@pytest.fixture(params=["list", "profile"])
def guard(request: pytest.FixtureRequest, profiled: Guard) -> Guard:
    return profiled if request.param == "profile" else LISTED


def environment(backend: str) -> Mapping[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "DANGA_RAW_BACKEND": backend}


# --- to their end -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NAMES if needs.REQUIRED else NAMES[::6])
def test_scenario_makes_no_call_beyond_the_list(guard: Guard, name: str, backend: str) -> None:
    script = str(SCENARIOS / f"{name}.py")
    source = (SCENARIOS / f"{name}.pl").read_text()
    inject = re.findall(r"^# inject epoll_wait:(\S+)$", source, re.MULTILINE)
    if inject:
        needs.need("strace")
        errors = [f"-einject={WAITS[backend]}:{error}" for error in inject]
        strace = ["strace", "-qq", "-o", os.devnull, *errors]
        said, status = run_group([*strace, *guard.command(script)], environment(backend), PATIENCE)
        assert status == 0, said
    else:
        status = guard.ended(backend, script)
        assert status == 0, guard.killed_at(backend, script)


@pytest.mark.needs("ab", "curl")
@pytest.mark.parametrize("backend", BACKENDS)
def test_file_server_under_load_makes_no_call_beyond_the_list(
    guard: Guard, backend: str, tmp_path: Path
) -> None:
    (tmp_path / "small").write_bytes(b"a small file\n")
    (tmp_path / "large").write_bytes(bytes(range(256)) * 8192)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text("front")
    httpd = str(ROOT / "examples" / "httpd.py")
    with guard.serving(backend, httpd, "--port=0", str(tmp_path)) as server:
        url = f"http://127.0.0.1:{server.port}"
        for options in (["-k"], []):
            load = ["ab", "-q", *options, "-c", "40", "-n", "1000", f"{url}/small"]
            report = subprocess.run(load, check=True, capture_output=True, text=True).stdout
            assert re.search(r"Failed requests: +0\n", report)
        curl = ["curl", "-s", "-D-", f"{url}/large", f"{url}/none", f"{url}/folder/"]
        got = subprocess.run(curl, check=True, capture_output=True, timeout=PATIENCE).stdout
        assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"404", b"200"]
        assert b" 400 " in server.talk(b"\x00\xff nonsense\r\n\r\n")
    assert server.process.returncode == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_lock_server_makes_no_call_beyond_the_list(guard: Guard, backend: str) -> None:
    with guard.serving(backend, str(ROOT / "examples" / "ddlockd.py"), "0") as server:
        for turn in range(40):
            locks = "".join(f"trylock lock={turn}-{n}\r\nlocks\r\n" for n in range(9))
            answer = server.talk(locks.encode(), b"\xe9 \x01\r\n", b"releaselock lock=1\r\n")
            assert answer.count(b"OK \r\n") == 9
    assert server.process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("backend", BACKENDS)
def test_echo_server_makes_no_call_beyond_the_list(guard: Guard, backend: str) -> None:
    data = bytes(range(256)) * 8192  # more than the buffers hold: the queue is used
    with guard.serving(backend, "echo") as server:
        for _ in range(5):
            with server.connect() as idle, server.connect(4096) as client:
                client.sendall(b"hello")
                sender = threading.Thread(target=client.sendall, args=(data,))
                sender.start()
                got = b""
                while len(got) < len(data) + 5:
                    got += client.recv(65536)
                sender.join()
                assert got == b"hello" + data
                reset(idle)
    assert server.process.returncode == 0


def reset(client: socket.socket) -> None:
    """Close a connection so that the other side gets an error."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# --- the filter bites ---------------------------------------------------------------------------

NEEDED = {
    "read": "end_of_file",
    "write": "end_of_file",
    "close": "end_of_file",
    "setsockopt": "cork",
    "getrusage": "profiling",
}
"""Call -> a scenario that can't do without it."""

ALONE = {"epoll": ["epoll_create1", "epoll_ctl", "epoll_wait"], "poll": ["poll", "fstat"]}
"""The calls that any scenario needs on one backend."""


@pytest.mark.parametrize(
    "backend, call, name",
    [(backend, call, name) for backend in BACKENDS for call, name in NEEDED.items()]
    + [(backend, call, "cork") for backend, calls in ALONE.items() for call in calls],
)
def test_program_dies_if_any_call_of_the_package_is_not_listed(
    backend: str, call: str, name: str
) -> None:
    script = str(SCENARIOS / f"{name}.py")
    status = LISTED.ended(backend, script, without=seccomp.kernels_name(call))
    assert status == -signal.SIGSYS


@pytest.mark.parametrize("call", ["fstat", "fcntl"])
def test_server_dies_if_the_calls_of_python_on_a_signal_pipe_are_not_listed(call: str) -> None:
    assert LISTED.ended("epoll", "echo", without=seccomp.kernels_name(call)) == -signal.SIGSYS


@pytest.mark.parametrize("backend", BACKENDS)
def test_program_dies_if_a_call_of_its_own_is_not_listed(backend: str) -> None:
    status = LISTED.ended(backend, str(SCENARIOS / "end_of_file.py"), without="socketpair")
    assert status == -signal.SIGSYS


@pytest.mark.parametrize("call", ["epoll_wait", "mmap", "rt_sigaction", "execve"])
def test_program_dies_if_a_call_is_not_in_the_profile(profiled: Guard, call: str) -> None:
    call = seccomp.kernels_name(call)
    status = profiled.ended("epoll", str(SCENARIOS / "end_of_file.py"), without=call)
    assert status == -signal.SIGSYS


def test_unlisted_call_kills_the_program() -> None:
    names = sorted(seccomp.allowed("epoll", "scenarios"))
    code = f"import os; from tests.seccomp import install; install({names})\n"
    for last, status in (("os.getpid()", 0), ("os.getppid()", -signal.SIGSYS)):
        # Nothing is printed in between: a C library may make a call for standard output.
        done = subprocess.run([sys.executable, "-c", f"{code}{last}\nos._exit(0)"], cwd=ROOT)
        assert done.returncode == status
