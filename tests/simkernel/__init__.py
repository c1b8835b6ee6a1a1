"""A simulated kernel behind the package's door, with one file for each kind of kernel object.

    kernel = SimKernel(seed)                      # Linux: epoll and poll
    kernel = SimKernel(seed, "netbsd")            # kqueue and poll, with NetBSD's rules and layout
    kernel = SimKernel(seed, platform="darwin")   # FreeBSD's rules, macOS's layout
    with kernel.installed():
        one, two = kernel.socketpair()
        one.setblocking(False)
        Socket(one)
        ...

Its clock advances only during a wait, and its decisions come from the seed alone. It is strict: a
struct of the wrong size, an unknown flag, the use of a closed descriptor, a count of the wrong C
type, a buffer that is too small, and a wait that nothing can end raise `SimError`, which is not an
`OSError`.
"""

from tests.simkernel.errors import SimError as SimError
from tests.simkernel.handles import Handle as Handle
from tests.simkernel.kernel import SimKernel as SimKernel
from tests.simkernel.kqueue import LAYOUTS as LAYOUTS
from tests.simkernel.luck import Luck as Luck
