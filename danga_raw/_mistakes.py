"""Common mistakes, each answered with one line that names it."""

from __future__ import annotations

from operator import index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, SupportsIndex

_IDLE: Final = 0x20 | 0x80 | 0x200
"""CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR of a function's code, as `inspect` has them."""


def does_nothing(function: object) -> bool:
    """True for what does nothing when it is called: what `async def` makes, and a generator."""
    code: object = getattr(function, "__code__", None)
    if code is None:
        if type(function).__module__ == "functools":  # Its partial, without the import of it.
            return does_nothing(getattr(function, "func", None))
        code = getattr(type(function).__call__, "__code__", None)
    flags: object = getattr(code, "co_flags", 0)
    return isinstance(flags, int) and flags & _IDLE != 0


def check_callback(what: str, callback: object) -> None:
    """Raises `TypeError` for what can't be called, and for what would do nothing if it were."""
    if does_nothing(callback):
        idle = f"{callback!r} is a coroutine function or a generator"
        raise TypeError(f"{what} is called and not awaited: {idle}")
    if not callable(callback):
        called = "; give the function itself, f and not f()" if callback is None else ""
        raise TypeError(f"{what} is a callable, not {callback!r}{called}")


def check_class(kind: type, base: type) -> None:
    """Raises `TypeError` for a subclass whose handlers do nothing. One whose own constructor calls no
    `__init__` gets a `__getattr__`, which says so whatever is used of an object. No other class has
    one, as it makes every attribute slower on CPython 3.10 and 3.11."""
    for name in vars(base):
        if name.startswith(("event_", "on_", "close")) and does_nothing(getattr(kind, name, None)):
            raise TypeError(
                f"{kind.__name__}.{name} is called and not awaited: no async def or yield"
            )
    constructor: object = getattr(kind, "__init__")
    if constructor is not getattr(base, "__init__") and not hasattr(kind, "__getattr__"):
        code: object = getattr(constructor, "__code__", None)
        if "__init__" not in getattr(code, "co_names", ("__init__",)):
            setattr(kind, "__getattr__", _missing)


def _missing(obj: object, name: str) -> object:
    check_made(obj)
    return object.__getattribute__(obj, name)  # Which raises, and best says why.


def check_made(obj: object) -> None:
    """Raises `AttributeError` for an object whose constructor has not called that of `Socket`."""
    try:
        object.__getattribute__(obj, "read_push_back")
    except AttributeError:
        name = type(obj).__name__
        raise AttributeError(f"{name}.__init__ has not called super().__init__(sock)") from None


def no_copy(obj: object) -> object:
    """The `__getstate__` of what a loop or the kernel knows. A copy would share its parts, and close or
    forget them with itself."""
    raise TypeError(f"can't copy or pickle {obj!r}: a loop or the kernel knows this one alone")


def whole(what_is: str, given: SupportsIndex) -> int:
    """`given` as an int. Raises `TypeError` for what is none."""
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{what_is}, not {given!r}") from None


class HandleError(TypeError, AttributeError):
    """Something without a descriptor was to be watched. An AttributeError too, as it always was."""


def no_handle(given: object) -> HandleError:
    """The error for what has no descriptor."""
    what = f"a Socket takes a socket, or what else has a fileno(), not {given!r}"
    if isinstance(given, int):
        what += f": socket.socket(fileno={given}) is one, and a bare number is for AddOtherFds"
    return HandleError(what)


def no_data(what_is: str, given: object) -> TypeError:
    """The error for what is no data."""
    hint = "; encode it first" if isinstance(given, str) else ""
    return TypeError(f"{what_is}, not {type(given).__name__} {given!r:.40}{hint}")
