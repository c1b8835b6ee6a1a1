"""PyPI's page is the README, but its relative links have to be replaced: by links below the address
that pyproject.toml has as "Source", or by their bare text if there is none."""

import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"\[([^]]+)\]\((?!https?:)([^)]+)\)")
SOURCE = re.search(r'^"?Source"? = "(.+)"$', Path("pyproject.toml").read_text("utf-8"), re.M)

setup(
    long_description=LINK.sub(
        rf"[\1]({SOURCE[1].rstrip('/')}/blob/main/\2)" if SOURCE else r"\1",
        Path("README.md").read_text("utf-8"),
    ),
    long_description_content_type="text/markdown",
)
