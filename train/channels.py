"""A job's data, from its arguments: files of the channels or a hub data set, and the tokenizer they go through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from containers import model_dir, rows
from containers.rows import Reading, Row, RowsError
from train import weights
from train.arguments import DataArguments
from train.data import DataError, Options, Prepared, chosen_template, from_files, from_hub, outside, prepare

OPTIONS = Path(__file__).parent / "options"


def check_model(name: str, allow_missing_weights: bool = False) -> None:
    """Raises DataError with everything that is wrong with a model directory; a hub id is transformers' to check."""
    import transformers

    if not Path(name).is_dir():
        if name.startswith((".", "/", "~")):
            raise DataError(f"model_name_or_path {name}: there is no such directory; a channel called model is one")
        return
    for file in OPTIONS.glob("*-models.json"):
        known = model_dir.Known.of(json.loads(file.read_text(encoding="utf-8")))
        if known.transformers == transformers.__version__ and (found := model_dir.check(Path(name), known)):
            raise DataError("\n".join(str(finding) for finding in found))
    if not allow_missing_weights and (lines := weights.problems(Path(name))):
        raise DataError("\n".join(lines))


def load_tokenizer(name: str, template: str | None, **hub: Any) -> Any:
    """The model's tokenizer with the chat template that it will be exported with.

    transformers 4.48 does not know chat_template.jinja, which transformers 5 writes beside the tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, **hub)
    beside = Path(name) / "chat_template.jinja"
    if template is not None:
        tokenizer.chat_template = chosen_template(template)
    elif not tokenizer.chat_template and beside.is_file():
        tokenizer.chat_template = beside.read_text(encoding="utf-8")
    elif not tokenizer.chat_template and beside.with_suffix(".json").is_file():
        tokenizer.chat_template = json.loads(beside.with_suffix(".json").read_text(encoding="utf-8"))["chat_template"]
    return tokenizer


def data_files(arguments: DataArguments) -> list[Path]:
    """Every file that rows are read from, in order of channel name. Raises DataError for one that is not there."""
    try:
        return [
            path
            for given in (arguments.train_file, arguments.validation_file)
            if given
            for path in rows.files([Path(name) for name in given])
        ]
    except RowsError as error:
        raise DataError(str(error)) from None


def load_rows(arguments: DataArguments, tokenizer: Any, hub_token: str | None = None) -> Prepared:
    """The rows of the job. Raises DataError naming file, line and reason for everything that cannot be trained on."""
    options = Options(
        block_size=arguments.block_size,
        train_on=arguments.train_on,
        too_long=arguments.too_long,
        packing=arguments.packing,
        split_percentage=arguments.validation_split_percentage or 0,
        seed=arguments.validation_split_seed,
    )
    reading = _reading(arguments)
    readings = (reading, replace(reading))
    found = _hub(arguments, readings, hub_token) if arguments.dataset_name else _files(arguments, readings)
    return prepare(*found, tokenizer, options, readings)


def _reading(arguments: DataArguments) -> Reading:
    try:
        columns = json.loads(arguments.data_columns) if arguments.data_columns else {}
    except ValueError:
        columns = None
    if not isinstance(columns, dict) or not all(isinstance(v, str) for v in columns.values()):
        raise DataError(f'data_columns {arguments.data_columns}: a JSON object expected: {{"prompt": "question"}}')
    try:
        return Reading(columns, arguments.data_format)
    except RowsError as error:
        raise DataError(str(error)) from None


def _files(arguments: DataArguments, readings: tuple[Reading, Reading]) -> tuple[Iterator[Row], Iterator[Row] | None]:
    if not arguments.train_file:
        raise DataError("no training data: give a train channel, train_file or dataset_name")
    train = from_files([Path(f) for f in arguments.train_file], readings[0], arguments.max_train_samples)
    if not arguments.validation_file:
        return train, None
    return train, from_files([Path(f) for f in arguments.validation_file], readings[1], arguments.max_eval_samples)


def _hub(
    arguments: DataArguments, readings: tuple[Reading, Reading], token: str | None
) -> tuple[Iterator[Row], Iterator[Row] | None]:
    """The splits train and validation of a hub data set; a validation file goes before the latter."""
    from datasets import load_dataset

    name = str(arguments.dataset_name)
    splits = load_dataset(name, arguments.dataset_config_name, token=token)
    if "train" not in splits:
        raise DataError(f"{name}: no split train; it has {', '.join(splits)}")
    train = from_hub(splits["train"], name, readings[0], arguments.max_train_samples)
    if arguments.validation_file:
        return train, from_files(
            [Path(f) for f in arguments.validation_file], readings[1], arguments.max_eval_samples
        )
    if arguments.validation_split_percentage or "validation" not in splits:
        return train, None
    return train, from_hub(splits["validation"], f"{name} validation", readings[1], arguments.max_eval_samples)


def check_rows(data: Prepared, config: Any) -> None:
    """Raises DataError where this model cannot be trained on these rows."""
    problems = [outside(part, config.vocab_size) for part in (data.train, data.validation) if part is not None]
    flags = {"block_size": data.train.block_size, "packing": data.train.apart}
    problems += [str(finding) for finding in model_dir.unfit(config.to_dict(), flags)]
    if found := [problem for problem in problems if problem]:
        raise DataError("\n".join(dict.fromkeys(found)))
