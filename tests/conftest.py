"""Fixtures and hooks for all tests."""

from collections.abc import Iterator
from typing import cast

import pytest

from tests import needs
from tests.world import WORLDS, Kind, World, world_of


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        needs.need(*mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in needs.how_to_get():
        terminalreporter.write_line(line)


@pytest.fixture(params=WORLDS, ids=str)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each of the kernels in turn."""
    with world_of(cast(Kind, request.param)) as world:
        yield world
