"""The documents of this repository, and what can be checked in them: links, names of things, blocks that can be run.

A fenced block that begins with "sh run" is run by the tests. It has to be cheap and to harm nothing.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
FOLDERS = (".github", "app", "configs", "docs", "example", "requirements", "scheduler", "tests", "workers")
HISTORY = "CHANGELOG.md"  # it names what was, too
RUNNABLE = "sh run"
# Names in examples of what goes wrong, and of the client's own variable.
OTHER_VARIABLES = {"CONTOUR_SEVER__PORT", "CONTOUR_API_KEY"}
NAMED_BY_WORD = ("ARCHITECTURE.md", "CONTRIBUTING.md")  # where every identifier in backticks is one of the code

_FENCED = re.compile(r"^( *)```(.*)\n((?:.*\n)*?)\1```$", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_KEY = re.compile(r"(?<![\w/.])(?:server|scheduler|workers|engine)(?:\.[a-z_]+)+")
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*")


@dataclass(frozen=True, slots=True)
class Document:
    """A Markdown file. `prose` is its text without fenced blocks; `blocks` are (what follows the fence, code)."""

    path: str
    text: str

    @property
    def prose(self) -> str:
        return _FENCED.sub("", self.text)

    @property
    def blocks(self) -> list[tuple[str, str]]:
        return [(info.strip(), code) for _, info, code in _FENCED.findall(self.text)]

    @property
    def code(self) -> list[str]:
        """What stands in backticks, and all lines of blocks."""
        return [*_CODE.findall(self.prose), *(line for _, code in self.blocks for line in code.splitlines())]

    @property
    def anchors(self) -> set[str]:
        """Those that GitHub gives to the headings."""
        seen: Counter[str] = Counter()
        anchors = set()
        for heading in _HEADING.findall(self.prose):
            plain = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            anchors.add(f"{plain}-{seen[plain]}" if seen[plain] else plain)
            seen[plain] += 1
        return anchors

    def problems(self) -> Iterator[str]:
        yield from self._lost_links()
        if self.path != HISTORY:
            yield from (f"there is no {name}" for code in self.code for name in _lost_names(code))
        if self.path in NAMED_BY_WORD:
            yield from (f"the code has no {name}" for name in _lost_identifiers(self.prose))

    def _lost_links(self) -> Iterator[str]:
        for link in _LINK.findall(self.prose):
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = ((ROOT / self.path).parent / target).resolve()
            if target and not file.exists():
                yield f"{link} leads nowhere"
            elif anchor and anchor not in (read(str(file.relative_to(ROOT))) if target else self).anchors:
                yield f"{link} has no such heading"


@cache
def read(path: str) -> Document:
    return Document(path, (ROOT / path).read_text())


def documents() -> list[str]:
    """The paths of all."""
    found = [*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md"))]
    return sorted(str(file.relative_to(ROOT)) for file in found if "node_modules" not in file.parts)


def _lost_names(code: str) -> Iterator[str]:
    """What some code names and the repository does not have: files, modules, verbs, keys and variables."""
    for word in re.split(r"[\s,;=:()\"'<>|]+", code):
        if "/" in word and word.partition("/")[0] in FOLDERS:
            yield from [] if any(ROOT.glob(word)) else [word]
        elif re.fullmatch(r"[\w-]+\.(html|js|md|py|toml|ya?ml)", word):
            yield from [] if word in files() else [word]
    for module in re.findall(r"python3? -m ([\w.]+)", code):
        yield from [] if module.partition(".")[0] not in FOLDERS or _is_module(module) else [f"module {module}"]
    for verb in re.findall(r"(?:^|[&|] *)make ([a-z][a-z-]*)", code):
        yield from [] if verb in verbs() else [f"verb {verb}"]
    for key in _KEY.findall(code):
        yield from [] if key in keys() or _is_module(key) else [f"key {key}"]
    for variable in re.findall(r"\bCONTOUR_[A-Z_]*[A-Z]\b", code):
        yield from [] if variable in {*variables(), *OTHER_VARIABLES} else [f"variable {variable}"]


def _lost_identifiers(prose: str) -> Iterator[str]:
    for code in _CODE.findall(prose):
        name = re.sub(r"\(.*\)$", "", code)
        if _IDENTIFIER.fullmatch(name) and not set(name.split(".")) <= words():
            yield name


def _is_module(name: str) -> bool:
    place = ROOT / name.replace(".", "/")
    return place.with_suffix(".py").exists() or (place / "__main__.py").exists()


@cache
def files() -> set[str]:
    """The names of all files, without their folders."""
    return {file.name for folder in ("*", *(f"{folder}/**/*" for folder in FOLDERS)) for file in ROOT.glob(folder)}


@cache
def verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def keys() -> set[str]:
    """All keys of a configuration and its sections."""
    names = re.findall(r"^(?:## |\| )`([a-z_.]+)(?:\[\])?", read("docs/configuration.md").text, re.MULTILINE)
    return {*names, *(name.rpartition(".")[0] for name in names)}


@cache
def variables() -> set[str]:
    return set(re.findall(r"CONTOUR_[A-Z_]+", read("docs/configuration.md").text))


@cache
def words() -> frozenset[str]:
    """All that the code has a name for: words of its sources, names of its files, and verbs."""
    found = set(verbs())
    for folder in ("app", "scheduler", "workers", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            found |= {*re.findall(r"\w+", file.read_text()), *file.relative_to(ROOT).with_suffix("").parts}
    return frozenset(found)
