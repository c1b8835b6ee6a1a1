"""Debian's Perlbal and ours, told the same and compared.

`conversation` says what a conversation is and holds one, `servers` starts what it is held with,
`backends` are the far ends that do as they are told. The conversations are in `proxying`,
`reproxying`, `uploads`, `webserving`, `selecting`, `managing`, `starting` and `ending`;
`differences` names what is meant to differ.

    python -m tests.perlbal [WORD ...]        the conversations whose names have these words in them
    python -m tests.perlbal.fuzz              random and mutated input
    python -m tests.perlbal.soak              millions of requests
"""
