"""Private words for things that the field has names for, replaced once, do not come back."""

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
KEPT = {"Recipe", "patience"}


@pytest.mark.parametrize(
    "files",
    ["scheduler/**/*.py", "workers/*.py", "workers/engine/**/*.py", "app/**/*.py", "tests/**/*.py", "example/**/*.py"],
)
def test_no_old_name_is_left(files: str) -> None:
    folder, _, _ = files.partition("/")
    gone, left = GONE | GONE_FROM.get(folder, set()), []
    if folder in ("tests", "example"):
        gone -= KEPT
    for path in sorted(ROOT.glob(files)):
        with tokenize.open(path) as file:
            names = {token.string.strip("_") for token in tokenize.generate_tokens(file.readline)}
        left += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(names & gone)]
    assert left == []
