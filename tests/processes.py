"""Run the tests in several processes at once, each test in one of them: `pytest --processes 2`.

The process that has collected the tests forks, hands them out one by one, and treats their reports
as its own: there is one line of dots, one summary, and one record of the failures.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections import deque
from contextlib import suppress
from itertools import groupby, zip_longest
from multiprocessing.connection import Connection, Pipe, wait
from typing import NamedTuple

import pytest

from tests import needs, surface


class Task(NamedTuple):
    """The numbers of a test and of the next one: what is torn down in between depends on both. None
    instead of a test means that there is no more to do."""

    at: int | None
    following: int | None


class Done(NamedTuple):
    """The number of a test, and its reports, as pytest serializes them for other processes."""

    number: int
    reports: list[dict[str, object]]


class End(NamedTuple):
    """What a child has recorded in all its tests."""

    seen: set[str]
    missing: set[str]


class Child:
    """A child, as its parent knows it."""

    def __init__(self, pid: int, pipe: Connection[Task, Done | End]) -> None:
        self.pid = pid
        self.pipe = pipe
        self.task = Task(None, None)
        self.module: deque[int] = deque()
        """The remaining tests of its current module."""


class Queue:
    """The numbers of the tests that no child has been given yet."""

    def __init__(self, items: list[pytest.Item]) -> None:
        modules = groupby(range(len(items)), lambda number: items[number].path)
        self.modules = deque(deque(numbers) for _, numbers in modules)
        self.begun: list[deque[int]] = []

    def hand_out(self, child: Child) -> None:
        """Send a child to the next test."""
        child.task = Task(child.task.following, self.take(child))
        with suppress(ConnectionError):  # `listen` notices a dead child
            child.pipe.send(child.task)

    def take(self, child: Child) -> int | None:
        """A test for this child; None if none is left."""
        # A module's fixtures are made again in each process that runs some of its tests, so
        # children share a module only when there are no others left.
        if not child.module and self.modules:
            child.module = self.modules.popleft()
            self.begun.append(child.module)
        elif not child.module:
            child.module = max(self.begun, key=len, default=child.module)
        return child.module.popleft() if child.module else None


def run(session: pytest.Session, processes: int) -> None:
    """Run all tests of the session: in children, and then those that come last."""
    # Made before the forks, or each child would make its own; the parent removes it.
    getattr(session.config, "_tmp_path_factory").getbasetemp()
    last = [item for item in session.items if item.get_closest_marker("last_of_all")]
    queue = Queue(session.items[: len(session.items) - len(last)])
    children: list[Child] = []
    try:
        for _ in range(processes):
            children.append(fork(session, children))
        for child in children:
            child.task = Task(None, queue.take(child))
            queue.hand_out(child)
        listen(session, children, queue)
    except KeyboardInterrupt:
        for child in children:
            os.kill(child.pid, signal.SIGINT)
        raise
    finally:
        # A child to which nobody listens ends after its test, and cleans up.
        for child in children:
            child.pipe.close()
        for child in children:
            os.waitpid(child.pid, 0)
    for item, following in zip_longest(last, last[1:]):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def listen(session: pytest.Session, children: list[Child], queue: Queue) -> None:
    """Report what the children do, and hand out tests until none are left."""
    at_work = children.copy()
    while at_work:
        ready = wait([child.pipe for child in at_work])
        for child in [child for child in at_work if child.pipe in ready]:
            try:
                told = child.pipe.recv()
            except (EOFError, ConnectionError):
                at = child.task.at
                where = "after its tests" if at is None else f"in {session.items[at].nodeid}"
                session.shouldstop = f"a process of the tests ended {where}"
                raise session.Interrupted(session.shouldstop) from None
            if isinstance(told, End):
                surface.seen |= told.seen
                needs.missing |= told.missing
                at_work.remove(child)
                continue
            report(session.items[told.number], told.reports)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
            queue.hand_out(child)


def report(item: pytest.Item, reports: list[dict[str, object]]) -> None:
    """Report a test that ran in a child."""
    hook, config = item.ihook, item.config
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for data in reports:
        each = config.hook.pytest_report_from_serializable(config=config, data=data)
        hook.pytest_runtest_logreport(report=each)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


# --- in a child -----------------------------------------------------------------------------------


class Reporter:
    """Collects the reports of a test."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reports: list[dict[str, object]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self.config.hook
        self.reports.append(hook.pytest_report_to_serializable(config=self.config, report=report))


def fork(session: pytest.Session, elder: list[Child]) -> Child:
    """Make a child, which runs what the parent hands out and then ends."""
    near, far = Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        far.close()
        return Child(pid, near)
    try:
        # A terminal interrupts the parent's group, and the parent us. Not both: we clean up.
        os.setpgid(0, 0)
        # Only the parent may hold its ends of the pipes: the children notice when it is gone.
        for pipe in (near, *(child.pipe for child in elder)):
            pipe.close()
        work(session, far)
    except (KeyboardInterrupt, EOFError, ConnectionError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(0)


def work(session: pytest.Session, pipe: Connection[Done | End, Task]) -> None:
    """Run what the parent hands out."""
    config, items = session.config, session.items
    plugins = config.pluginmanager
    # Else all would share the file, and the position in it, into which the parent captures output.
    capture = plugins.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture(in_=True)
    plugins.unregister(name="terminalreporter")
    reporter = Reporter(config)
    plugins.register(reporter)
    try:
        while (task := pipe.recv()).at is not None:
            following = None if task.following is None else items[task.following]
            config.hook.pytest_runtest_protocol(item=items[task.at], nextitem=following)
            pipe.send(Done(task.at, reporter.reports))
            reporter.reports = []
    finally:
        session._setupstate.teardown_exact(None)  # what is left after an interruption
    # Here pytest raises what nobody could catch before.
    config._ensure_unconfigure()
    pipe.send(End(surface.seen, needs.missing))
