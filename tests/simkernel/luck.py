"""The random decisions of one run, all from one seeded generator."""

from __future__ import annotations

import errno
from collections import Counter
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Luck:
    """Makes the random decisions, and counts the faults injected.

    `noise` is how often the kernel does something that it may do at any time and a program must
    tolerate: a transfer cut short, EAGAIN, EINTR, a spurious event, events in another order, a
    delay. `harm` is how often it fails: a reset, no memory, no descriptor. Both are probabilities.
    """

    def __init__(self, seed: int, noise: float = 0.0, harm: float = 0.0) -> None:
        self.random = Random(seed)
        self.noise = noise
        self.harm = harm
        self.dealt: Counter[str] = Counter()

    def noisy(self, what: str) -> bool:
        """True if the harmless disturbance `what` happens now."""
        if self.noise and self.random.random() < self.noise:
            self.dealt[what] += 1
            return True
        return False

    def failure(self, call: str, *numbers: int) -> int:
        """The errno with which `call` fails now, one of `numbers`; usually 0, for success."""
        if self.harm and self.random.random() < self.harm:
            number = self.random.choice(numbers)
            self.dealt[f"{call} {errno.errorcode[number]}"] += 1
            return number
        return 0

    def cut(self, most: int, what: str) -> int:
        """How much of a transfer of `most` bytes is done: all, or with noise less, at least 1."""
        if most > 1 and self.noisy(what):
            return self.random.randrange(1, most)
        return most

    def delay_ns(self) -> int:
        """How long a packet travels: usually no time at all."""
        return self.random.randrange(1, 5_000_000) if self.noisy("delay") else 0

    def shuffled(self, items: list[T]) -> list[T]:
        """`items` in an order that the kernel chooses."""
        if self.noise and len(items) > 1:
            self.random.shuffle(items)
        return items
