"""The ABI oracle: what the C headers of each platform say, compared with what the package declares.

`python -m tests.abi` compiles one probe for every target with zig, which includes the headers, and
writes the answers to docs/abi.md; `python -m tests.abi --check` compares without writing.
"""
