"""Fixtures and hooks for all tests."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from tests import needs, processes, surface
from tests.world import PATIENCE, WORLDS, Kind, World, no_hanging, world_of

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processes", type=int, default=1, help="run the tests in so many processes at once"
    )


def pytest_configure(config: pytest.Config) -> None:
    surface.watch()
    # Tests that run in the background may inherit these as ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests about the whole run come last, and only if all tests are run."""
    last = [item for item in items if item.get_closest_marker("last_of_all")]
    items[:] = [item for item in items if item not in last]
    chosen = config.option.keyword or config.option.markexpr or config.option.deselect
    if not chosen and {item.path for item in items} >= set(TESTS.glob("test_*.py")):
        items += last


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if option.processes < 2 or option.collectonly or session.testsfailed:
        return None
    processes.run(session, option.processes)
    return True


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        needs.need(*mark.args)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in needs.how_to_get():
        terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def ends_by_itself(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test hangs for ever. A test without a `world` may have to wait for many programs."""
    with no_hanging(PATIENCE if "world" in request.fixturenames else 10 * PATIENCE):
        yield


@pytest.fixture(params=WORLDS, ids=str)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each of the kernels in turn."""
    with world_of(cast(Kind, request.param)) as world:
        yield world
