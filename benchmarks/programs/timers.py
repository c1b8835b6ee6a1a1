"""Timers for counting: timers.py fire PENDING FIRED | cancel PENDING CANCELLED | memory PENDING.

`memory` prints the bytes that PENDING timers take, and those still held when all are cancelled.
"""

import random
import sys
import tracemalloc
from collections.abc import Callable

from danga_raw import Loop, Timer

chance = random.Random(1)


def nothing() -> None:
    pass


def pending(loop: Loop, count: int) -> list[Timer]:
    return [loop.add_timer(chance.uniform(1000, 2000), nothing) for _ in range(count)]


def fire(loop: Loop, waiting: int, count: int) -> None:
    pending(loop, waiting)
    left = count

    def fired() -> None:
        nonlocal left
        left -= 1
        if not left:
            loop.stop()

    for _ in range(count):
        loop.add_timer(chance.uniform(0, 0.001), fired)
    if count:
        loop.run()


def cancel(loop: Loop, waiting: int, count: int) -> None:
    timers = pending(loop, waiting)
    chance.shuffle(timers)
    for timer in timers[:count]:
        timer.cancel()


def memory(loop: Loop, waiting: int) -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    timers = pending(loop, waiting)
    full = tracemalloc.get_traced_memory()[0]
    for timer in timers:
        timer.cancel()
    del timers, timer
    print(full - before, tracemalloc.get_traced_memory()[0] - before)


WHAT: dict[str, Callable[..., None]] = {"fire": fire, "cancel": cancel, "memory": memory}
WHAT[sys.argv[1]](Loop(), *map(int, sys.argv[2:]))
