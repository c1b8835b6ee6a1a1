"""Debian's Perlbal and ours, given the same input and compared.

`conversation` defines a conversation and runs it in `steps`; `servers` starts the servers,
`backends` are the scripted backends behind them. The conversations are in
`proxying`, `smuggling`, `reproxying`, `uploads`, `webserving`, `selecting`, `managing`, `starting`
and `ending`; `compare` runs each with both; `differences` names the intended differences.

    python -m tests.perlbal [WORD ...]        the conversations whose names contain these words
    python -m tests.perlbal.fuzz              random and mutated input
    python -m tests.perlbal.simulated         the same on the simulated kernel
    python -m tests.perlbal.soak              millions of requests
"""
