"""PyPI's page is the README, whose links lead to other files of a checkout. There they lead to the
address that pyproject.toml names as "Source"; while it names none, what they name is left, as words."""

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
