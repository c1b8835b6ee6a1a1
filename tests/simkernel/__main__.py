"""`python -m tests.simkernel`: any number of random servers on the simulated kernel."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence
from hashlib import blake2b
from random import SystemRandom
from typing import NamedTuple

from tests.simkernel.world import BACKENDS, WORLD_SIZE, Backend, Report, World

BAR = 40


class Failure(NamedTuple):
    """A world in which an invariant was violated."""

    seed: int
    connections: int
    """The smallest number of this world's connections with which it still fails."""
    steps: int
    """How many system calls that takes."""
    trace: str


def attempt(seed: int, backend: Backend, connections: int) -> Report | Failure:
    """Run one world."""
    world = World(seed, backend, connections)
    try:
        return world.run()
    except Exception:
        return Failure(seed, connections, world.kernel.steps, traceback.format_exc())


def shortest(seed: int, backend: Backend, failure: Failure) -> Failure:
    """Reduce the failure to as few of the world's first connections as possible."""
    for connections in range(failure.connections):
        shorter = attempt(seed, backend, connections)
        if isinstance(shorter, Failure):
            return shorter
    return failure


class Progress:
    """A bar on a terminal, elsewhere a line after every tenth of the work; on standard error."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.tty = sys.stderr.isatty()
        self.shown = -1

    def show(self, done: int, steps: int, faults: int) -> None:
        """Show that `done` of the total are done."""
        parts = BAR if self.tty else 10
        part = parts * done // max(self.total, 1)
        if part == self.shown:
            return
        self.shown = part
        counts = f"{done:,} connections, {steps:,} calls, {faults:,} faults"
        if self.tty:
            bar = "#" * part + "." * (parts - part)
            end = "\n" if done >= self.total else ""
            sys.stderr.write(f"\r{self.name:14} [{bar}] {counts}{end}")
        else:
            sys.stderr.write(f"{self.name:14} {100 * part // parts:3}% {counts}\n")
        sys.stderr.flush()


def run_all(backends: Sequence[Backend], seed: int, connections: int) -> tuple[str, bool]:
    """Run worlds from `seed` on until there were enough connections, the same ones on each backend.
    Returns the text to print, and True if nothing failed."""
    lines = []
    calm: dict[int, bytes] = {}
    for backend in backends:
        progress = Progress(backend, connections)
        done = opened = steps = faults = worlds = 0
        all_bytes = blake2b(digest_size=8)
        began = time.monotonic()
        while done < connections or not worlds:
            size = min(WORLD_SIZE, connections - done)
            result = attempt(seed + worlds, backend, size)
            if isinstance(result, Failure):
                least = shortest(seed + worlds, backend, result)
                return _tell_failure(backend, least), False
            if result.calm:
                digest = blake2b(repr(result.received).encode(), digest_size=8).digest()
                all_bytes.update(digest)
                if calm.setdefault(seed + worlds, digest) != digest:
                    return (
                        f"{backend}: seed {seed + worlds} gives other bytes than {backends[0]}\n"
                        f"repeat: {_command(seed + worlds, size, 'all')}",
                        False,
                    )
            worlds += 1
            done += size
            opened += len(result.received)
            steps += result.steps
            faults += result.faults
            progress.show(done, steps, faults)
        seconds = time.monotonic() - began
        lines.append(
            f"{backend:14} {opened:,} connections, {steps:,} calls, {faults:,} faults survived, "
            f"{worlds:,} worlds, {seconds:.0f} s, bytes {all_bytes.hexdigest()}"
        )
    return "\n".join(lines), True


def _command(seed: int, connections: int, backend: str) -> str:
    options = f"--seed {seed} --connections {connections} --backend {backend}"
    return f"python -m tests.simkernel {options}"


def _tell_failure(backend: Backend, failure: Failure) -> str:
    return (
        f"{failure.trace}\n{backend}: seed {failure.seed} fails with its first "
        f"{failure.connections} connections, after {failure.steps} calls\n"
        f"repeat: {_command(failure.seed, failure.connections, backend)}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.simkernel", description=__doc__)
    parser.add_argument("--seed", type=int, help="the first world's (a fresh one)")
    parser.add_argument("--connections", type=int, default=1000, help="on each backend (1000)")
    parser.add_argument("--backend", choices=[*BACKENDS, "all"], default="all")
    options = parser.parse_args(arguments)
    seed = SystemRandom().randrange(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    chosen = BACKENDS if options.backend == "all" else (options.backend,)
    told, fine = run_all(chosen, seed, options.connections)
    print(told)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
