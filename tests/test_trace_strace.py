"""The package's own trace against strace's, of the same run, line for line.

tests/audit/lines.py says how the two are compared.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from danga_raw._clibrary import MUSL
from danga_raw._kernel import HERE
from danga_raw._strace import CALLS
from tests.audit.lines import compare as held_against
from tests.audit.lines import packages_lines
from tests.audit.programs import FORMS, PARTS, PUMP, READY
from tests.clients import PATIENCE, read_to_end
from tests.needs import REQUIRED

pytestmark = pytest.mark.needs("strace")

ROOT = Path(__file__).parent.parent
SCENARIOS = Path(__file__).parent / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.pl"))
TRACED = ",".join(f"?{name}" for name, _ in CALLS.values() if name not in ("kqueue", "kevent"))


def compare(kind: str, theirs: str, own: str, ended: bool = False) -> list[str]:
    """The lines of the package's calls, which must be the same in both."""
    found = held_against(kind, theirs, own, CALLS, ended=ended, words=HERE.libc != MUSL)
    assert found, f"{kind}: no line of the package's"
    return found


# --- running under both -------------------------------------------------------------------------


def command(folder: Path, argv: Sequence[str], inject: Sequence[str] = ()) -> list[str]:
    options = [word for expression in inject for word in ("-e", f"inject={expression}")]
    strace = ["strace", "-qq", "-o", str(folder / "theirs"), "-e", f"trace={TRACED}", *options]
    trace = [sys.executable, "-m", "danga_raw", "trace", "-o", str(folder / "own")]
    return [*strace, *trace, str(ROOT / "tests" / "announced.py"), *argv]


def environment(backend: str = "epoll") -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANGA_RAW_")}
    # Where the interpreter's reads are counted, they must be the same in every run.
    more = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return {**kept, **more, "DANGA_RAW_BACKEND": backend}


def both(
    folder: Path, *argv: str, inject: Sequence[str] = (), backend: str = "epoll"
) -> tuple[str, str]:
    """strace's text and the package's for a program that ends by itself."""
    done = subprocess.run(
        command(folder, argv, inject),
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    theirs, own = folder / "theirs", folder / "own"
    assert done.returncode == 0, done.stderr.decode()
    return theirs.read_text(), own.read_text()


@contextmanager
def served(folder: Path, backend: str, *argv: str) -> Iterator[int]:
    """Run a server under both, until a SIGTERM at the end; yields its port."""
    with subprocess.Popen(
        command(folder, argv),
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as strace:
        try:
            assert strace.stdout is not None
            greeting = strace.stdout.readline().strip().rstrip("/")
            assert greeting.startswith("listening on ")
            yield int(greeting.rpartition(":")[2])
            children = Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            strace.wait(PATIENCE)
        finally:
            if strace.poll() is None:
                os.killpg(strace.pid, signal.SIGKILL)


# --- what is run --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES if REQUIRED else NAMES[::2])
def test_scenario_is_traced_as_by_strace(name: str, tmp_path: Path) -> None:
    source = (SCENARIOS / f"{name}.pl").read_text()
    inject = re.findall(r"^# inject epoll_wait:(\S+)$", source, re.MULTILINE)
    inject = [f"{CALLS['epoll_wait'][0]}:{expression}" for expression in inject]
    theirs, own = both(tmp_path, str(SCENARIOS / f"{name}.py"), inject=inject)
    lines = compare("scenarios", theirs, own)
    assert lines[0].startswith("epoll_create1(EPOLL_CLOEXEC)")


@pytest.mark.parametrize("name", NAMES if REQUIRED else NAMES[1::6])
def test_scenario_on_poll_is_traced_as_by_strace(name: str, tmp_path: Path) -> None:
    source = (SCENARIOS / f"{name}.pl").read_text()
    inject = re.findall(r"^# inject epoll_wait:(\S+)$", source, re.MULTILINE)
    inject = [f"{CALLS['poll'][0]}:{expression}" for expression in inject]
    theirs, own = both(tmp_path, str(SCENARIOS / f"{name}.py"), inject=inject, backend="poll")
    compare("scenarios on poll", theirs, own)


@pytest.mark.needs("ab", "curl")
@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_file_server_under_load_is_traced_as_by_strace(backend: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(b"a small file\n")
    (tree / "large").write_bytes(bytes(range(256)) * 4096)
    requests = "1200" if REQUIRED else "300"
    server = str(ROOT / "examples" / "httpd.py")
    with served(tmp_path, backend, server, "--port", "0", str(tree)) as port:
        url = f"http://127.0.0.1:{port}"
        for options in (["-k", "-c", "40"], ["-c", "8"]):
            load = ["ab", "-q", *options, "-n", requests, f"{url}/small"]
            subprocess.run(load, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
        curl = ["curl", "-s", f"{url}/large", f"{url}/none", "-I", f"{url}/small"]
        subprocess.run(curl, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
    theirs, own = (tmp_path / name for name in ("theirs", "own"))
    lines = compare(f"httpd on {backend}", theirs.read_text(), own.read_text(), ended=True)
    assert any(line.startswith("write(") for line in lines)


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_lock_server_under_load_is_traced_as_by_strace(backend: str, tmp_path: Path) -> None:
    with served(tmp_path, backend, str(ROOT / "examples" / "ddlockd.py"), "0") as port:
        for turn in range(40 if REQUIRED else 10):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                for number in range(5):
                    lock = f"lock={turn}-{number}"
                    lines = f"trylock {lock}\r\n\u00e9 \x01\r\nreleaselock {lock}\r\n"
                    client.sendall(lines.encode())
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client).count(b"OK") == 10
    theirs, own = (tmp_path / name for name in ("theirs", "own"))
    compare(f"ddlockd on {backend}", theirs.read_text(), own.read_text(), ended=True)


FAILURES = [
    *((name, error) for name in ("epoll_wait", "poll") for error in ("EINTR", "ENOMEM", "EBADF")),
    *(("read", error) for error in ("EINTR", "EAGAIN", "ECONNRESET", "ENOMEM")),
    *(("write", error) for error in ("EINTR", "EAGAIN", "ECONNRESET", "ENOMEM", "EPIPE")),
    *(("epoll_ctl", error) for error in ("ENOMEM", "ENOSPC")),
    ("close", "EIO"),
    ("setsockopt", "ENOPROTOOPT"),
]


@pytest.mark.parametrize(("name", "error"), FAILURES if REQUIRED else FAILURES[::2])
def test_failing_call_is_traced_as_by_strace(name: str, error: str, tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP)
    backend = "poll" if name == "poll" else "epoll"
    name = CALLS[name][0]
    calm, own = both(tmp_path, str(pump), "5", backend=backend)
    compare("undisturbed", calm, own)
    lines = calm.splitlines()
    places = [
        sum(other.startswith(f"{name}(") for other in lines[: at + 1])
        for at, line in packages_lines(calm, CALLS)
        if line.startswith(f"{name}(")
    ]
    for place in {places[0], places[len(places) // 2], places[-1]} if REQUIRED else places[:1]:
        inject = f"{name}:error={error}:when={place}"
        theirs, own = both(tmp_path, str(pump), "5", inject=[inject], backend=backend)
        assert theirs.count("(INJECTED)") == 1
        found = compare("failures", theirs, own)
        seen = any(f"= -1 {error}" in line for line in found if line.startswith(f"{name}("))
        assert seen is not (error == "EINTR" and name in ("read", "write"))


def test_every_form_of_an_argument_is_printed_as_by_strace(tmp_path: Path) -> None:
    forms = tmp_path / "forms.py"
    forms.write_text(FORMS)
    lines = compare("forms", *both(tmp_path, str(forms)))
    assert len(lines) > 1100


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_listeners_connections_wakers_and_signals_are_traced_as_by_strace(
    backend: str, tmp_path: Path
) -> None:
    parts = tmp_path / "parts.py"
    parts.write_text(PARTS)
    signals = {int(number) for number in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP}
    argv = [str(parts), *map(str, sorted(signals))]
    lines = compare(f"parts on {backend}", *both(tmp_path, *argv, backend=backend))
    new = "accept socket connect getsockopt setblocking signal pipe2 getsockname".split()
    made = {line.partition("(")[0] for line in lines}
    assert made >= {CALLS[name][0] for name in new}
    for error in ("EAGAIN", "EMFILE", "EINPROGRESS", "ENOENT", "ECONNREFUSED"):
        assert any(f"= -1 {error}" in line or f"[{error}]" in line for line in lines), error


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("accept", "ECONNABORTED"),
        ("accept", "EINTR"),
        ("accept", "ENFILE"),
        ("connect", "ENETUNREACH"),
        ("setblocking", "ENOMEM"),
    ],
)
def test_failing_call_of_a_listener_or_a_client_is_traced_as_by_strace(
    name: str, error: str, tmp_path: Path
) -> None:
    parts = tmp_path / "parts.py"
    parts.write_text(PARTS)
    calm, _ = both(tmp_path, str(parts))
    kernels = CALLS[name][0]
    every = [line for line in calm.splitlines() if line.startswith(f"{kernels}(")]
    lines = [line for _, line in packages_lines(calm, CALLS)]
    if name == "setblocking":
        # Not for a listener, as the program would end without it, but for an accepted socket.
        lines = lines[lines.index(next(line for line in lines if line.startswith("accept4("))) :]
    first = next(line for line in lines if line.startswith(f"{kernels}("))
    inject = f"{kernels}:error={error}:when={every.index(first) + 1}"
    theirs, own = both(tmp_path, str(parts), inject=[inject])
    assert theirs.count("(INJECTED)") == 1
    lines = compare("failures of parts", theirs, own)
    assert any(f"= -1 {error}" in line for line in lines) is not (error == "EINTR")


def test_long_run_is_traced_as_by_strace(tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP)
    for backend in ("epoll", "poll"):
        theirs, own = both(tmp_path, str(pump), "60" if REQUIRED else "10", backend=backend)
        compare(f"a long run on {backend}", theirs, own)


def test_wait_with_more_events_than_strace_prints_is_abbreviated_alike(tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP.replace("range(20)", "range(50)"))
    for backend in ("epoll", "poll"):
        lines = compare("many events", *both(tmp_path, str(pump), "3", backend=backend))
        assert any(", ...]" in line for line in lines)


@pytest.mark.parametrize("events", ["POLLIN", "POLLIN | POLLOUT"])
@pytest.mark.parametrize("first", [40, 400])
def test_ready_descriptors_of_poll_are_abbreviated_as_by_strace(
    events: str, first: int, tmp_path: Path
) -> None:
    program = tmp_path / "ready.py"
    program.write_text(READY.format(events=events, first=first))
    lines = compare("ready", *both(tmp_path, str(program), backend="poll"))
    assert sum(line.startswith(f"{CALLS['poll'][0]}(") for line in lines) == 34
