"""What is wrong with a recipe: one line of text for each mistake, sorted by where it stands."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

_LENGTHS = 0.6  # of a mistyped name and what is meant: `norm` is no layer_norm, which would be another net
Key = tuple[str | int, ...]  # a path of keys and list indices


@dataclass(frozen=True)
class Problem:
    """A mistake. line None with a key: it came from the command line; with neither: the whole file is meant."""

    text: str
    line: int | None = None
    key: Key = ()

    def format(self, source: str) -> str:
        """One line; `source` names the recipe file."""
        if self.line is not None:
            where = f"{source}:{self.line}"
        else:
            where = "command line" if self.key else source
        return ": ".join([where, *([dotted(self.key)] if self.key else []), self.text])


def lines_of(problems: Iterable[Problem], source: str) -> list[str]:
    """Texts of all problems: those of the whole file, then by line, then those of the command line."""
    ordered = sorted(problems, key=lambda problem: (problem.line is None and bool(problem.key), problem.line or 0))
    return [problem.format(source) for problem in ordered]


def dotted(key: Key) -> str:
    """`train.layers.0`, the form in which users write a path of keys."""
    return ".".join(map(str, key))


def shown(value: Any) -> str:
    """A given value as the user would write it, shortened."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suggestion(name: Any, allowed: Sequence[str]) -> str:
    """`; did you mean 'lr'?` if some allowed name is near or is made of the initials of `name`; else nothing."""
    given = re.sub(r"\W", "", str(name)).lower()
    alike = [one for one in allowed if _LENGTHS * len(one) <= len(given) <= len(one) / _LENGTHS]
    near = get_close_matches(given, alike, n=1)
    initials = "".join(part[:1] for part in str(name).lower().split("_"))
    if not near and len(initials) > 1 and initials in allowed:
        near = [initials]
    return f"; did you mean '{near[0]}'?" if near else ""
