"""Every fitting rule on a file or on a run, and how a rule explains itself."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from harness.errors import InvalidInput, NotFound, did_you_mean
from harness.rules import environment, hosts, packages, parallel, sagemaker, serving, stacks, training
from harness.rules.document import MAX_TEXT, Document, read
from harness.rules.rule import ERROR, NOTE, RULES, SEVERITIES, Finding, Rule

TOPICS = (stacks, parallel, serving, environment, packages, sagemaker, hosts, training)
"""Importing them fills the table."""


def findings(document: Document, off: Collection[str] = ()) -> list[Finding]:
    """What every rule but those in `off` says of a document; errors first, then by line."""
    out = []
    for rule in RULES.values():
        if rule.id in off:
            continue
        for line, what in dict.fromkeys(rule.check(document)):
            out.append(Finding(document.path, line, rule.id, rule.severity, what, rule.remedy, rule.source))
    return sorted(out, key=lambda f: (SEVERITIES.index(f.severity), f.line, f.rule))


def lint(path: str, text: str, off: Collection[str] = ()) -> list[Finding]:
    """Findings of a file's text."""
    return findings(read(path, text), off)


def lint_file(path: Path, off: Collection[str] = ()) -> list[Finding]:
    """Findings of a file. Raises NotFound, or InvalidInput for what is not text or is too large."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a directory", hint=f"name the files: harness lint {path}/serving.properties")
    if not path.exists():
        raise NotFound(f"no file {path}")
    if not path.is_file():
        raise InvalidInput(f"{path}: not a file")
    try:
        size = path.stat().st_size
        if size > 4 * MAX_TEXT:
            raise InvalidInput(f"{path}: {size / 1e6:.0f} MB are too much for a launch file")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read", error.strerror or str(error)) from None
    return lint(str(path), text, off)


def get(rule_id: str) -> Rule:
    """The rule of that id. Raises NotFound with a suggestion."""
    if rule_id not in RULES:
        raise NotFound(f"no rule {rule_id}", hint=did_you_mean(rule_id, list(RULES)) or "harness rules lists them")
    return RULES[rule_id]


def explanation(rule: Rule) -> list[str]:
    """A rule in words: what, why, what now, and where it is written."""
    doc = (rule.check.__doc__ or "").strip()
    lines = [f"{rule.id} ({rule.severity}, {rule.topic})", f"  what:   {rule.title}"]
    if doc:
        lines.append(f"  why:    {' '.join(doc.split())}")
    return [*lines, f"  now:    {rule.remedy}", f"  source: {rule.source}"]


def worst(found: Iterable[Finding]) -> str:
    """The severest of the findings; "note" where there is none."""
    return min((f.severity for f in found), key=SEVERITIES.index, default=NOTE)


def has_errors(found: Iterable[Finding]) -> bool:
    return worst(found) == ERROR
