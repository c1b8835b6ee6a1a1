"""The same conversation with the original and with ours."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.perlbal.conversation import House, Place, Step, Transcript, house
from tests.perlbal.servers import ORIGINAL, OURS

COMMANDS = {"original": ORIGINAL, "ours": OURS}
"""The folders of the two have names of one length, or answers that name a file would differ in it."""
FOLDERS = {"original": "orig", "ours": "ours"}


@dataclass(frozen=True)
class Conversation:
    """A row of a table."""

    place: Place
    name: str
    steps: tuple[Step, ...]
    alone: bool = False
    """It changes what the setting is, or ends the server: nothing is held with that one again."""
    differs: str = ""
    """The row of `differences` that says why ours is not the same."""
    ours: tuple[str, ...] = ()
    """What ours must have said, where it differs."""


class Table:
    """Conversations of one subject."""

    def __init__(self) -> None:
        self.rows: list[Conversation] = []

    def row(
        self,
        place: Place,
        name: str,
        *steps: Step,
        alone: bool = False,
        differs: str = "",
        ours: tuple[str, ...] = (),
    ) -> None:
        self.rows.append(Conversation(place, name, steps, alone, differs, ours))


class Town:
    """The servers that are running: one for each setting and command, kept until the end."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = ("original", "ours")) -> None:
        self.folder = folder
        self.commands = commands
        self.stack = contextlib.ExitStack()
        self.houses: dict[tuple[str, str], House] = {}
        self.pool = ThreadPoolExecutor(len(commands))
        self.count = 0

    def close(self) -> None:
        self.pool.shutdown()
        self.stack.close()

    def _place(self, command: str) -> Path:
        self.count += 1
        # One length for all, see FOLDERS.
        return self.folder / f"{self.count // len(self.commands):04}" / FOLDERS[command]

    def hold(self, conversation: Conversation) -> dict[str, Transcript]:
        """With each of the commands at the same time."""
        places = {command: self._place(command) for command in self.commands}
        futures = {
            command: self.pool.submit(self._hold, conversation, command, places[command])
            for command in self.commands
        }
        return {command: future.result() for command, future in futures.items()}

    def _hold(self, conversation: Conversation, command: str, place: Path) -> Transcript:
        place.parent.mkdir(parents=True, exist_ok=True)
        if conversation.alone:
            with house(conversation.place.setting, COMMANDS[command], place) as own:
                return own.hold(conversation.steps, conversation.place.service)
        key = conversation.place.setting.name, command
        if key not in self.houses:
            opened = house(conversation.place.setting, COMMANDS[command], place)
            self.houses[key] = self.stack.enter_context(opened)
        return self.houses[key].hold(conversation.steps, conversation.place.service)


@contextlib.contextmanager
def town(*commands: str) -> Iterator[Town]:
    with tempfile.TemporaryDirectory() as folder:
        opened = Town(Path(folder), commands or ("original", "ours"))
        try:
            yield opened
        finally:
            opened.close()


def told(transcript: Transcript) -> str:
    """A transcript to be read."""
    lines = []
    for who, got in transcript.items():
        for each in got:
            shown = each.replace("\r\n", "\n").rstrip("\n").replace("\n", "\n    ")
            lines.append(f"{who}:\n    {shown}")
    return "\n".join(lines)


def tables() -> dict[str, list[Conversation]]:
    """All that there are, by subject."""
    from tests.perlbal import proxying, webserving

    return {"proxying": proxying.TABLE.rows, "webserving": webserving.TABLE.rows}
