"""From a run file and its plan to an outlook: the thin layer between our files and the estimator's plain values."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from containers import rows
from harness import remembered
from harness.errors import HarnessError, InvalidInput, Problem, did_you_mean
from harness.estimate import models, outlook as outlooks, price
from harness.estimate.architecture import Architecture
from harness.estimate.memory import DOES_NOT_FIT
from harness.estimate.outlook import Outlook, Subject
from harness.rules.rule import ERROR, Finding
from harness.rules.run import judge
from harness.spec import checks, fit
from harness.spec.profile import Profile
from harness.spec.runfile import Compute, RunFile, Scalar
from harness.spec.stacks import Stack, train_options
from serve.options import ServeOptions

CHARACTERS_PER_TOKEN = 3.8  # English with a vocabulary of 32,000 to 128,000; harness/estimate/cpu.py measured it
PRICES = "prices.json"
COUNTED = 4 << 20  # bytes of data that are read for the number of rows; of more its lines are counted
LINES = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt")
# The smallest bucket of engine `neuron` (serve/scheduler.py, SMALLEST_BUCKET).
SMALLEST_BUCKET = 128


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts: an outlook where the model's shapes are known, and rules' findings."""

    outlook: Outlook | None
    findings: tuple[Finding, ...]
    unknown: str = ""
    """Why there is no outlook."""

    @property
    def problems(self) -> list[Problem]:
        """What forbids the run."""
        out = [Problem(f"{f.rule}: {f.what}", f.source, f.remedy) for f in self.findings if f.severity == ERROR]
        if self.outlook is not None:
            for name, side in (("training", self.outlook.train), ("serving", self.outlook.serve)):
                for part, what in ((side.core, "a NeuronCore"), (side.host, "the host")):
                    if part is not None and part.verdict == DOES_NOT_FIT:
                        need, have = outlooks.gib(part.total.low), outlooks.gib(part.capacity)
                        why = f"{part.largest.name} alone takes {outlooks.gib(part.largest.span.expected)}"
                        hint = side.change or "nothing that was tried fits: take a smaller model"
                        what_now = f"{name} does not fit {what} of {side.instance}: at least {need} of {have}"
                        out.append(Problem(what_now, why, hint))
        return out


def prices() -> price.Table:
    """The carried prices and what `harness prices --refresh` brought."""
    return price.with_refreshed(remembered.cache_dir() / PRICES)


def of(path: Path, run: RunFile, stack: Stack, profile: Profile) -> Forecast:
    """The forecast of a run file that checks.load has checked."""
    found = models.architecture_of(run.model.id)
    kind = found[0].model_type if found else ""
    compute = run.compute.model_dump()
    images = (stack.train_base, stack.serve_base)
    findings = tuple(judge(path.name, run.model.id, kind, stack.name, run.train, dict(run.serve), compute, images))
    if found is None:
        why = f"the shapes of {run.model.id} are not known here: no fit, time or price without them"
        return Forecast(None, findings, f"{why}; known: harness prices --models")
    made = subject(run, stack, profile, found[0], found[1])
    return Forecast(outlooks.outlook(made, prices()), findings)


def subject(run: RunFile, stack: Stack, profile: Profile, arch: Any, source: str) -> Subject:
    """A run file's values under the estimator's names."""
    flags = train_options(stack.name)

    def flag(name: str, fallback: Scalar) -> Any:
        value = run.train.get(name)
        if value is None and name in flags and flags[name]["default"] not in ("None", ""):
            return _typed(flags[name]["default"], fallback)
        return fallback if value is None else value

    options = ServeOptions(**run.serve)  # type: ignore[arg-type]  # checks.load knows the types
    block = int(flag("block_size", 0) or min(arch.positions, 1024))
    compares = run.has_test and _is_at_hand(run)
    return Subject(
        arch=arch,
        source=source,
        train_instance=run.compute.train_instance,
        serve_instance=run.compute.serve_instance,
        region=profile.region,
        serve_region=profile.serving.region if profile.serving.region != profile.region else "",
        hosts=run.compute.train_instance_count,
        spot=run.compute.spot,
        max_runtime=run.compute.max_runtime_seconds,
        startup_seconds=run.compute.startup_seconds,
        volume_gb=run.compute.volume_gb,
        endpoints=2 if compares else 1,
        tensor_parallel=int(flag("tensor_parallel_size", 1)),
        pipeline_parallel=int(flag("pipeline_parallel_size", 1)),
        zero1=_on(flag("zero_1", False)),
        precision="bf16" if _on(flag("bf16", False)) else "fp32",
        batch=int(flag("per_device_train_batch_size", 8)),
        accumulation=int(flag("gradient_accumulation_steps", 1)),
        block=block,
        checkpointing=_on(flag("gradient_checkpointing", False)),
        max_steps=int(flag("max_steps", -1)),
        epochs=float(flag("num_train_epochs", 3.0)),
        rows=_rows(run, block, _on(flag("packing", False))),
        evaluates=bool(run.data.validation or run.data.examples or run.data.validation_split_percentage),
        lora_rank=int(flag("lora_r", 16)) if _on(flag("use_peft", False)) else 0,
        lora_targets=_targets(str(flag("lora_target_modules", "all-linear")), arch),
        serve_tp=options.tp_degree,
        positions=options.n_positions,
        slots=options.max_batch_size,
        serve_dtype=options.dtype,
        smallest_bucket=SMALLEST_BUCKET,
    )


def _is_at_hand(run: RunFile) -> bool:
    return run.model.is_directory or "/" not in run.model.id


def _on(value: Any) -> bool:
    return value is True or value == "" or str(value).lower() in ("true", "1")


def _typed(text: str, like: Scalar) -> Scalar:
    try:
        return type(like)(text) if not isinstance(like, bool) else text.lower() == "true"
    except ValueError:
        return like


def _targets(value: str, arch: Architecture) -> tuple[str, ...]:
    """lora_target_modules: names with commas, or every projection of a layer."""
    if value == "all-linear":
        return tuple(arch.projections())
    return tuple(w for w in value.replace(",", " ").split() if w)


def _rows(run: RunFile, block: int, packed: bool) -> int | None:
    """Rows of `block` tokens that an epoch has; None where they cannot be counted here (a hub data set, S3)."""
    if run.data.examples is not None:
        return run.data.examples.train
    given = run.data.train
    sources = [] if given is None else [given] if isinstance(given, str) else list(given)
    if not sources or any(source.startswith("s3://") for source in sources):
        return None
    try:
        found = rows.files([Path(source) for source in sources])
        size = sum(path.stat().st_size for path in found)
        if size <= COUNTED:
            count: int | None = sum(isinstance(row, rows.Row) for row in rows.read(found, _reading(run)))
        else:
            count = _lines(found)
    except (OSError, rows.RowsError):
        return None
    if count is None:
        return None
    if packed:
        count = int(size / CHARACTERS_PER_TOKEN / block)
    return max(int(count * (100 - (run.data.validation_split_percentage or 0)) / 100), 1)


def _reading(run: RunFile) -> rows.Reading:
    return rows.Reading(run.data.columns or {}, run.data.format)


def _lines(found: list[Path]) -> int | None:
    """Of files with a row a line; None where one has another form."""
    count = 0
    for path in found:
        if rows.is_compressed(path) or path.suffix not in LINES:
            return None
        with path.open("rb") as handle:
            count += sum(piece.count(b"\n") for piece in iter(lambda: handle.read(1 << 20), b""))
    return count


# --what-if ----------------------------------------------------------------------------------------------------------

TABLES = ("train", "serve", "compute")


@dataclass(frozen=True)
class Variant:
    """One value of a --what-if and what comes of it."""

    value: str
    forecast: Forecast | None
    problem: str = ""


def variants(path: Path, run: RunFile, stack: Stack, profile: Profile, text: str) -> tuple[str, list[Variant]]:
    """`key=a,b,c` -> (table.key, a variant for each value). Raises InvalidInput for a key that no table has."""
    key, _, values = text.partition("=")
    named = [v.strip() for v in values.split(",") if v.strip()]
    if not named:
        raise InvalidInput(f"--what-if {text!r}: no values", hint="as in --what-if tensor_parallel_size=2,8,32")
    table, name = _where(key.strip(), stack)
    return f"{table}.{name}", [_variant(path, run, stack, profile, (table, name), value) for value in named]


def _where(key: str, stack: Stack) -> tuple[str, str]:
    keys = {
        "train": list(train_options(stack.name)),
        "serve": [f.name for f in dataclasses.fields(ServeOptions)],
        "compute": list(Compute.model_fields),
        "model": ["id"],
    }
    table, dot, name = key.partition(".")
    if dot and name in keys.get(table, ()):
        return table, name
    owners = [t for t, names in keys.items() if key in names]
    if len(owners) == 1:
        return owners[0], key
    every = [n for names in keys.values() for n in names] + [f"{t}.{n}" for t, names in keys.items() for n in names]
    raise InvalidInput(
        f"--what-if: no setting {key}", hint=did_you_mean(key, every) or "as in train.block_size=512,1024"
    )


def _variant(path: Path, run: RunFile, stack: Stack, profile: Profile, where: tuple[str, str], text: str) -> Variant:
    table, name = where
    value = _scalar(text)
    try:
        if table in ("compute", "model"):
            # Validated again: model_copy alone takes anything.
            whole = run.model_dump()
            whole[table] = {**whole[table], name: value}
            changed = RunFile.model_validate(whole)
        else:
            changed = run.model_copy(update={table: {**getattr(run, table), name: value}})
        problems = checks.check_train(changed, stack) + checks.check_serve(changed) + fit.instance_problems(changed)
        if problems:
            return Variant(text, None, problems[0].what)
        return Variant(text, of(path, changed, stack, profile))
    except HarnessError as error:
        return Variant(text, None, error.problems[0].what)
    except ValidationError as error:
        return Variant(text, None, f"{table}.{name}: {error.errors()[0]['msg']}")


def _scalar(text: str) -> Scalar:
    """A value as TOML would read it."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text.strip("\"'")


def cost_text(found: Outlook) -> str:
    """USD of the whole run, or what is known of it."""
    low, high = found.bill.known
    if found.bill.complete:
        return f"{low} to {high} USD"
    missing = ", ".join(line.charge.item for line in found.bill.lines if line.high is None)
    return f"unknown ({missing})" + (f"; the rest {low} to {high} USD" if high > Decimal(0) else "")
