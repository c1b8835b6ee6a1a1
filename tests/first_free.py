"""The first descriptor number that is free in a program on this package."""

import subprocess
import sys

_PROGRAM = "import ctypes, os; print(os.open('/', os.O_RDONLY))"

FIRST = int(subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True).stdout)
"""3, unless ctypes keeps a descriptor for itself: libffi keeps its own file open from 3.8 on."""
