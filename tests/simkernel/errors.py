"""The error for a program that misuses the simulated kernel."""


class SimError(AssertionError):
    """A call that no correct program makes, or a wait that nothing can end.

    It isn't an `OSError`, so that no code that handles errors of the kernel can swallow it.
    """
