"""The calls that the package made while the tests ran.

Each name of the stub becomes a descriptor of the door's class, which records its first use by the
package and then removes itself, so that the door is as it was.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import danga_raw
from danga_raw._libc import Door

PACKAGE = Path(danga_raw.__file__).parent
STUB = PACKAGE.parent / "typestubs" / "libc.pyi"

ONLY_ASKING = ("backends", "system_platform", "_observe", "_leave_alone")
"""Functions of the package that check whether a call exists, and make none."""

seen: set[str] = set()
"""The calls that the package has looked up in the door to make them."""


def stub() -> dict[str, ast.FunctionDef]:
    """The functions of the stub, by name."""
    body = ast.parse(STUB.read_text()).body
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


class FirstUse:
    """Intercepts one attribute of the door."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, door: Door, owner: type[Door]) -> object:
        code = sys._getframe(1).f_code
        if PACKAGE in Path(code.co_filename).parents and code.co_name not in ONLY_ASKING:
            seen.add(self.name)
            delattr(Door, self.name)
        try:
            return vars(door)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None

    def __set__(self, door: Door, value: object) -> None:
        vars(door)[self.name] = value

    def __delete__(self, door: Door) -> None:
        del vars(door)[self.name]


def watch() -> None:
    """Start recording which calls are made."""
    for name in stub():
        setattr(Door, name, FirstUse(name))
