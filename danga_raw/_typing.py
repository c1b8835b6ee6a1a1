"""Stand-ins for the names of `typing` that are needed at run time: importing it would take as long
as importing this whole package."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Generic as Generic
    from typing import Protocol as Protocol
    from typing import cast as cast
else:
    from types import GenericAlias

    Protocol = object

    class Generic:
        """Allows `Socket[...]`, which means the same as `Socket` at run time."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    def cast(kind: object, value: object) -> object:
        return value
