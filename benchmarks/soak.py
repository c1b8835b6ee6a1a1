"""A soak: millions of requests to the example file server, whose resources are checked on the way.

    python -m benchmarks.soak [--requests 1000000] [--samples 10]

ab sends the requests: of every hundred, 95 on 32 persistent connections and 5 on a connection of
their own. After each sample's share, once all of its connections are closed, the server's resident
memory, descriptors, timers and objects are recorded. The run fails when a request does, or when any
of them has grown between the first sample and the last: memory by more than `MEMORY_TOLERANCE`, the
others at all.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, environment, memory
from benchmarks.progress import Progress

MEMORY_TOLERANCE = 512 * 1024
"""Bytes that the resident memory may grow by: fluctuation of the allocator, far less than a leak of
one byte per request over a million."""

KEPT = 95
"""How many of every hundred requests use a persistent connection."""

BODY = b"Hello, world!"

HTTPD = ROOT / "examples" / "httpd.py"


@dataclass(frozen=True)
class Sample:
    """The server's resources when no client is connected."""

    requests: int
    seconds: float
    memory: int
    descriptors: int
    timers: int
    objects: int
    """The containers that the garbage collector knows, after a collection."""

    def __str__(self) -> str:
        return (
            f"{self.requests:>12,} requests {self.seconds:8.0f} s {self.memory // 1024:>8,} KiB "
            f"{self.descriptors:>4} descriptors {self.timers:>3} timers {self.objects:>7,} objects"
        )


def serve(arguments: list[str]) -> None:
    """The example server in this process; SIGUSR1 has it print its timers and objects."""
    from danga_raw import Loop

    loops: list[Loop] = []

    def tell(*_: object) -> None:
        gc.collect()
        if not loops:
            loops.extend(each for each in gc.get_objects() if isinstance(each, Loop))
        heaps = (each._timers.heap for each in loops)
        timers = sum(timer.callback is not None for heap in heaps for _, _, timer in heap)
        os.write(1, f"{timers} {len(gc.get_objects())}\n".encode())

    signal.signal(signal.SIGUSR1, tell)
    sys.argv = [str(HTTPD), *arguments]
    runpy.run_path(str(HTTPD), run_name="__main__")


def ab(port: int, requests: int, kept: bool) -> None:
    """Send the requests, each of which must be answered with 200 and the whole file."""
    command = ["ab", "-q", "-n", str(requests), "-c", "32", "-s", "120", *(["-k"] if kept else [])]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/hello.txt"], capture_output=True, text=True, check=True
    )
    complete = re.search(r"Complete requests: +(\d+)", done.stdout)
    failed = re.search(r"Failed requests: +(\d+)", done.stdout)
    length = re.search(r"HTML transferred: +(\d+)", done.stdout)
    told = [int(found[1]) if found else -1 for found in (complete, failed, length)]
    if told != [requests, 0, requests * len(BODY)] or "Non-2xx" in done.stdout:
        raise RuntimeError(f"not every request was answered:\n{done.stdout}{done.stderr}")


def sample(server: subprocess.Popen[str], requests: int, since: float, idle: int) -> Sample:
    """Sample the server once it has closed the clients' connections, or after a minute at most."""
    folder = f"/proc/{server.pid}/fd"
    patience = time.monotonic() + 60
    while len(os.listdir(folder)) > idle and time.monotonic() < patience:
        time.sleep(0.01)
    server.send_signal(signal.SIGUSR1)
    assert server.stdout is not None
    timers, objects = map(int, server.stdout.readline().split())
    return Sample(
        requests,
        time.monotonic() - since,
        memory(server.pid, "VmRSS"),
        len(os.listdir(folder)),
        timers,
        objects,
    )


def grown(first: Sample, last: Sample) -> list[str]:
    """What has grown from one sample to another, in words."""
    limits = {"memory": MEMORY_TOLERANCE, "descriptors": 0, "timers": 0, "objects": 0}
    return [
        f"{what}: {getattr(first, what):,} -> {getattr(last, what):,}"
        for what, limit in limits.items()
        if getattr(last, what) > getattr(first, what) + limit
    ]


def soak(requests: int, samples: int, progress: Progress) -> list[Sample]:
    """Send the requests in equal shares, with a sample after each."""
    found: list[Sample] = []
    share = requests // samples
    kept = share * KEPT // 100
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "hello.txt").write_bytes(BODY)
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak", "--serve", folder, "--port", "0"],
            env=environment(ROOT),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
                idle = len(os.listdir(f"/proc/{server.pid}/fd"))
                since = time.monotonic()
                progress.begin(samples)
                for number in range(1, samples + 1):
                    progress.step(f"{(number - 1) * share:,} requests")
                    ab(port, kept, True)
                    ab(port, share - kept, False)
                    found.append(sample(server, number * share, since, idle))
                    if progress.live:
                        progress.end()
                    print(found[-1], flush=True)
            except KeyboardInterrupt:
                print("interrupted")
            finally:
                server.terminate()
    return found


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()
    found = soak(options.requests, options.samples, Progress())
    if len(found) < 2:
        sys.exit("too short a run to tell")
    if growth := grown(found[0], found[-1]):
        sys.exit("grown from the first sample to the last: " + "; ".join(growth))


if __name__ == "__main__":
    main()
