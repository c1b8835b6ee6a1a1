"""Runs stories on both sides under strace, and compares what they did."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from difflib import unified_diff
from itertools import takewhile
from pathlib import Path

from tests.random_stories.stories import Story, made_up
from tests.strace import TRACED, StraceError, note, own_calls, parse, run_group

HERE = Path(__file__).parent
TESTS = HERE.parent

THE_ORIGINAL = ("perl", str(HERE / "player.pl"))
THIS_PACKAGE = (sys.executable, "-m", "tests.random_stories.player")

SECONDS_A_STORY = 6
"""A player ends a story that takes longer."""

NEVER_ENDED = (
    'write(1000, "never ended", 11) = -1 EBADF (Bad file descriptor)',
    'write(1000, "end", 3) = -1 EBADF (Bad file descriptor)',
)
"""The last line in the trace of a story that had to be ended."""

SHOWN = 30
"""Lines of a difference that are shown."""


@dataclass(frozen=True)
class Mismatch:
    """A story that is not the same on both sides."""

    seed: int
    original: Sequence[str]
    here: Sequence[str]

    def __str__(self) -> str:
        lines = list(unified_diff(self.original, self.here, "the original", "here", lineterm=""))
        return "\n".join(
            [f"the story of seed {self.seed} differs:"]
            + [line[:160] for line in lines[:SHOWN]]
            + ["..."] * (len(lines) > SHOWN)
            + [f"repeat: python -m tests.random_stories --seed {self.seed} --stories 1"]
        )


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a number of stories."""

    lines: int
    """How many the original made."""
    mismatches: list[Mismatch]


def told(stories: Sequence[Story], player: Sequence[str]) -> list[list[str]]:
    """What a player does in each of the stories."""
    with tempfile.TemporaryDirectory() as folder:
        plans = Path(folder, "stories.json")
        plans.write_text(json.dumps(stories))
        # A file for each process. A process is not stopped at calls that are not traced.
        command = ["strace", "-ff", "--seccomp-bpf", "-qq", "-o", f"{folder}/trace", "-s", "64"]
        # The question mark keeps calls that this architecture doesn't have from being an error.
        command += ["-e", "trace=" + ",".join(f"?{name}" for name in TRACED)]
        _run([*command, *player, str(plans)], SECONDS_A_STORY * len(stories) + 60)
        found: dict[int, list[str]] = {}
        for path in Path(folder).glob("trace.*"):
            calls = list(parse(path.read_text(errors="replace").splitlines()))
            notes = [text for text in map(note, calls) if text is not None]
            if not notes or not notes[0].startswith("story "):
                continue  # The process whose children tell the stories.
            if "end" not in notes:
                calls += parse(NEVER_ENDED)
            found[int(notes[0].removeprefix("story "))] = own_calls(calls)
    if sorted(found) != list(range(len(stories))):
        raise StraceError(f"{' '.join(player)} told {len(found)} stories of {len(stories)}")
    return [found[number] for number in range(len(stories))]


def _run(command: Sequence[str], timeout: float) -> None:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("DANGA_RAW_")
    }
    environment["STORIES"] = str(TESTS / "scenarios")
    environment["PYTHONPATH"] = str(TESTS.parent)
    said, ended = run_group(command, environment, timeout)
    if ended != 0:
        how = "did not end in time" if ended is None else f"ended with {ended}"
        raise StraceError(f"{' '.join(command)} {how}\n{said}")


def comparable(story: Story, original: list[str], here: list[str]) -> tuple[list[str], list[str]]:
    """The part that must be the same on both sides."""
    if "# lost callback" in original:
        # The original died within its post-loop callbacks; all up to there has its counterpart.
        end = original.index("# lost callback")
        original, here = original[:end], here[:end]
    original = _not_blocking_while_a_close_is_due(original)
    if story["exact_waits"]:
        return original, here
    return _without_timeouts(original), _without_timeouts(here)


def _not_blocking_while_a_close_is_due(lines: list[str]) -> list[str]:
    """What the original would do if no wait of it blocked behind which a close(2) comes of an object
    that had left the epoll before. Its close waits as long as the wait does. One that was stolen is
    the thief's to close."""
    changed = list(lines)
    left: set[str] = set()
    last_gone = ""
    for at, line in enumerate(lines):
        if gone := re.match(r"epoll_ctl\(epoll, EPOLL_CTL_DEL, (fd\d+)", line):
            last_gone = gone[1]
            left.add(last_gone)
        elif line == "# stole 1":
            left.discard(last_gone)
        elif over := re.match(r"(?:close\(|epoll_ctl\(epoll, EPOLL_CTL_ADD, )(fd\d+)", line):
            left.discard(over[1])
        elif line.startswith("epoll_wait("):
            after = takewhile(lambda each: not each.startswith("epoll_wait("), lines[at + 1 :])
            if any(f"close({fd})" in each for each in after for fd in left):
                changed[at] = re.sub(r"1000, -?\d+\) =", "1000, 0) =", line)
    return changed


def _without_timeouts(lines: Iterable[str]) -> list[str]:
    return [
        re.sub(r"1000, -?\d+\) =", "1000, TIMEOUT) =", line)
        if line.startswith("epoll_wait(")
        else line
        for line in lines
    ]


def compare(
    seeds: Iterable[int], player: Sequence[str] = THIS_PACKAGE, *, again: bool = True
) -> Comparison:
    """Have the stories of these seeds told by the original and by `player`.

    A story that differs is told a second time, and counts if it differs again. The calls hang on
    nothing but the story, with one exception: on a machine that stands still for seconds a story is
    taken for one that never ends, or a packet on the loopback comes too late.
    """
    seeds = list(seeds)
    stories = [made_up(seed) for seed in seeds]
    with ThreadPoolExecutor(2) as pool:
        sides = [pool.submit(told, stories, side) for side in (THE_ORIGINAL, player)]
        originals, heres = [side.result() for side in sides]
    mismatches: list[Mismatch] = []
    for seed, story, original, here in zip(seeds, stories, originals, heres, strict=True):
        left, right = comparable(story, original, here)
        if left != right:
            mismatches.append(Mismatch(seed, left, right))
    if mismatches and again:
        mismatches = compare([one.seed for one in mismatches], player, again=False).mismatches
    return Comparison(sum(map(len, originals)), mismatches)
