"""The run file as JSON Schema (draft 2020-12), for editors: https://taplo.tamasfe.dev/configuration/directives.html.

An editor completes and checks a run file whose first line is `#:schema ./run-file.schema.json`. `plan` checks more:
the values of flags against each other, the data, the model, the instances.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from containers.contract import RESERVED_ARGUMENTS
from harness.spec import stacks
from harness.spec.checks import PLANNED
from harness.spec.runfile import RunFile
from serve.options import ServeOptions

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS = {"bool": "boolean", "int": "integer", "float": "number"}


def document() -> dict[str, Any]:
    """The schema of a whole run file; [train] has the flags of the default stack's trainer."""
    schema = RunFile.model_json_schema()
    members = schema["properties"]
    known = stacks.train_options(stacks.DEFAULT)
    flags = {name: _flag(known[name]) for name in sorted(known) if name not in (*RESERVED_ARGUMENTS, *PLANNED)}
    members["train"] |= {"properties": flags, "additionalProperties": False}
    options = TypeAdapter(ServeOptions).json_schema()
    members["serve"] |= {"properties": options["properties"], "additionalProperties": False}
    return {"$schema": DIALECT, **schema, "title": "Run file of neuron-harness"}


def _flag(option: dict[str, Any]) -> dict[str, Any]:
    """Of one flag of the trainer, as train/options lists it: its type in Python's words, its default and choices."""
    found: dict[str, Any] = {"description": f"{option['type']}, {option['default']} by default"}
    if option.get("choices"):
        return {**found, "enum": option["choices"]}
    kind = next((KINDS[word] for word in KINDS if word in option["type"]), "string")
    if kind == "boolean":  # the empty string stands for a flag without a value
        return {**found, "anyOf": [{"type": "boolean"}, {"const": ""}]}
    return {**found, "type": kind}
