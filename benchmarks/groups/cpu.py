"""User CPU time under wrk: seconds, so only their ratio within a round is held to anything."""

import os
import re
import shutil
import statistics
import subprocess
from pathlib import Path

from benchmarks.peers import Peer, present
from benchmarks.processes import environment, running
from benchmarks.table import Bench, Figures, Group, Row, Step

REQUESTS = re.compile(r"(\d+) requests in ")


def user_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def under_wrk(bench: Bench, peer: Peer) -> tuple[float, float]:
    """Microseconds of user CPU a request, and requests a second."""
    seconds = bench.count(2, 1)
    with running(peer.command(bench.scratch), environment(bench.package)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        before = user_seconds(server.pid)
        command = ["wrk", "-t1", "-c64", f"-d{seconds}s", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = user_seconds(server.pid) - before
    found = REQUESTS.search(done.stdout)
    if not found or "Non-2xx" in done.stdout or not int(found[1]):
        raise RuntimeError(f"{peer.title} under wrk: {done.stdout}")
    return used / int(found[1]) * 1e6, int(found[1]) / seconds


def plan(bench: Bench) -> list[Step]:
    if not shutil.which("wrk"):
        return []
    rounds = bench.count(10, 1)
    seen: dict[str, list[tuple[float, float]]] = {peer.name: [] for peer in present()}

    def step(peer: Peer, number: int) -> Step:
        def measure(figures: Figures) -> None:
            seen[peer.name].append(under_wrk(bench, peer))
            if number == rounds:
                cpus, speeds = zip(*seen[peer.name], strict=True)
                figures[f"cpu.{peer.name}"] = (statistics.median(cpus),)
                figures[f"throughput.{peer.name}"] = (statistics.median(speeds),)

        return Step(f"user CPU under wrk, round {number} of {rounds}: {peer.title}", measure)

    def compare(figures: Figures) -> None:
        for name, mine in seen.items():
            pairs = list(zip(mine, seen.get("uvloop", []), strict=False))
            if pairs:
                cpu = statistics.median(a[0] / b[0] for a, b in pairs)
                speed = statistics.median(a[1] / b[1] for a, b in pairs)
                figures[f"cpu.ratio.{name}"] = (cpu,)
                figures[f"throughput.ratio.{name}"] = (speed,)

    steps = [step(peer, number) for number in range(1, rounds + 1) for peer in present()]
    return [*steps, Step("user CPU under wrk: ratios", compare)]


GROUP = Group(
    "cpu",
    "user CPU a request under wrk, 64 connections",
    (
        Row(
            "user CPU a request under wrk, 64 connections, over uvloop",
            "cpu.ratio.danga_raw",
            must=1.12,
            aim=1.02,
        ),
        Row(
            "requests a second under wrk, 64 connections, over uvloop",
            "throughput.ratio.danga_raw",
            at_least=True,
        ),
    ),
    plan,
)
