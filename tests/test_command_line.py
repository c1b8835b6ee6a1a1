"""The command line: `python3 -m danga_raw` and `danga-raw`, without what its commands do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from errno import EADDRINUSE, EADDRNOTAVAIL
from pathlib import Path

import pytest

from danga_raw import __version__
from tests.clients import PATIENCE

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "danga_raw"]

Ended = subprocess.CompletedProcess[str]


def run(*argv: str, command: list[str] | None = None) -> Ended:
    return subprocess.run(
        [*(COMMAND if command is None else command), *argv],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_usage_shows_the_command_as_it_was_typed(tmp_path: Path) -> None:
    # The script that an installation makes from the entry point in pyproject.toml.
    script = tmp_path / "danga-raw"
    script.write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\n"
        "from danga_raw.__main__ import main\nsys.exit(main())\n"
    )
    by_script = [sys.executable, str(script)]
    for argv in ([], ["echo"], ["info"], ["trace"]):
        usage = run(*argv, "--help").stdout.split("\n")[0]
        assert usage.startswith(" ".join(["usage: python3 -m danga_raw", *argv]))
        usage = run(*argv, "--help", command=by_script).stdout.split("\n")[0]
        assert usage.startswith(" ".join(["usage: danga-raw", *argv]))
    once = run("info")
    assert run("info", command=by_script).stdout == once.stdout
    traced = run("trace", "-m", "danga_raw", "info", command=by_script)
    assert (traced.stdout, traced.stderr, traced.returncode) == (once.stdout, "", 0)


def test_version_is_printed() -> None:
    assert run("--version").stdout == f"danga_raw {__version__}\n"
    assert run("info").stdout.startswith(f"version: {__version__}\n")


@pytest.mark.parametrize(
    ("argv", "known"),
    [
        ("", ["echo", "info", "trace"]),
        ("ecko", ["echo", "info", "trace"]),
        ("echo --prot 80", ["--host", "--port"]),
        ("echo 80", ["--host", "--port"]),
        ("info --jsn", ["--json", "--abi"]),
        ("info --abi linux3", ["darwin", "linux", "netbsd9"]),
        ("trace -f x.py", ["-o FILE", "-c", "--json", "-e", "-t"]),
        ("trace -m", ["-m", "MODULE"]),
        ("trace -o x", ["PROGRAM"]),
        ("trace python3 x.py", ["leave 'python3' out", "PROGRAM"]),
        ("trace -c /usr/bin/python3.11 x.py", ["leave '/usr/bin/python3.11' out", "PROGRAM"]),
        ("trace -e fork x.py", ["epoll_ctl", "poll", "write"]),
        ("trace -e signal=none x.py", ["trace="]),
    ],
)
def test_unknown_argument_is_answered_with_the_known_ones(argv: str, known: list[str]) -> None:
    done = run(*argv.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert [word for word in known if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


def test_trace_module_says_how_to_trace_a_program() -> None:
    done = run("x.py", command=[sys.executable, "-m", "danga_raw.trace"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "python3 -m danga_raw trace PROGRAM runs a program under the trace\n"


def test_broken_trace_breaks_no_other_command() -> None:
    broken = (
        "import sys; sys.modules['danga_raw.trace'] = sys.modules['danga_raw._strace'] = None; "
        "import danga_raw.__main__ as line; sys.exit(line.main())"
    )
    done = run("info", command=[sys.executable, "-c", broken])
    assert (done.stdout, done.stderr, done.returncode) == (run("info").stdout, "", 0)
    assert run("trace", "x.py", command=[sys.executable, "-c", broken]).returncode == 1


# --- where echo listens -------------------------------------------------------------------------


def has(family: int, address: str) -> bool:
    with socket.socket(family) as sock:
        try:
            sock.bind((address, 0))
        except OSError:
            return False
        return True


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1", "[::1]"]),
        ("", ["0.0.0.0", "[::]"]),
        ("0.0.0.0", ["0.0.0.0"]),
        ("::1", ["[::1]"]),
        ("[::1]", ["[::1]"]),
        ("::", ["[::]"]),
        ("::ffff:127.0.0.1", ["[::ffff:127.0.0.1]"]),
    ],
)
def test_echo_listens_on_the_given_host(host: str, shown: list[str]) -> None:
    if ":" in host and not has(socket.AF_INET6, "::1"):
        pytest.skip("no IPv6 here")
    with subprocess.Popen(
        [*COMMAND, "echo", "--host", host], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        said, _, address = process.stdout.readline().strip().rpartition(" ")
        name, _, port = address.rpartition(":")
        assert (said, name in shown) == ("listening on", True)
        bare = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}.get(name, name.strip("[]"))
        with socket.create_connection((bare, int(port)), timeout=PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0


def link_local() -> Iterator[str]:
    """This machine's link-local addresses, which include the name of their interface."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().split("\n")
    except OSError:
        return
    for digits, *_, name in (line.split() for line in lines if line.startswith("fe80")):
        yield f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{name}"


def test_echo_prints_the_interface_of_an_address_that_needs_it() -> None:
    host = next(link_local(), None)
    if host is None:
        pytest.skip("no link-local address here")
    with subprocess.Popen(
        [*COMMAND, "echo", "--host", host], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"listening on [{host}]:")
        process.terminate()
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", f"cannot listen on 192.0.2.1:0: {os.strerror(EADDRNOTAVAIL)}"),
        ("2001:db8::1", "cannot listen on [2001:db8::1]:0: "),
        ("[2001:db8::1]", "cannot listen on [2001:db8::1]:0: "),
        ("a" * 70, f"cannot listen on {'a' * 70}:0: "),
        ("a..b", "cannot listen on a..b:0: "),
    ],
)
def test_failure_to_listen_is_reported_with_the_host_as_typed(host: str, said: str) -> None:
    done = run("echo", "--host", host)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"danga_raw: {said}")
    assert done.stderr.count("\n") == 1


def test_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("echo", "--port", str(port))
    said = f"cannot listen on 127.0.0.1:{port}: {os.strerror(EADDRINUSE)}"
    assert done.stderr == f"danga_raw: {said}\n"
    assert done.returncode == 2
