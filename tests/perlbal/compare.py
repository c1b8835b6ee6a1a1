"""Hold the same conversation with the original and with ours, and compare."""

from __future__ import annotations

import contextlib
import difflib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.perlbal import (
    ending,
    managing,
    proxying,
    reproxying,
    selecting,
    smuggling,
    uploads,
    webserving,
)
from tests.perlbal.conversation import Deployment, Transcript, deployment
from tests.perlbal.servers import ORIGINAL, OURS
from tests.perlbal.tables import Conversation

TABLES = {
    module.__name__.rpartition(".")[2]: module.TABLE.rows
    for module in (
        proxying,
        smuggling,
        reproxying,
        uploads,
        webserving,
        selecting,
        managing,
        ending,
    )
}
"""All conversations, by subject."""

ATTEMPTS = 5

COMMANDS = {"original": ORIGINAL, "ours": OURS}
FOLDERS = {"original": "orig", "ours": "ours"}
"""Names of equal length, because otherwise answers that name a file would differ in length."""


class ServerPool:
    """The running servers: one for each setting and command, kept until the end."""

    def __init__(self, folder: Path, commands: tuple[str, ...] = ("original", "ours")) -> None:
        self.folder = folder
        self.commands = commands
        self.stack = contextlib.ExitStack()
        self.deployments: dict[tuple[str, str], Deployment] = {}
        self.pool = ThreadPoolExecutor(len(commands))
        self.count = 0

    def close(self) -> None:
        self.pool.shutdown()
        self.stack.close()

    def _place(self, command: str) -> Path:
        self.count += 1
        # All have the same length, see FOLDERS.
        return self.folder / f"{self.count // len(self.commands):04}" / FOLDERS[command]

    def hold(self, conversation: Conversation) -> dict[str, Transcript]:
        """Hold a conversation with the servers of all commands at the same time."""
        places = {command: self._place(command) for command in self.commands}
        futures = {
            command: self.pool.submit(self._hold, conversation, command, places[command])
            for command in self.commands
        }
        return {command: future.result() for command, future in futures.items()}

    def fault(self, conversation: Conversation) -> str:
        """What is wrong with ours in a conversation. Empty if one of several attempts shows no
        fault: when two ends act at once, the original doesn't always answer the same."""
        found = ""
        for _ in range(ATTEMPTS):
            found = fault(conversation, self.hold(conversation))
            if not found:
                break
        return found

    def _hold(self, conversation: Conversation, command: str, place: Path) -> Transcript:
        place.parent.mkdir(parents=True, exist_ok=True)
        setting, service = conversation.place.setting, conversation.place.service
        if conversation.alone:
            with deployment(setting, COMMANDS[command], place) as own:
                found = own.hold(conversation.steps, service)
        else:
            key = setting.name, command
            if key not in self.deployments:
                opened = deployment(setting, COMMANDS[command], place)
                self.deployments[key] = self.stack.enter_context(opened)
            found = self.deployments[key].hold(conversation.steps, service)
        if conversation.any_order:
            found = {who: [ordered(each) for each in got] for who, got in found.items()}
        return found


def ordered(text: str) -> str:
    """Sort the fields of a head by name."""
    head, end, body = text.partition("\r\n\r\n")
    first, *fields = head.split("\r\n")
    return "\r\n".join([first, *sorted(fields)]) + end + body


@contextlib.contextmanager
def server_pool(*commands: str) -> Iterator[ServerPool]:
    with tempfile.TemporaryDirectory() as folder:
        opened = ServerPool(Path(folder), commands or ("original", "ours"))
        try:
            yield opened
        finally:
            opened.close()


def fault(conversation: Conversation, found: dict[str, Transcript]) -> str:
    """What is wrong with these transcripts; empty if nothing is."""
    original, ours = found["original"], found["ours"]
    one, other = (told(each).split("\n") for each in (original, ours))
    lines = list(difflib.unified_diff(one, other, "original", "ours", n=30, lineterm=""))
    shown = "\n".join(lines)
    if not conversation.differs:
        return shown
    if not lines:
        return f"not different, as '{conversation.differs}' would have it:\n{told(ours)}"
    heard = "".join(each for who, got in ours.items() for each in got)
    lacking = [part for part in conversation.ours if part not in heard]
    return f"ours lacks {lacking}:\n{shown}" if lacking else ""


def told(transcript: Transcript) -> str:
    """A transcript as readable text. Different transcripts give different texts."""
    lines = []
    for who, got in transcript.items():
        for each in got:
            # Lines end with CR LF; any other line ending must be visible.
            ends = [line.replace("\r", "\\r").replace("\n", "\\n") for line in each.split("\r\n")]
            lines.append(f"{who}:\n    " + "\n    ".join(ends))
    return "\n".join(lines)
