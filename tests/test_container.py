"""A container with only the files that a server on this package loads (see `container.py`)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests import container

pytestmark = [
    pytest.mark.needs("chroot"),
    pytest.mark.skipif(
        sys.implementation.name == "pypy", reason="PyPy finds its library otherwise"
    ),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    container.make(root)
    return root


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_client_is_served_from_a_root_with_nothing_else_in_it(backend: str, root: Path) -> None:
    before = files(root)
    container.serve(root, DANGA_RAW_BACKEND=backend)
    assert files(root) == before
    print(container.figures(root))


def test_every_file_in_the_root_is_needed(root: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    needless = set()
    for path in files(root):
        if path.name == "__init__.py":  # without it the folder would be a package all the same
            path = path.parent
        os.replace(path, beside)
        try:
            container.serve(root)
            needless.add(path.name.partition(".")[0])
        except OSError:
            pass
        finally:
            os.replace(beside, path)
    # heapq.py works without it, but more slowly.
    assert needless <= {"_heapq"}
