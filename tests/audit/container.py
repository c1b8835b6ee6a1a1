"""The profile of `info --seccomp` in a real container: `python -m tests.audit.container [--strace]`.

runc, which Docker and containerd use to start containers, runs Debian's Python with this package,
and nothing else in the root, under the profile as Docker passes it on. The echo server and both
examples serve a client there and end by SIGTERM; with one call removed from the profile the server
doesn't start. `--strace` prints the calls that runc itself makes under the filter before the
program begins.

It needs root, and cgroups; runc is Debian's, unpacked into the cache folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from danga_raw._seccomp import profile
from tests.abi import debian, foreign
from tests.audit.programs import ask_for_locks
from tests.clients import PATIENCE, read_to_end

ROOT = Path(__file__).parents[2]
NATIVE = "SCMP_ARCH_X86_64"


def runc() -> str:
    root = debian.CACHE / "runc"
    debian.unpack(["runc"], root, suite=debian.STABLE, architecture="amd64")
    return str(root / "usr/sbin/runc")


def as_docker_hands_it_on(seccomp: Mapping[str, object]) -> Mapping[str, object]:
    """The OCI form of a profile: of the map of machines, only the entry of the native one (moby's
    profiles/seccomp)."""
    kept = {name: value for name, value in seccomp.items() if name != "archMap"}
    machines = seccomp["archMap"]
    assert isinstance(machines, list)
    (native,) = (entry for entry in machines if entry["architecture"] == NATIVE)
    entries = seccomp["syscalls"]
    assert isinstance(entries, list)
    return {
        **kept,
        "architectures": [NATIVE, *native["subArchitectures"]],
        "syscalls": [{"names": each["names"], "action": each["action"]} for each in entries],
    }


def without(name: str) -> Mapping[str, object]:
    """The profile with one call removed."""
    text = json.dumps(profile())
    seccomp: Mapping[str, object] = json.loads(text)
    entries = seccomp["syscalls"]
    assert isinstance(entries, list)
    for entry in entries:
        entry["names"] = [each for each in entry["names"] if each != name]
    return seccomp


def bundle(folder: Path, argv: Sequence[str], seccomp: Mapping[str, object]) -> None:
    """Write the bundle for runc. It uses this machine's network, so that a client can connect."""
    subprocess.run([runc(), "spec"], cwd=folder, check=True)
    config = json.loads((folder / "config.json").read_text())
    root = foreign.PACKAGES
    system = debian.unpack(
        root, debian.CACHE / "python3-amd64", suite=debian.STABLE, architecture="amd64"
    )
    process = config["process"]
    process["terminal"] = False
    process["args"] = ["/usr/bin/python3", *argv]
    process["cwd"] = "/app"
    process["env"] = ["PATH=/usr/bin", "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"]
    process["noNewPrivileges"] = False  # As in Docker; the filter is then applied earlier.
    config["root"] = {"path": str(system), "readonly": True}
    config["mounts"].append(
        {"destination": "/app", "type": "bind", "source": str(ROOT), "options": ["rbind", "ro"]}
    )
    spaces = config["linux"]["namespaces"]
    # Nor a pid namespace: SIGTERM without a handler doesn't end its first process.
    kept = [space for space in spaces if space["type"] not in ("network", "cgroup", "pid")]
    config["linux"]["namespaces"] = kept
    config["linux"]["seccomp"] = as_docker_hands_it_on(seccomp)
    (folder / "config.json").write_text(json.dumps(config))


def serves(
    argv: Sequence[str],
    client: Callable[[int], None],
    seccomp: Mapping[str, object],
    watch: Sequence[str] = (),
) -> str:
    """Run a server in a container and talk to it. Returns what was wrong, or ""."""
    name = f"danga_raw-{os.getpid()}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle(folder, argv, seccomp)
        with subprocess.Popen(
            [*watch, runc(), "run", "--bundle", str(folder), name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None and process.stderr is not None
                greeting = process.stdout.readline().strip().rstrip("/")
                if not greeting.startswith("listening on "):
                    process.wait(PATIENCE)
                    said = process.stderr.read().strip().splitlines()
                    return f"it did not come up: {said[-1] if said else greeting!r}"
                client(int(greeting.rpartition(":")[2]))
                subprocess.run([runc(), "kill", name, "TERM"], check=True)
                process.wait(PATIENCE)
                return process.stderr.read().strip()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                subprocess.run([runc(), "delete", "--force", name], capture_output=True)


def echoes(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"hello" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b"hello" * 100_000


def asks_for_a_file(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
        client.sendall(b"GET /container.py HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        assert read_to_end(client).endswith(Path(__file__).read_bytes())


def of_runc() -> set[str]:
    """The calls that runc makes between applying the filter and starting the program."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "calls")
        watch = ["strace", "-f", "-qq", "-o", str(out)]
        serves(["-m", "danga_raw", "echo"], echoes, profile(), watch)
        lines = out.read_text(errors="replace").splitlines()
    (begin,) = (
        at
        for at, line in enumerate(lines)
        if re.search(r"PR_SET_SECCOMP, |SECCOMP_SET_MODE_FILTER, .*\{len=", line)
    )
    (end,) = (at for at, line in enumerate(lines) if 'execve("/usr/bin/python3"' in line)
    # The filter applies to the threads of the process that installed it.
    own = {lines[begin].split()[0]}
    for line in lines[:end]:
        made = re.match(r"(\d+) +.*CLONE_THREAD.* = (\d+)$", line)
        if made and made[1] in own:
            own.add(made[2])
    found = (re.match(r"(\d+) +(\w+)\(", line) for line in lines[begin + 1 : end])
    return {match[2] for match in found if match and match[1] in own}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.audit.container", description=__doc__)
    parser.add_argument("--strace", action="store_true")
    if parser.parse_args().strace:
        print(" ".join(sorted(of_runc())))
        return 0
    failed = False
    servers: list[tuple[list[str], Callable[[int], None]]] = [
        (["-m", "danga_raw", "echo"], echoes),
        (["examples/ddlockd.py", "0"], ask_for_locks),
        (["examples/httpd.py", "--port", "0", "tests/audit"], asks_for_a_file),
    ]
    for argv, client in servers:
        wrong = serves(argv, client, profile())
        print(f"{' '.join(argv)}: {wrong or 'serves'}", flush=True)
        failed = failed or bool(wrong)
    wrong = serves(["-m", "danga_raw", "echo"], echoes, without("epoll_create1"))
    print(f"the first without epoll_create1: {wrong or 'serves all the same'}", flush=True)
    failed = failed or not wrong
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
