"""The package can be installed or copied: one folder, nothing to build, nothing beside it."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import danga_raw

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_nothing_is_required_at_run_time() -> None:
    assert re.search(r"^dependencies = \[\]$", PYPROJECT, re.MULTILINE)
    assert re.search(r'^requires-python = ">=3\.10"$', PYPROJECT, re.MULTILINE)


def test_licence_is_that_of_the_original() -> None:
    assert 'license = "Artistic-1.0-Perl OR GPL-1.0-or-later"' in PYPROJECT
    text = (ROOT / "LICENSE").read_text()
    assert "Artistic" in text and "GNU GENERAL PUBLIC LICENSE" in text.upper()


def test_package_is_marked_as_typed() -> None:
    assert danga_raw.__file__
    assert (Path(danga_raw.__file__).parent / "py.typed").exists()
    assert 'danga_raw = ["py.typed"]' in PYPROJECT


@pytest.mark.parametrize("source", [None, "https://example.org/danga_raw"])
def test_pypi_page_has_no_broken_links(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str | None
) -> None:
    given: dict[str, str] = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=given.update))
    for name in "README.md", "pyproject.toml", "setup.py":
        shutil.copy(ROOT / name, tmp_path)
    if source is not None:
        urls = PYPROJECT.replace("[project.urls]\n", f'[project.urls]\nSource = "{source}"\n')
        (tmp_path / "pyproject.toml").write_text(urls)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("setup.py")
    page = given["long_description"]
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith("https://")] == []
    assert (f"{source}/blob/main/docs/manual.md" in links) == (source is not None)
    assert "docs/manual.md" in page and "```python" in page


def test_changelog_mentions_the_version() -> None:
    assert danga_raw.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_folder_alone_can_be_copied_and_used(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "danga_raw", tmp_path / "danga_raw", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = """
import os, sys
sys.path.insert(0, sys.argv[1])
import danga_raw
assert danga_raw.__file__.startswith(sys.argv[1]), danga_raw.__file__
read_end, write_end = os.pipe()
got = []
with danga_raw.Loop() as loop:
    loop.add_other_fds({read_end: lambda state: got.append(os.read(read_end, 10)) or loop.stop()})
    os.write(write_end, b"alone")
    loop.run()
print(got)
"""
    # -I: no environment, no user site folder; -S: no installed packages.
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("[b'alone']\n", "")


def test_only_the_standard_library_is_loaded() -> None:
    code = """
import sys
import danga_raw
loop = danga_raw.Loop()
loop._registry.open()
loop.close()
outside = [name for name in sys.modules
           if name.split(".")[0] not in sys.stdlib_module_names | {"danga_raw", "__main__"}]
print(outside)
"""
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})" + code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", danga_raw.__all__)
def test_every_exported_name_can_be_imported(name: str) -> None:
    assert getattr(importlib.import_module("danga_raw"), name) is not None


PYENV_PYTHONS = sorted(
    Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/[23].*")
)
"""pyenv's Pythons; the tests below use the older ones."""


def too_old(python: Path) -> bool:
    major, minor = python.name.split(".")[:2]
    return minor.isdecimal() and (int(major), int(minor)) < (3, 10)


@pytest.mark.parametrize(
    "python", [path for path in PYENV_PYTHONS if too_old(path)], ids=lambda p: p.name
)
def test_older_python_gets_a_one_line_explanation(python: Path, tmp_path: Path) -> None:
    version = ".".join(python.name.split(".")[:2])
    line = f"danga_raw needs Python 3.10 or later; this is Python {version}"
    imported = "try:\n    import danga_raw.trace\nexcept ImportError as error:\n    print(error)"
    for argv, out, err, status in (
        (["-c", imported], line + "\n", "", 0),
        (["-m", "danga_raw", "echo"], "", line + "\n", 1),
        (["-m", "danga_raw.trace"], "", line + "\n", 1),
    ):
        done = subprocess.run(
            [python / "bin/python", "-B", *argv],
            env={"PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr, done.returncode) == (out, err, status)


def test_version_is_in_the_package() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", danga_raw.__version__)
