"""Random stories: the original and the package make the same calls, and a difference is found."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.needs import REQUIRED
from tests.random_stories import __main__ as command
from tests.random_stories.comparison import Comparison, Mismatch, comparable, compare
from tests.random_stories.stories import OF_A_CONNECTION, OF_THE_LOOP, Act, Story, made_up

STORIES = 400 if REQUIRED else 50


@pytest.mark.needs("perl", "danga", "strace")
def test_random_stories_make_the_same_calls_as_on_the_original() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    found = compare(range(seed, seed + STORIES))
    assert not found.mismatches, "\n\n".join(map(str, found.mismatches[:3]))
    assert found.lines > 30 * STORIES


# --- that it can fail -----------------------------------------------------------------------------

BROKEN_PLAYER = """\
import pytest
from tests.random_stories.player import main
from tests.test_simkernel_servers import {sabotage}
{sabotage}(pytest.MonkeyPatch())
main()
"""


@pytest.mark.needs("perl", "danga", "strace")
@pytest.mark.parametrize(
    "sabotage",
    ["forget_the_offset", "fire_early"],
)
def test_fault_in_the_package_is_detected(sabotage: str) -> None:
    player = (sys.executable, "-c", BROKEN_PLAYER.format(sabotage=sabotage))
    assert compare(range(20), player).mismatches


STUCK_PLAYER = """\
import time
from danga_raw import Socket
from tests.random_stories import player
player.PATIENCE = 1
Socket.EventLoop = lambda: time.sleep(60)
player.main()
"""


@pytest.mark.needs("perl", "danga", "strace")
def test_story_that_never_ends_differs_from_one_that_does() -> None:
    player = (sys.executable, "-c", STUCK_PLAYER)
    (mismatch,) = compare([1], player).mismatches
    assert mismatch.here[-1] == "# never ended"


@pytest.mark.needs("perl", "danga", "strace")
def test_story_counts_only_if_it_differs_twice(tmp_path: Path) -> None:
    # The first time this player is started, it plays none of the stories.
    once = f"""\
from pathlib import Path
from tests.random_stories import player
if not Path("{tmp_path}/second").exists():
    Path("{tmp_path}/second").touch()
    player.Player.tell = lambda self: None
player.main()
"""
    assert compare(range(3), (sys.executable, "-c", once)).mismatches == []


@pytest.mark.needs("perl", "danga", "strace")
def test_command_prints_the_seed_the_stories_and_the_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main(["--seed", "7", "--stories", "3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("seed 7\n3 stories, ")
    assert out.endswith(" lines compared, 0 differ\n")


def test_command_prints_what_differs_and_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Comparison(4, [Mismatch(8, ["# begin", "close(fd1) = 0"], ["# begin", "# died"])])

    def compare(seeds: Sequence[int]) -> Comparison:
        assert seeds == range(7, 10)
        return found

    monkeypatch.setattr(command, "compare", compare)
    assert command.main(["--seed", "7", "--stories", "3"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "the story of seed 8 differs:",
        "--- the original",
        "+++ here",
        "@@ -1,2 +1,2 @@",
        " # begin",
        "-close(fd1) = 0",
        "+# died",
        "repeat: python -m tests.random_stories --seed 8 --stories 1",
        "3 stories, 4 lines compared, 1 differ",
    ]


# --- the stories and what is passed over ----------------------------------------------------------


def acts_of(story: Story) -> list[Act]:
    """All operations that may occur in a story."""
    batches = [batch for run in story["runs"] for batch in run["batches"]]
    return [story["before"], *story["acts"], *batches, *(run["after"] for run in story["runs"])]


def test_seed_determines_a_story_and_many_seeds_cover_every_operation() -> None:
    assert made_up(3) == made_up(3) != made_up(4)
    names = {
        operation[0] for seed in range(100) for act in acts_of(made_up(seed)) for operation in act
    }
    assert names == set(OF_THE_LOOP) | set(OF_A_CONNECTION)


def test_stories_with_exact_waits_contain_nothing_that_changes_them() -> None:
    stories = [made_up(seed) for seed in range(200)]
    exact = [story for story in stories if story["exact_waits"]]
    assert 40 < len(exact) < 100
    for story in exact:
        names = {operation[0] for act in acts_of(story) for operation in act}
        assert not names & {"cancel_timer", "push_back"}


def test_only_timeouts_are_ignored_and_only_where_they_may_differ() -> None:
    story = made_up(0)
    one = ["epoll_wait(epoll, [], 1000, 5) = 0", "read(fd1, 1000, 5) = 0"]
    two = ["epoll_wait(epoll, [], 1000, -1) = 0", "read(fd1, 1000, 5) = 0"]
    story["exact_waits"] = False
    left, right = comparable(story, one, two)
    assert left == right == ["epoll_wait(epoll, [], 1000, TIMEOUT) = 0", one[1]]
    story["exact_waits"] = True
    assert comparable(story, one, two) == (one, two)


def test_comparison_ends_where_the_original_dies_of_a_lost_callback() -> None:
    story = made_up(0)
    original = ["# own callback 1", "# lost callback"]
    assert comparable(story, original, ["# own callback 1", "# batch 3"]) == (
        ["# own callback 1"],
        ["# own callback 1"],
    )
    left, right = comparable(story, original, ["# own callback 2", "# batch 3"])
    assert left != right
