"""Debian's Perlbal and ours, told the same and compared.

`conversation` says what a conversation is and holds one, by `steps`; `servers` starts what it is
held with, `backends` are the far ends that do as they are told. The conversations are in
`proxying`, `smuggling`, `reproxying`, `uploads`, `webserving`, `selecting`, `managing`, `starting`
and `ending`; `compare` holds each with both; `differences` names what is meant to differ.

    python -m tests.perlbal [WORD ...]        the conversations whose names have these words in them
    python -m tests.perlbal.fuzz              random and mutated input
    python -m tests.perlbal.simulated         the same on the simulated kernel
    python -m tests.perlbal.soak              millions of requests
"""
