"""Pools: the nodes from which a reverse proxy chooses."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from examples.perlbal.files import open_file
from examples.perlbal.parameters import NODE, LanguageError

if TYPE_CHECKING:
    from danga_raw import Loop, Timer
    from examples.perlbal.services import Service

NODEFILE_CHECK_SECONDS: Final = 3
_NODE: Final = re.compile(NODE, re.ASCII)


def _version(status: os.stat_result) -> tuple[int, ...]:
    # Two changes in quick succession may have the same time.
    return status.st_mtime_ns, status.st_size, status.st_ino


class Node(NamedTuple):
    ip: str
    port: int

    @property
    def name(self) -> str:
        """ "ip:port" or "[ip]:port"."""
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


class Pool:
    """A named set of nodes, from commands or from a file."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self.loop = loop
        self.users: list[Service] = []
        """The services that use it."""
        self.nodes: list[Node] = []
        """In order. A node listed twice in a file is chosen twice as often."""
        self.used: dict[str, int] = {}
        """The number of requests sent to each node, by its name."""
        self.nodefile: str | None = None
        self._read: tuple[int, ...] = ()
        """The version of the file that was read last."""
        self._timer: Timer | None = None

    def add(self, ip: str, port: int) -> None:
        """Add a node at the end, or move it there."""
        node = Node(ip, port)
        self.used.pop(node.name, None)
        self._set_nodes([*(each for each in self.nodes if each != node), node])

    def remove(self, ip: str, port: int) -> None:
        """Remove a node, if it is in the pool."""
        self._set_nodes([each for each in self.nodes if each != Node(ip, port)])

    def _set_nodes(self, nodes: list[Node]) -> None:
        """Replace the nodes, and notify the services that use the pool."""
        self.nodes = nodes
        self.used = {node.name: self.used.get(node.name, 0) for node in nodes}
        for service in self.users:
            service.balancer.pool_changed()

    def set(self, key: str, value: str) -> None:
        """Run `SET pool.key = value`. Raises `LanguageError`, or `OSError` from reading a file."""
        if key == "nodefile":
            if value in ("none", "undef", "null", '""', "''"):
                self.nodefile = None
            elif os.path.isfile(value):
                self._load(value)
                if self._timer is None:
                    self._check()
            else:
                raise LanguageError("File not found")
        elif key == "balance_method":
            if value != "random":
                raise LanguageError("Unknown balance method")
        else:
            raise LanguageError(f"Unknown pool parameter '{key}'")

    def _check(self) -> None:
        """Read the nodefile again if it has changed, and check again every three seconds."""
        self._timer = None
        if self.nodefile is None:
            return
        with suppress(OSError):  # It may be back at the next check.
            if _version(os.stat(self.nodefile)) != self._read:
                self._load(self.nodefile)
        self._timer = self.loop.add_timer(NODEFILE_CHECK_SECONDS, self._check)

    def _load(self, name: str) -> None:
        """Read the nodes from a file. Raises `OSError`, and then nothing has changed."""
        fd, info = open_file(os.fsencode(name))
        with open(fd, encoding="latin-1") as file:
            lines = file.read(10_000_000).splitlines()
        self.nodefile, self._read = name, _version(info)
        found = [_NODE.search(line.partition("#")[0]) for line in lines]
        self.used.clear()
        self._set_nodes([Node(each[1].strip("[]"), int(each[2] or 80)) for each in found if each])

    def dump(self) -> list[str]:
        """The commands that recreate it."""
        first = f"CREATE POOL {self.name}"
        if self.nodefile is not None:
            return [first, f"  SET nodefile = {self.nodefile}"]
        return [first, *(f"  POOL ADD {self.name} {node.name}" for node in self.nodes)]
