"""The audit held against those who watch the kernel: strace, in several versions, and qemu.

One and the same run of a program is told by the package's own trace and by a watcher, and both must
tell the same calls. `python -m tests.audit` runs it on other machines' Pythons and on other C
libraries; tests/test_trace_strace.py is the part that runs with the other tests.
"""
