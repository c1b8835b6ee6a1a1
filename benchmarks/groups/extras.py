"""What one more feature in use adds to a request: timers, callbacks, parked objects, profiling."""

from benchmarks import instructions
from benchmarks.groups import requests
from benchmarks.peers import PEERS, python
from benchmarks.table import Bench, Group, Row, Step

PARKED = 1000


def group(name: str, what: str, connections: int, server: tuple[str, ...], row: Row) -> Group:
    """A group of one row: a request to this server, compared with one to the plain server."""

    def plan(bench: Bench) -> list[Step]:
        command = [*python(server[0])(bench.scratch), *server[1:]]
        return [
            requests.step(bench, PEERS["danga_raw"], connections),
            instructions.step(
                bench,
                f"instructions per request, {requests.many(connections)}, {what}",
                row.figure,
                lambda env: instructions.of_a_request(command, env, connections, bench.quick),
            ),
        ]

    return Group(name, what, (row,), plan)


PENDING = group(
    "pending",
    "one timer pending",
    1,
    ("danga_raw_timers.py", "pending"),
    Row(
        "one timer pending, 1 connection: added to a turn",
        "pending",
        beside="requests.1.danga_raw",
        must=2500,
        aim=1500,
        unit="instructions",
    ),
)
RENEWED = group(
    "renewed",
    "a timer cancelled and added in every event",
    32,
    ("danga_raw_timers.py", "renewed"),
    Row(
        "a timer cancelled and added in every event, 32 connections: added to an event",
        "renewed",
        beside="requests.32.danga_raw",
        must=6500,
        aim=5000,
        unit="instructions",
    ),
)
SWEPT = group(
    "sweep",
    "idle timeouts by one sweeping timer",
    32,
    ("danga_raw_sweep.py",),
    Row(
        "idle timeouts by one sweeping timer, 32 connections: added to an event",
        "swept",
        beside="requests.32.danga_raw",
        unit="instructions",
    ),
)
CALLBACK = group(
    "callback",
    "a post-loop callback on the loop",
    1,
    ("danga_raw_callback.py", "loop"),
    Row(
        "a post-loop callback on the loop, 1 connection: added to a turn",
        "callback.loop",
        beside="requests.1.danga_raw",
        unit="instructions",
    ),
)
CALLBACKS = group(
    "callbacks",
    "a post-loop callback on each object",
    32,
    ("danga_raw_callback.py", "objects"),
    Row(
        "a post-loop callback on each of 32 objects: added to an event",
        "callback.objects",
        beside="requests.32.danga_raw",
        unit="instructions",
    ),
)
PARKED_OBJECTS = group(
    "parked",
    f"{PARKED:,} objects parked",
    1,
    ("danga_raw_parked.py", str(PARKED)),
    Row(
        f"{PARKED:,} objects parked with pushed-back data and reading off: added to a turn",
        "parked",
        beside="requests.1.danga_raw",
        must=50,
        unit="instructions",
    ),
)
PROFILED = group(
    "profiling",
    "profiling on",
    32,
    ("danga_raw_profiled.py",),
    Row(
        "a request with profiling on, 32 connections, over one with it off",
        "profiled",
        "requests.32.danga_raw",
        must=2.2,
    ),
)
