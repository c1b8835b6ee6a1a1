"""The audit compared with tools that watch the kernel: strace, in several versions, and qemu.

The package's own trace and another tracer follow the same run of a program, and both must report
the same calls. `python -m tests.audit` does this on other machines' Pythons and on other C
libraries; tests/test_trace_strace.py is the part that runs with the other tests.
"""
