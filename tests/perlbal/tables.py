"""Tables of conversations."""

from __future__ import annotations

from dataclasses import dataclass

from tests.perlbal.conversation import ServiceSetting, Step


@dataclass(frozen=True)
class Conversation:
    """A row of a table."""

    place: ServiceSetting
    name: str
    steps: tuple[Step, ...]
    alone: bool = False
    """It changes the configuration or ends the server, so the server isn't used again."""
    differs: str = ""
    """The row of `differences` that says why ours is not the same."""
    ours: tuple[str, ...] = ()
    """If ours differs, each of these must be somewhere in what was received from it."""
    any_order: bool = False
    """The original sends the fields of a head in the order of a hash."""


class Table:
    """Conversations of one subject."""

    def __init__(self) -> None:
        self.rows: list[Conversation] = []

    def row(
        self,
        place: ServiceSetting,
        name: str,
        *steps: Step,
        alone: bool = False,
        differs: str = "",
        ours: tuple[str, ...] = (),
        any_order: bool = False,
    ) -> None:
        row = Conversation(place, name, steps, alone, differs, ours, any_order)
        self.rows.append(row)
