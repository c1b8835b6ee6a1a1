"""User CPU time under wrk: seconds, so only the ratio within one run has a limit."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from benchmarks.peers import Peer, present
from benchmarks.processes import environment, running
from benchmarks.table import Bench, Figures, Group, Row, Step

SECONDS = 5
"""The length of a round. The kernel tells user time from system time by what is running at each of
its ticks, some 250 per second. Of five seconds 250 ticks are user time, so ten rounds are accurate
to some 2 %."""

REQUESTS = re.compile(r"(\d+) requests in ")


def user_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def under_wrk(bench: Bench, peer: Peer) -> tuple[float, int]:
    """Seconds of user CPU, and requests."""
    seconds = bench.count(SECONDS, 1)
    with running(peer.command(bench.scratch), environment(bench.package)) as server:
        url = f"http://127.0.0.1:{server.port}/"
        before = user_seconds(server.pid)
        command = ["wrk", "-t1", "-c64", f"-d{seconds}s", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used = user_seconds(server.pid) - before
    found = REQUESTS.search(done.stdout)
    if not found or "Non-2xx" in done.stdout or not int(found[1]):
        raise RuntimeError(f"{peer.title} under wrk: {done.stdout}")
    return used, int(found[1])


def plan(bench: Bench) -> list[Step]:
    if not shutil.which("wrk"):
        return []
    rounds = bench.count(10, 1)
    used: dict[str, float] = {peer.name: 0.0 for peer in present()}
    requests: dict[str, int] = dict.fromkeys(used, 0)

    def step(peer: Peer, number: int) -> Step:
        def measure(figures: Figures) -> None:
            seconds, count = under_wrk(bench, peer)
            used[peer.name] += seconds
            requests[peer.name] += count

        return Step(f"user CPU under wrk, round {number} of {rounds}: {peer.title}", measure)

    def compare(figures: Figures) -> None:
        for name in used:
            figures[f"cpu.{name}"] = (used[name] / requests[name] * 1e6,)
            figures[f"throughput.{name}"] = (requests[name] / rounds / bench.count(SECONDS, 1),)
        for name in used:
            for kind in "cpu", "throughput":
                if base := figures.get(f"{kind}.uvloop"):
                    figures[f"{kind}.ratio.{name}"] = (figures[f"{kind}.{name}"][0] / base[0],)

    steps = [step(peer, number) for number in range(1, rounds + 1) for peer in present()]
    return [*steps, Step("user CPU under wrk: ratios", compare)]


GROUP = Group(
    "cpu",
    "user CPU per request under wrk, 64 connections",
    (
        Row(
            "user CPU per request under wrk, 64 connections, over uvloop",
            "cpu.ratio.danga_raw",
            must=1.12,
            aim=1.02,
        ),
        Row(
            "requests per second under wrk, 64 connections, over uvloop",
            "throughput.ratio.danga_raw",
            at_least=True,
        ),
    ),
    plan,
)
