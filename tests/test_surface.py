"""The interface to the system: the declared calls, the bound ones, and those that all the tests
were seen to make are the same."""

from __future__ import annotations

import ast
import inspect
import re
import sys

import pytest

from danga_raw._kernel import in_c
from danga_raw._libc import FOREIGN, libc
from tests import surface
from tests.surface import stub


def test_stub_declares_exactly_what_is_bound() -> None:
    declared = set(stub())
    bound = {name for name, value in vars(libc).items() if callable(value)}
    assert bound <= declared
    absent = {"kqueue", "kevent", "epoll_create1", "epoll_ctl", "epoll_wait"}
    assert declared - bound <= absent
    if sys.platform == "linux":
        assert declared - bound == {"kqueue", "kevent"}


@pytest.mark.parametrize("name", sorted(stub()))
def test_function_of_the_stub_is_documented_by_its_prototype(name: str) -> None:
    function = stub()[name]
    documentation = ast.get_docstring(function)
    assert documentation and f"({'' if name != 'poll' else 'struct pollfd'}" in documentation
    prototype = re.search(rf"`[^`]*\b{in_c(name)}\(([^`]*)\)`", documentation, re.DOTALL)
    assert prototype, documentation
    if name in FOREIGN:
        inside = prototype.group(1)
        count = 0 if inside == "void" else inside.count(",") + 1
        assert len(function.args.posonlyargs) == count


@pytest.mark.parametrize("name", ["read", "write", "close", "fstat", "getrusage", "getpid"])
def test_python_wrapper_takes_the_arguments_that_the_stub_declares(name: str) -> None:
    try:
        parameters = inspect.signature(getattr(libc, name)).parameters
    except ValueError:
        pytest.skip(f"this Python doesn't tell the signature of {name}")
    required = [p for p in parameters.values() if p.default is p.empty and p.kind < p.KEYWORD_ONLY]
    assert len(required) == len(stub()[name].args.posonlyargs)


@pytest.mark.last_of_all
def test_all_tests_together_make_exactly_the_calls_that_the_stub_declares() -> None:
    assert surface.seen == set(stub())
