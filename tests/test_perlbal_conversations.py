"""The same conversations with Debian's Perlbal and ours: equal bytes, or a named difference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.needs import REQUIRED
from tests.perlbal.compare import TABLES, ServerPool, fault, server_pool, told
from tests.perlbal.differences import DIFFERENCES
from tests.perlbal.proxying import PLAIN, TABLE
from tests.perlbal.servers import ORIGINAL, OURS
from tests.perlbal.starting import REFUSALS, Refusal, refused
from tests.perlbal.steps import ask, get
from tests.perlbal.tables import Conversation

DOCS = Path(__file__).resolve().parent.parent / "docs" / "perlbal.md"

ROWS = {f"{subject}: {row.name}": row for subject, rows in TABLES.items() for row in rows}
SAMPLE = ROWS if REQUIRED else dict([*ROWS.items()][::8])


@pytest.fixture(scope="module")
def place() -> Iterator[ServerPool]:
    with server_pool() as opened:
        yield opened


@pytest.mark.needs("perlbal")
@pytest.mark.parametrize("row", SAMPLE.values(), ids=SAMPLE.keys())
def test_conversation_is_the_same_or_differs_as_documented(
    place: ServerPool, row: Conversation
) -> None:
    if found := place.fault(row):
        pytest.fail(found, pytrace=False)


@pytest.mark.needs("perlbal")
@pytest.mark.parametrize(
    "refusal", REFUSALS if REQUIRED else REFUSALS[::3], ids=lambda refusal: str(refusal.name)
)
def test_configuration_is_rejected_in_the_same_words(refusal: Refusal, tmp_path: Path) -> None:
    original = refused(ORIGINAL, refusal.configuration, tmp_path / "original")
    assert original[0]
    assert refused(OURS, refusal.configuration, tmp_path / "ours") == original


def test_conversations_are_numerous_and_have_unique_names() -> None:
    assert len(ROWS) == sum(len(rows) for rows in TABLES.values()) >= 200


def test_every_named_difference_is_shown_and_every_shown_one_is_named() -> None:
    assert {row.differs for row in ROWS.values()} - {""} == set(DIFFERENCES)
    assert not [row.name for row in ROWS.values() if row.differs and not row.ours]


def test_docs_name_the_same_differences() -> None:
    _, found, text = DOCS.read_text().partition("\n## What differs\n")
    assert found, "docs/perlbal.md has no chapter 'What differs'"
    table = text.partition("| 1 |")[2].partition("\n\n")[0]
    assert re.findall(r"^(?:\| \d+ \|)? ([^|]+?) \|", table, re.MULTILINE) == list(DIFFERENCES)


@pytest.mark.needs("perlbal")
def test_server_that_answers_differently_is_detected(place: ServerPool) -> None:
    row = Conversation(PLAIN, "two ends of one", (ask(get("/")),))
    found = place.hold(row)
    assert found["original"] == found["ours"]
    spoilt = {**found, "ours": {**found["ours"], "client": ["HTTP/1.0 200 OK\r\n\r\nko"]}}
    assert "+    ko" in fault(row, spoilt)
    assert "not different" in fault(replace(row, differs="strict heads"), found)
    assert "ours lacks ['x']" in fault(replace(row, differs="strict heads", ours=("x",)), spoilt)
    assert not fault(replace(row, differs="strict heads", ours=("ko",)), spoilt)


@pytest.mark.needs("perlbal")
def test_request_that_no_backend_answers_is_shown(place: ServerPool) -> None:
    row = TABLE.rows[0]
    assert "X-Forwarded-For: 127.0.0.1" in told(place.hold(row)["original"])
