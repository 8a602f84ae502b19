"""Compile an artifact's graphs once, so that an endpoint loads them instead of compiling at every start.

    python -m serve.prepare MODEL_DIR [OUTPUT_DIR]
    python -m serve.prepare                         as a job: from the channel `model` to what becomes model.tar.gz

Needs a Neuron host (trn1 or inf2: their graphs are interchangeable) and the endpoint's own environment: the options
are read from OPTION_<NAME>, as the handler gets them. Without OUTPUT_DIR the graphs go next to the weights.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from containers.artifact import (
    COMPILED,
    ArtifactError,
    check_model_directory,
    find_compiled,
    opened,
    write_compile_key,
)
from containers.contract import Paths
from serve.compilers import to_device
from serve.options import PREFIX, OptionError, ServeOptions, check_environment, from_properties


def prepare(model_dir: Path, output_dir: Path, options: ServeOptions) -> Path:
    """Leave a prepared artifact in `output_dir`; the directory of its graphs. Does nothing if it is there already.

    Graphs that were compiled for something else are replaced. Raises ArtifactError for what is no model.
    """
    from serve.engines import neuron

    check_model_directory(model_dir)
    key = neuron.compile_key(model_dir, options)
    if output_dir.resolve() != model_dir.resolve():
        shutil.copytree(model_dir, output_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns(COMPILED))
    try:
        found = find_compiled(output_dir, key)
    except ArtifactError as error:
        print(f"prepare: {error}; compiling anew", flush=True)
        found = None
    if found is not None:
        print(f"prepare: {found} is compiled for these options already", flush=True)
        return found
    model = neuron.build(output_dir, options)
    to_device(model, None)
    compiled = output_dir / COMPILED
    shutil.rmtree(compiled, ignore_errors=True)  # of other options, or of a run that did not finish
    model.save(str(compiled))
    write_compile_key(compiled, key)
    print(f"prepare: {len(list(compiled.glob('*.neff')))} graphs in {compiled}", flush=True)
    return compiled


def options_from(environ: Mapping[str, str]) -> ServeOptions:
    """The options of an endpoint's environment, as DJL hands them to the handler."""
    check_environment(environ)
    return from_properties({k[len(PREFIX) :].lower(): v for k, v in environ.items() if k.startswith(PREFIX)})


def main(argv: list[str]) -> int:
    if len(argv) > 2:
        print("usage: python -m serve.prepare [MODEL_DIR [OUTPUT_DIR]]", file=sys.stderr)
        return 2
    paths = Paths.from_environment()
    try:
        source, target = (Path(argv[0]), Path(argv[-1])) if argv else (opened(paths.channel("model")), paths.model)
        prepare(source, target, options_from(os.environ))
    except (ArtifactError, OptionError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
