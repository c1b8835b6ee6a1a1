"""Stand-ins for what is needed of `typing` at run time: its import would take as long as all of this
package's."""

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
        """Takes `Socket[...]`, which then is as good as `Socket`."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    def cast(kind: object, value: object) -> object:
        return value
