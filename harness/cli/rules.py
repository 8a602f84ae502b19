"""Verbs about what is known to fail, and what things cost: lint, rules, prices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import output

if TYPE_CHECKING:
    from harness.rules.rule import Finding

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for a script to read.")]
FilesArg = Annotated[
    list[Path],
    typer.Argument(
        help="serving.properties, Dockerfile, requirements.txt, script, notebook, YAML or JSON.",
        metavar="FILE...",
    ),
]


def rule_ids(incomplete: str) -> list[str]:
    """Shell completion: rules."""
    from harness.rules import lint as _lint  # its import fills the table
    from harness.rules.rule import RULES

    assert _lint
    return [name for name in RULES if name.startswith(incomplete)]


RuleArg = Annotated[str | None, typer.Argument(help="A rule's id.", metavar="[ID]", autocompletion=rule_ids)]


def lint(files: FilesArg, json: JsonFlag = False) -> None:
    """Check launch files of any kind for what is known to fail on Neuron and SageMaker."""
    from harness.errors import HarnessError
    from harness.rules import lint as linter

    found, unread = [], []
    for path in files:
        try:
            found += linter.lint_file(path)
        except HarnessError as error:
            unread += error.problems
    if json:
        _json(found)
    else:
        for finding in found:
            output.out(f"{finding.path}:{finding.line}: {finding.severity}: {finding.what} [{finding.rule}]")
            output.out(f"    {finding.remedy}")
        count = {s: sum(f.severity == s for f in found) for s in ("error", "warning", "note")}
        output.note(
            f"{len(files)} file(s): {count['error']} errors, {count['warning']} warnings, {count['note']} notes"
        )
    if unread:
        raise HarnessError.of(unread)
    if linter.has_errors(found):
        raise typer.Exit(3)


def _json(found: list[Finding]) -> None:
    import json
    from dataclasses import asdict

    output.out(json.dumps([asdict(f) for f in found], indent=2))


def rules(rule: RuleArg = None, json: JsonFlag = False) -> None:
    """List what is checked, or explain one rule."""
    import json as encoder

    from harness.cli.forecast import columns
    from harness.rules import lint as linter
    from harness.rules.rule import RULES

    if rule is not None:
        found = linter.get(rule)
        if json:
            output.out(encoder.dumps(_plain(found), indent=2))
        else:
            for line in linter.explanation(found):
                output.out(line)
        return
    every = sorted(RULES.values(), key=lambda r: (r.topic, r.id))
    if json:
        output.out(encoder.dumps([_plain(r) for r in every], indent=2))
        return
    for line in columns([(r.id, r.severity, r.topic, r.title) for r in every], ("rule", "severity", "topic", "what")):
        output.out(line)


def _plain(rule: object) -> dict[str, str]:
    return {k: str(getattr(rule, k)) for k in ("id", "topic", "severity", "title", "remedy", "source")}


def prices(
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask AWS's Price List API; needs credentials.")] = False,
    region: Annotated[str, typer.Option("--region", help="Only this region.", metavar="REGION")] = "",
    models: Annotated[bool, typer.Option("--models", help="List the models whose shapes are carried along.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the prices that plans use, each with its source and date."""
    import json as encoder

    from harness.cli.forecast import columns
    from harness.estimate import models as carried, price
    from harness.run import forecast

    if models:
        rows = [(m.id, f"{m.published / 1e9:.2f} B", m.licence) for m in carried.known().values()]
        for line in columns(rows, ("model", "parameters", "licence")):
            output.out(line)
        return
    if refresh:
        _refresh(region)
    found = [r for r in forecast.prices().rows if region in ("", r.region)]
    if json:
        output.out(encoder.dumps([price.plain({**r.__dict__}) for r in found], indent=2))
        return
    for line in columns(
        [(r.service, r.item, r.region, f"{r.usd} USD/{r.unit}", r.status, r.date, r.source) for r in found],
        ("service", "item", "region", "price", "status", "date", "source"),
    ):
        output.out(line)
    output.note("AWS calls its own list informational: the bill decides. What is not listed is unknown, not free.")


def _refresh(region: str) -> None:
    """Write confirmed rows beside the carried ones."""
    from datetime import UTC, datetime

    from harness import remembered
    from harness.aws.session import Aws
    from harness.estimate import price, pricelist
    from harness.run import forecast
    from harness.spec import profile as profiles

    profile = profiles.load(region=region)
    aws = Aws(profile)
    regions = [region] if region else sorted({profile.region, profile.serving.region})
    output.note(f"asking the Price List API about {', '.join(regions)}")
    rows = pricelist.refresh(
        lambda request: aws.pages("pricing", "get_products", "PriceList", pricelist.API_REGION, **request),
        regions,
        datetime.now(UTC).date().isoformat(),
    )
    path = remembered.cache_dir() / forecast.PRICES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(price.to_json(rows), encoding="utf-8")
    output.note(f"{len(rows)} prices in {path}")
