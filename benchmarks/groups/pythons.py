"""The same requests on other versions of CPython."""

import os
import shutil
from pathlib import Path

from benchmarks import instructions
from benchmarks.groups.requests import many
from benchmarks.peers import PEERS, SERVERS
from benchmarks.table import Bench, Group, Row, Step

FILES = {
    "danga_raw": "danga_raw_server.py",
    "fair": "select_epoll_fair.py",
    "bare": "select_epoll.py",
}
LIMITS = {
    ("3.12", 32): 1.23,
    ("3.12", 1): 1.76,
    ("3.13", 32): 1.34,
    ("3.13", 1): 2.20,
    ("3.14", 32): 1.52,
    ("3.14", 1): 2.44,
}
"""The cost of danga_raw 1.0 divided by the bare loop's (on 3.14 as Debian builds it)."""
AIMS = {32: 1.15, 1: 1.60}


def pyenv_versions() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"


def interpreter(version: str) -> str:
    """The CPython of this version, from pyenv or on the path; empty if there is none."""
    found = sorted(pyenv_versions().glob(f"{version}.*[0-9]/bin/python{version}"))
    return str(found[-1]) if found else shutil.which(f"python{version}") or ""


def left_out() -> dict[str, str]:
    return {
        f"CPython {version}": f"pyenv install {version}"
        for version in sorted({version for version, _ in LIMITS})
        if not interpreter(version)
    }


def plan(bench: Bench) -> list[Step]:
    def step(version: str, connections: int, name: str) -> Step:
        command = [interpreter(version), str(SERVERS / FILES[name])]
        return instructions.step(
            bench,
            f"CPython {version}, {many(connections)}: {PEERS[name].title}",
            f"pythons.{version}.{connections}.{name}",
            lambda env: instructions.of_a_request(command, env, connections, bench.quick),
        )

    return [
        step(version, connections, name)
        for version, connections in LIMITS
        if interpreter(version)
        for name in FILES
    ]


def row(version: str, connections: int, over: str) -> Row:
    return Row(
        f"instructions per request on CPython {version}, {many(connections)}, "
        f"over {PEERS[over].title}",
        f"pythons.{version}.{connections}.danga_raw",
        f"pythons.{version}.{connections}.{over}",
        must=LIMITS[version, connections] if over == "bare" else None,
        aim=AIMS[connections] if over == "bare" else None,
    )


GROUP = Group(
    "pythons",
    "a keep-alive request on CPython 3.12, 3.13 and 3.14, over the fair and the bare loop",
    tuple(
        row(version, connections, over)
        for version, connections in LIMITS
        for over in ("fair", "bare")
    ),
    plan,
)
