"""The web UI's prompt syntax, none of which has an effect here: what of it a prompt uses, to tell its author."""

import re
from collections.abc import Iterator

# No pattern backtracks: a prompt has thousands of characters. What is escaped, as in \(this\), is no syntax.
ESCAPED = re.compile(r"\\.", re.DOTALL)
SYNTAX = [
    re.compile(pattern)
    for pattern in (
        r"\([^()]++\)",  # (word), ((word)), (word:1.3)
        r"\[[^\[\]]++\]",  # [word], [from:to:0.5], [one|other]
        r"\bBREAK\b",
        r"\bAND\b",
        r"<\w++:[^<>]*+>",  # <lora:name:1>
    )
]
SHOWN_CHARS = 60


def notes(*prompts: str | None) -> Iterator[str]:
    """One sentence that quotes what is taken as plain words, if anything is."""
    found = dict.fromkeys(each for prompt in prompts for each in _syntax(prompt or ""))
    if found:
        yield f"The web UI's prompt syntax has no effect here and was read as plain words: {', '.join(found)}."


def _syntax(prompt: str) -> Iterator[str]:
    """The first of each kind."""
    text = ESCAPED.sub("", prompt)
    for pattern in SYNTAX:
        if match := pattern.search(text):
            yield match.group() if len(match.group()) <= SHOWN_CHARS else f"{match.group()[:SHOWN_CHARS]}..."
