"""Private words for things that the field has names for, replaced once, do not come back."""

import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GONE = {
    *("Turns", "Shelves", "Agenda", "Crowd", "Tenant", "Taken", "Standing", "Overdrawn", "Poisoned"),
    *("bury", "forsake", "vacate", "welcome", "reprice", "take_out", "leeway", "guilt", "ACCIDENTS", "patience"),
    *("Drag", "Pace", "Strength", "grain", "objection", "settle", "ring"),
    *("Workshop", "Studio", "Aside", "Ways", "homes", "finals", "Moment", "Given", "coldness", "coldest", "rehearse"),
    *("Extent", "Placed", "Newcomer", "Recipe", "Lane", "DeviceTurns"),
    *("BadPictureError", "picture", "pictures", "PICTURE", "PICTURES"),
    *("Edger", "edger", "Edging", "edging", "Terms", "Answer", "Watching", "Watch", "News", "Wish", "hands", "artist"),
    *("mail", "Mail", "tenant", "tenants"),
    *("or_end", "condemned", "last_words", "when_ended", "hang_up", "Ending"),
    *("SetAside", "aside_seconds"),
}
GONE_FROM_APP = {
    *("Desk", "desk", "Ticket", "ticket", "Voice", "voice", "Maker", "maker", "Follow", "Asked", "asked"),
    *("told", "Told", "told_of", "news", "turn_away", "aside", "INVALID_PICTURE", "Hope", "Recipe"),
    *("other_names", "field_types", "base64_text", "json_reading", "json_syntax", "LimitedConnection"),
    *("Endpoints", "create_app", "connection_limits"),
}
GONE_FROM_SCHEDULER = {
    *("StepPrices", "prices", "Joining", "joining", "is_slower", "if_they_wait", "WAITING", "OUT", "SLOWER", "heard"),
    *("CROWD", "HOPE", "CAUTION", "RELUCTANCE", "MISSED", "APART", "STEEPEST", "HICCUP", "FAR", "OWED", "owed"),
    *("ALIKE", "RESTED", "LOOKED_AT", "PASSING", "passed_since", "turn", "turns", "standing", "apart", "rates"),
}
GONE_FROM = {"app": GONE_FROM_APP, "scheduler": GONE_FROM_SCHEDULER}


# In tests and examples a recipe is that of a training, and patience is how long a client or a measurement waits.
# `workers.fetch` has the flag `--patience`.
KEPT = {"Recipe", "patience"}


# In texts and in the page's code. The changelog names what was renamed, and old records of the page say `picture`.
GONE_FROM_TEXTS = re.compile(
    r"[pP]ictures?\b|\b(Wanted|PATIENCE|SILENT|standing|overdrawn|poisoned|BROKEN_\w+|[eE]dgers?|Ctrl-C)\b"
    r"|\b(silence_(factor|floor)|out_(after|pause)|restart_pause|contour_request_seconds|contour_running)\b|to be had"
)
TEXTS = [
    *("*.md", "docs/*.md", "Makefile", "Dockerfile", "pyproject.toml", "configs/*.yaml", "app/*.yaml"),
    *("app/page/*.js", "app/page/*.css", "app/page/*.html", "example/monitoring/**/*.*", "example/kubernetes/**/*.*"),
]
RENAMED = {"CHANGELOG.md": ".*", "CONTRIBUTING.md": "never picture", "app/page/store.js": "`picture`|record.picture"}


@pytest.mark.parametrize("files", TEXTS)
def test_no_old_word_is_left_in_texts(files: str) -> None:
    left = []
    for path in filter(Path.is_file, sorted(ROOT.glob(files))):
        name = str(path.relative_to(ROOT))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if GONE_FROM_TEXTS.search(line) and not re.search(RENAMED.get(name, "(?!)"), line):
                left.append(f"{name}:{number}: {line.strip()}")
    assert left == []


@pytest.mark.parametrize(
    "files",
    ["scheduler/**/*.py", "workers/**/*.py", "app/**/*.py", "tests/**/*.py", "example/**/*.py"],
)
def test_no_old_name_is_left(files: str) -> None:
    folder, _, _ = files.partition("/")
    gone, left = GONE | GONE_FROM.get(folder, set()), []
    if folder in ("tests", "example", "workers"):
        gone -= KEPT
    for path in sorted(ROOT.glob(files)):
        with tokenize.open(path) as file:
            names = {token.string.strip("_") for token in tokenize.generate_tokens(file.readline)}
        left += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(names & gone)]
    assert left == []
