"""The choice of a loop's backend: those that this system has, and the one that is asked for."""

from __future__ import annotations

import os

from danga_raw._epoll import Epoll
from danga_raw._libc import libc
from danga_raw._poll import Poll
from danga_raw._poller import Poller


def backends() -> list[str]:
    """The names of the backends that this system has, in order of preference."""
    names = ["poll"]
    if hasattr(libc, "epoll_create1"):
        names.insert(0, "epoll")
    if hasattr(libc, "kqueue") or "DANGA_RAW_LIBKQUEUE" in os.environ:
        names.insert(0, "kqueue")
    return names


def choose_backend(name: str | None) -> str:
    """`name`, or the one in DANGA_RAW_BACKEND, or the preferred one. Raises `ValueError`."""
    there = backends()
    wanted = name if name is not None else os.environ.get("DANGA_RAW_BACKEND") or there[0]
    if wanted not in there:
        raise ValueError(f"no backend {wanted!r} here; there are {', '.join(there)}")
    return wanted


def new_poller(backend: str) -> Poller:
    """A poller of that backend, not opened yet. Raises `OSError` if DANGA_RAW_LIBKQUEUE does not
    name a usable library."""
    if backend == "epoll":
        return Epoll()
    if backend == "poll":
        return Poll()
    # Imported only here: making its structs would add a third to the import of the package.
    from danga_raw._kqueue import KQueue, load_libkqueue

    path = os.environ.get("DANGA_RAW_LIBKQUEUE")
    return KQueue(load_libkqueue(path), "libkqueue") if path else KQueue()
