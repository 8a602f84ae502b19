"""What a rule is, and the one table of all of them. Topic modules register theirs by the decorator `rule`.

Severity error: it will fail or cost money, and the source proves it. Warning: it did for others, under conditions
that a file alone does not show. Note: good to know once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.rules.document import Document

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

Check = Callable[[Document], Iterator[tuple[int, str]]]
"""Yields (line, what) for everything that a document has of the kind."""


@dataclass(frozen=True)
class Rule:
    """One thing that is known to fail. `source` is a public URL that shows it."""

    id: str
    topic: str
    severity: str
    title: str
    remedy: str
    source: str
    check: Check


@dataclass(frozen=True, order=True)
class Finding:
    """A rule that applies to a line of a file."""

    path: str
    line: int
    rule: str
    severity: str
    what: str
    remedy: str
    source: str


RULES: dict[str, Rule] = {}


def rule(id: str, severity: str, title: str, remedy: str, source: str) -> Callable[[Check], Check]:
    """Register a check under `id`; its topic is the name of the module."""

    def register(check: Check) -> Check:
        topic = check.__module__.rsplit(".", 1)[1]
        if id in RULES or severity not in SEVERITIES or not source.startswith("https://"):
            raise ValueError(f"rule {id}: the id is taken, or severity or source is not one")
        RULES[id] = Rule(id, topic, severity, title, remedy, source, check)
        return check

    return register
