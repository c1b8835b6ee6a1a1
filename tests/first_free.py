"""The lowest free descriptor number in a program on this package."""

import subprocess
import sys

_PROGRAM = "import ctypes, os; print(os.open('/', os.O_RDONLY))"

FIRST = int(subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True).stdout)
"""3, unless ctypes uses a descriptor: libffi keeps its own file open from 3.8 on."""
