"""Checks for common mistakes, each with an error of one line that names it."""

from __future__ import annotations

from operator import index

from danga_raw._log import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, SupportsIndex

_IDLE: Final = 0x20 | 0x80 | 0x200
"""CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR, the flags of a code object, from `inspect`."""


def does_nothing(function: object) -> bool:
    """Whether calling it does nothing by itself: a coroutine function or a generator function."""
    code: object = getattr(function, "__code__", None)
    if code is None:
        if type(function).__module__ == "functools":  # A partial, without importing functools.
            return does_nothing(getattr(function, "func", None))
        code = getattr(type(function).__call__, "__code__", None)
    flags: object = getattr(code, "co_flags", 0)
    return isinstance(flags, int) and flags & _IDLE != 0


def check_callback(what: str, callback: object) -> None:
    """Raises `TypeError` for anything that can't be called, or would do nothing if called."""
    if does_nothing(callback):
        idle = f"{callback!r} is a coroutine function or a generator"
        raise TypeError(f"{what} is called and not awaited: {idle}")
    if not callable(callback):
        called = "; give the function itself, f and not f()" if callback is None else ""
        raise TypeError(f"{what} is a callable, not {callback!r}{called}")


def check_class(kind: type, base: type) -> None:
    """Raises `TypeError` for a subclass whose handlers would do nothing when called, and warns of
    one whose handlers lack a parameter: `close(self)`, as in asyncore, would fail when a write
    does. A class whose constructor calls no `__init__` gets a `__getattr__` that explains this when
    an object is used. Other classes don't get one, because it slows down every attribute on CPython
    3.10 and 3.11."""
    for name, own in vars(base).items():
        if name.startswith(("event_", "on_", "close")):
            handler: object = getattr(kind, name, None)
            what = f"{kind.__name__}.{name} is called"
            if does_nothing(handler):
                raise TypeError(f"{what} and not awaited: no async def or yield")
            if _takes_nothing(handler) and not _takes_nothing(own):
                warn("%s with one argument, as %s.%s is", what, base.__name__, name)
    constructor: object = getattr(kind, "__init__")
    if constructor is not getattr(base, "__init__") and not hasattr(kind, "__getattr__"):
        code: object = getattr(constructor, "__code__", None)
        if "__init__" not in getattr(code, "co_names", ("__init__",)):
            setattr(kind, "__getattr__", _missing)


def _takes_nothing(function: object) -> bool:
    """Whether a method only takes `self`: one argument, and no *args (CO_VARARGS)."""
    code: object = getattr(function, "__code__", None)
    return getattr(code, "co_argcount", 0) == 1 and not getattr(code, "co_flags", 0) & 0x04


def _missing(obj: object, name: str) -> object:
    check_made(obj)
    return object.__getattribute__(obj, name)  # Raises, with the best message.


def check_made(obj: object) -> None:
    """Raises `AttributeError` if the object's constructor has not called that of `Socket`."""
    try:
        object.__getattribute__(obj, "read_push_back")
    except AttributeError:
        name = type(obj).__name__
        raise AttributeError(f"{name}.__init__ has not called super().__init__(sock)") from None


def no_copy(obj: object) -> object:
    """A `__getstate__` for objects that a loop or the kernel knows. A copy would share their parts,
    and close or drop these with itself."""
    raise TypeError(f"can't copy or pickle {obj!r}: a loop or the kernel knows this one alone")


def whole(what_is: str, given: SupportsIndex) -> int:
    """`given` as an int. Raises `TypeError` if it isn't one."""
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{what_is}, not {given!r}") from None


class HandleError(TypeError, AttributeError):
    """Something without a descriptor was to be watched. An AttributeError for compatibility."""


def no_handle(given: object) -> HandleError:
    """The error for something without a descriptor."""
    what = f"a Socket takes a socket, or what else has a fileno(), not {given!r}"
    if isinstance(given, int):
        what += f": socket.socket(fileno={given}) is one, and a bare number is for AddOtherFds"
    return HandleError(what)


def no_data(what_is: str, given: object) -> TypeError:
    """The error for something that is not data."""
    hint = "; encode it first" if isinstance(given, str) else ""
    return TypeError(f"{what_is}, not {type(given).__name__} {given!r:.40}{hint}")
