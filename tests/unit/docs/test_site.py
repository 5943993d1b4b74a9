"""The documentation holds together, and what the site is built by would say so if it did not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.unit.docs.site import ROOT, website

PAGES = {
    "docs/index.md": "# Home\n\n[one](one.md#a-section), ![a picture](one.svg), [code](../src), [world](https://example.com/x)\n",
    "docs/one.md": "# One\n\n## A section\n\n`[no](link.md)`\n\n```text\n[no](link.md)\n```\n\n## A section\n\n[here](#a-section_1)\n",
    "docs/adr/0001-first.md": "# 1. First\n\n[home](../index.md), [code](../../src/code.py)\n",
    "docs/one.svg": "<svg/>",
    "src/code.py": "NAME = '```'\n",
    "README.md": "# Read me\n\n[docs](docs/one.md#a-section), [decisions](docs/adr)\n",
    "zensical.toml": '[project]\nsite_name = "X"\nnav = [{ "Home" = "index.md" }, { "More" = [{ "One" = "one.md" }, { "All" = "adr/" }] }]\n',
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository with nothing wrong."""
    for name, text in PAGES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_links_and_navigation_of_the_documentation_hold() -> None:
    assert website.problems(ROOT) == []


def test_nothing_is_wrong_with_what_is_right(tree: Path) -> None:
    assert website.problems(tree) == []


@pytest.mark.parametrize(
    ("page", "more", "told"),
    [
        ("docs/one.md", "[x](two.md)", "docs/one.md:14: two.md leads to nothing"),
        ("docs/one.md", "![x](two.svg)", "docs/one.md:14: two.svg leads to nothing"),
        ("docs/one.md", "[x](index.md#no)", "docs/one.md:14: index.md#no leads to no section"),
        ("docs/one.md", "[x](#link)", "docs/one.md:14: #link leads to no section"),
        ("docs/one.md", "[x](../src/no.py)", "docs/one.md:14: ../src/no.py leads to nothing"),
        ("docs/one.md", "[x](../../etc)", "docs/one.md:14: ../../etc leads to nothing"),
        ("docs/one.md", "[x](adr)", "docs/one.md:14: adr leads to a folder of pages: name a page"),
        ("README.md", "[x](docs/two.md)", "README.md:4: docs/two.md leads to nothing"),
        ("docs/two.md", "# Two", "docs/two.md is not in the navigation (zensical.toml)"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tree: Path, page: str, more: str, told: str) -> None:
    with (tree / page).open("a") as file:
        file.write(f"{more}\n")
    assert website.problems(tree) == [told]


def test_a_page_is_in_the_navigation_once_and_is_there(tree: Path) -> None:
    text = PAGES["zensical.toml"]
    (tree / "zensical.toml").write_text(
        text.replace('"All" = "adr/"', '"All" = "adr/" }, { "Again" = "one.md" }, { "No" = "no.md"')
    )
    assert website.problems(tree) == [
        "no.md is in the navigation and not in docs",
        "one.md is more than once in the navigation",
    ]


def test_what_is_elsewhere_in_the_repository_becomes_a_page(tree: Path) -> None:
    website.stage(tree, tree / "build")
    assert "[code](./source/src.md)" in (tree / "build/docs/index.md").read_text()
    assert "[code](../source/src/code.py.md)" in (tree / "build/docs/adr/0001-first.md").read_text()
    page = (tree / "build/docs/source/src/code.py.md").read_text()
    assert page == "# src/code.py\n\n````python\nNAME = '```'\n````\n"
    assert '{ "1. First" = "adr/0001-first.md" }' in (tree / "build/zensical.toml").read_text()


@pytest.mark.wide
def test_the_site_is_built_and_every_link_in_it_leads_somewhere(tmp_path: Path) -> None:
    assert website.build(ROOT, tmp_path) == 0
    site = tmp_path / "site"
    built = {path.relative_to(site).as_posix(): path.read_text() for path in site.rglob("*.html")}
    assert {
        "index.html",
        "start.html",
        "reference/metrics.html",
        "adr/0001-models-are-the-contract.html",
    } <= built.keys()
    for name, text in built.items():
        assert not re.search(r'<(?:link|script|img)[^>]*(?:href|src)="?(?:https?:)?//', text), (
            f"{name} loads from elsewhere"
        )
        article = re.search(r"<article.*</article>", text, re.DOTALL)
        for target in re.findall(r'(?:href|src)="([^"]*)"', article[0] if article else ""):
            file, _, anchor = unquote(target).partition("#")
            if ":" in file:
                continue
            path = Path(os.path.normpath((site / name).parent / file)) if file else site / name
            assert path.is_file(), f"{name}: {target}"
            if anchor and path.suffix == ".html":
                assert re.search(rf'id="?{re.escape(anchor)}[" >]', built[path.relative_to(site).as_posix()]), (
                    f"{name}: {target}"
                )


@pytest.mark.wide
def test_the_site_is_not_built_with_a_broken_section(tree: Path, tmp_path: Path) -> None:
    (tree / "docs/one.md").write_text("# One\n\n[x](index.md#no)\n")
    assert website.build(tree, tree / "build") != 0


@pytest.mark.wide
def test_the_test_of_a_driver_that_the_page_shows_is_one_that_passes(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/drivers.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "test_mine.py").write_text(block)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 20
