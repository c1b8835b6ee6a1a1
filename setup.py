"""PyPI's page is the README. Its links lead to other files of a checkout or an sdist, and would lead
nowhere there: what they name is left, as words."""

import re
from pathlib import Path

from setuptools import setup

LINK = re.compile(r"\[([^]]+)\]\((?!https?:)[^)]+\)")

setup(
    long_description=LINK.sub(r"\1", Path("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
