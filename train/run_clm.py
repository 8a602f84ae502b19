"""Fine-tune a causal language model: arguments -> data -> model -> train -> export.

In an image the entrypoint calls it with the hyperparameters and SageMaker's paths. By hand, on a laptop:

    python -m train.run_clm --device cpu --model_name_or_path MODEL --train_file train.jsonl --block_size 64 \\
        --output_dir /tmp/checkpoints --export_dir /tmp/model --metrics_dir /tmp/metrics --max_steps 10
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from containers.artifact import Manifest, sha256_of
from train import failure
from train.arguments import ArgumentError, DataArguments, ModelArguments, RunArguments, parse
from train.channels import check_model, check_rows, data_files, load_rows, load_tokenizer
from train.data import DataError
from train.launch import device_of, start_workers


def main(argv: list[str]) -> int:
    # -- arguments ---------------------------------------------------------------------------------------------
    from transformers import (
        default_data_collator,
        set_seed,
    )

    from train import checkpoint, endings, signature
    from train.devices import load
    from train.export import export, versions
    from train.metrics import MetricsCallback

    device_name = device_of(argv)
    device = load(device_name)
    groups = (ModelArguments, DataArguments, RunArguments, device.ARGUMENTS)
    model_args, data_args, run_args, training_args = parse(argv, groups)
    training_args, reason = device.adapt(training_args)
    print(f"device {device_name}: {reason}", flush=True)
    set_seed(training_args.seed)

    # -- data --------------------------------------------------------------------------------------------------
    check_model(model_args.model_name_or_path, model_args.allow_missing_weights)
    hub = {"revision": model_args.model_revision, "token": model_args.token}
    tokenizer = load_tokenizer(model_args.model_name_or_path, data_args.chat_template, **hub)
    data = load_rows(data_args, tokenizer, hub_token=model_args.token)
    print("\n".join(data.lines), flush=True)
    train_rows, eval_rows = data.train, data.validation

    # -- model -------------------------------------------------------------------------------------------------
    model = device.load_model(model_args.model_name_or_path, training_args, **hub)
    model.config.use_cache = False
    for note in endings.prepare(model, tokenizer, data.ends):
        print(f"generation: {note}", flush=True)
    check_rows(data, model.config)

    # -- train -------------------------------------------------------------------------------------------------
    run = checkpoint.fingerprint(training_args, train_rows.digest(), data_args.block_size, model.config.to_dict())
    resume_from, notes = checkpoint.latest(Path(training_args.output_dir), run)
    for note in notes:
        print(f"checkpoint: {note}", flush=True)
    print(f"resuming from {resume_from.name}" if resume_from else "starting at step 0", flush=True)
    stop = checkpoint.StopOnSignal(run)
    stop.install()
    metrics = MetricsCallback(Path(run_args.metrics_dir) / "metrics.jsonl", device.compilations)
    trainer = device.trainer(
        model=model,
        args=training_args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=default_data_collator,
        callbacks=[metrics, stop],
    )
    loaders = {"train": trainer.get_train_dataloader()}
    if eval_rows is not None:
        loaders["validation"] = trainer.get_eval_dataloader()
    layout = signature.Layout.of(training_args, device.STATIC_SHAPES)
    signature.check(layout, model.config, data_args.block_size, len(train_rows), loaders)
    started = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if stop.stopped(trainer.state):
        return 128 + stop.signum
    if device.compiling_only():
        print("the graphs are in the compile cache; outputs of this run are invalid, nothing is exported", flush=True)
        return 0
    seconds = time.monotonic() - started
    final = {
        "train_loss": result.training_loss,
        "steps": float(trainer.state.global_step),
        "seconds": seconds,
    }
    if eval_rows is not None and not stop.agreement.at_end(
        stop.received
    ):  # a signal now: the artifact first, before the wait is over
        final["eval_loss"] = trainer.evaluate()["eval_loss"]

    # -- export ------------------------------------------------------------------------------------------------
    model = device.finished(trainer)
    if model is None:  # another worker of this job has it
        return 0
    model.config.use_cache = True
    manifest = Manifest(
        stack=run_args.stack,
        base_model=run_args.base_model or model_args.model_name_or_path,
        device=device_name,
        dtype="bf16" if training_args.bf16 else "fp32",
        data_sha256=sha256_of(*data_files(data_args)),
        versions=versions(),
        metrics={key: round(value, 6) for key, value in final.items()},
    )
    export(model, tokenizer, Path(run_args.export_dir), manifest, Path(run_args.metrics_dir))
    print(f"artifact written after {seconds:.0f} s of training", flush=True)
    return 0


def guarded(argv: list[str]) -> int:
    """`main`; what is wrong with data or checkpoints is one line, and any failure of a worker leaves its reason."""
    try:
        return main(argv)
    except Exception as error:
        expected = isinstance(error, (ArgumentError, DataError)) or type(error).__name__ == "CheckpointError"
        failure.leave(error, 3 if expected else 1)
        if not expected:
            raise
        print(f"{type(error).__name__}: {error}", flush=True)
        return 3


if __name__ == "__main__":
    start_workers(sys.argv[1:])  # on device neuron: become torchrun, which comes back here once per core
    sys.exit(guarded(sys.argv[1:]))
