#!/usr/bin/env python3
"""Builds the documentation site: `docs/`, in the order of `zensical.toml`, as static pages in `build/docs/site`.

Zensical reads a copy of `docs/`. In it a folder that the navigation names stands for its pages, and a link that leaves `docs/`
leads to a page with the files it names, so that the site needs nothing beside it. What Zensical does not look at is an error
here: files and pictures that are not there, and pages that the navigation leaves out.

usage: .venv/bin/python hack/website.py [--check]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from markdown.extensions.toc import slugify

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIGURATION = "zensical.toml"
DOCS = "docs"
BUILD = "build/docs"
SITE = f"{BUILD}/site"
README = PurePosixPath("../README.md")
"""Its links are looked at too; it is no page of the site."""
SOURCE = "source"
"""Folder of the site for files that are elsewhere in the repository."""

_FENCE = re.compile(r"^ *(`{3,}|~{3,})")
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_HEADING = re.compile(r"^#{1,6} +(.*?)(?: +#+)?$")
_FOLDER = re.compile(r'(= )"([\w-]+)/"')
_LANGUAGES = {
    ".yaml": "yaml",
    ".py": "python",
    ".sh": "sh",
    ".toml": "toml",
    ".json": "json",
    ".txt": "text",
    ".mod": "text",
}


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a page."""

    page: PurePosixPath
    """From `docs/`."""
    line: int
    target: str

    @property
    def path(self) -> PurePosixPath | None:
        """What it leads to, from the root of the repository; None when that is elsewhere in the world."""
        if re.match(r"[a-z][a-z0-9+.-]*:", self.target):
            return None
        file = self.target.partition("#")[0]
        base = PurePosixPath(os.path.normpath(DOCS / self.page))
        return PurePosixPath(os.path.normpath(base.parent / file)) if file else base

    @property
    def anchor(self) -> str:
        """The section it leads to, or nothing."""
        return self.target.partition("#")[2]

    def __str__(self) -> str:
        return f"{os.path.normpath(DOCS / self.page)}:{self.line}: {self.target}"


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a page that are no code blocks, with their numbers; code within a line is blanked out."""
    fence = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        if fence:
            if mark is not None and mark[1].startswith(fence):
                fence = ""
        elif mark is not None:
            fence = mark[1]
        else:
            yield number, _CODE.sub(lambda found: " " * len(found[0]), line)


def links(page: PurePosixPath, text: str) -> Iterator[Link]:
    """The links and pictures of a page."""
    for number, line in prose(text):
        for found in _LINK.finditer(line):
            yield Link(page, number, found[2])


def headings(text: str) -> Iterator[str]:
    """The headings of a page, without marks."""
    lines = text.splitlines()
    for number, _ in prose(text):
        if (found := _HEADING.match(lines[number - 1])) is not None:
            yield re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", found[1])


def anchors(text: str) -> frozenset[str]:
    """The sections of a page that links can name, as the site names them."""
    found: dict[str, int] = {}
    names = set()
    for heading in headings(text):
        name = slugify(heading, "-")
        found[name] = found.get(name, -1) + 1
        names.add(f"{name}_{found[name]}" if found[name] else name)
    return frozenset(names)


def pages(root: Path) -> Mapping[PurePosixPath, str]:
    """Every page, by its path below `docs/`."""
    docs = root / DOCS
    return {
        PurePosixPath(file.relative_to(docs)): file.read_text(encoding="utf-8") for file in sorted(docs.rglob("*.md"))
    }


def configuration(text: str, there: Mapping[PurePosixPath, str]) -> str:
    """What Zensical is to read: folders in the navigation have become their pages, titled by their first headings."""

    def unfold(found: re.Match[str]) -> str:
        inside = [(next(headings(there[page])), page) for page in there if page.parent == PurePosixPath(found[2])]
        entries = (f"{{ {json.dumps(title, ensure_ascii=False)} = {json.dumps(str(page))} }}" for title, page in inside)
        return f"{found[1]}[{', '.join(entries)}]"

    return _FOLDER.sub(unfold, text)


def navigation(text: str) -> list[PurePosixPath]:
    """The pages in the navigation of a configuration, in its order."""

    def walk(entries: Sequence[Mapping[str, object]]) -> Iterator[PurePosixPath]:
        for entry in entries:
            for value in entry.values():
                if isinstance(value, list):
                    yield from walk(value)
                else:
                    yield PurePosixPath(str(value))

    return list(walk(tomllib.loads(text)["project"]["nav"]))


def problems(root: Path) -> list[str]:
    """What is wrong with links and navigation, a sentence each."""
    there = pages(root)
    named = {DOCS / page: anchors(text) for page, text in there.items()}
    wrong = []
    for page, text in {**there, README: (root / DOCS / README).read_text(encoding="utf-8")}.items():
        for link in links(page, text):
            if (path := link.path) is None:
                continue
            if not (root / path).exists() or path.is_relative_to(".."):
                wrong.append(f"{link} leads to nothing")
            elif page is not README and path.is_relative_to(DOCS) and (root / path).is_dir():
                wrong.append(f"{link} leads to a folder of pages: name a page")
            elif link.anchor and path in named and link.anchor not in named[path]:
                wrong.append(f"{link} leads to no section")
    order = navigation(configuration((root / CONFIGURATION).read_text(encoding="utf-8"), there))
    wrong += [f"{page} is in the navigation and not in {DOCS}" for page in order if page not in there]
    wrong += [f"{DOCS}/{page} is not in the navigation ({CONFIGURATION})" for page in there if page not in order]
    return wrong + [
        f"{page} is more than once in the navigation" for page in sorted(set(order)) if order.count(page) > 1
    ]


def stage(root: Path, to: Path) -> None:
    """Write what Zensical is to read into the folder, which is made anew."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root / DOCS, to / DOCS)
    there = pages(root)
    (to / CONFIGURATION).write_text(configuration((root / CONFIGURATION).read_text(encoding="utf-8"), there))
    for page, text in there.items():
        outside = {
            link.target: link.path for link in links(page, text) if link.path and not link.path.is_relative_to(DOCS)
        }
        if not outside:
            continue
        up = "/".join([".."] * (len(page.parts) - 1)) or "."
        for target, path in outside.items():
            text = text.replace(f"]({target})", f"]({up}/{SOURCE}/{path}.md)")
            file = to / DOCS / SOURCE / f"{path}.md"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source(root, path), encoding="utf-8")
        (to / DOCS / page).write_text(text, encoding="utf-8")


def source(root: Path, path: PurePosixPath) -> str:
    """A page with a file of the repository, or with the files of a folder."""
    top = root / path
    found = sorted(file for file in top.rglob("*") if file.is_file()) if top.is_dir() else [top]
    parts = [f"# {path}\n"]
    for file in found:
        if "__pycache__" in file.parts:
            continue
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", content)), default=0))
        head = [f"## {file.relative_to(top)}\n"] if top.is_dir() else []
        parts += [*head, f"{fence}{_LANGUAGES.get(file.suffix, 'text')}\n{content.rstrip()}\n{fence}\n"]
    return "\n".join(parts)


def build(root: Path, to: Path) -> int:
    """Stage, and have Zensical build `to/site`; its exit status, which is not 0 for a broken link or section."""
    stage(root, to)
    zensical = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(to / CONFIGURATION)]
    done = subprocess.run(zensical, env={**os.environ, "NO_COLOR": "1"}, stdin=subprocess.DEVNULL, check=False)
    return done.returncode


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with links and navigation")
    chosen = parser.parse_args()
    for problem in (wrong := problems(CHECKOUT)):
        sys.stderr.write(f"{problem}\n")
    if wrong or chosen.check:
        return int(bool(wrong))
    if build(CHECKOUT, CHECKOUT / BUILD) != 0:
        return 1
    sys.stderr.write(f"The site is in {SITE}; start at {SITE}/index.html.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
