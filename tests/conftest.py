"""Fixtures and hooks for all tests."""

import pytest

from tests import needs


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        needs.need(*mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in needs.how_to_get():
        terminalreporter.write_line(line)
