"""Tables of conversations."""

from __future__ import annotations

from dataclasses import dataclass

from tests.perlbal.conversation import Place, Step


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
    """What ours must have said, where it differs: each somewhere among all that was got."""
    any_order: bool = False
    """The original has fields of a head in the order of a hash."""


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
        any_order: bool = False,
    ) -> None:
        row = Conversation(place, name, steps, alone, differs, ours, any_order)
        self.rows.append(row)
