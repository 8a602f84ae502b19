"""Fine-tune a causal language model: arguments -> data -> model -> train -> export.

In an image the entrypoint calls it with the hyperparameters and SageMaker's paths. By hand, on a laptop:

    python -m train.run_clm --device cpu --model_name_or_path MODEL --train_file train.jsonl --block_size 64 \\
        --output_dir /tmp/checkpoints --export_dir /tmp/model --metrics_dir /tmp/metrics --max_steps 10
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from containers.artifact import Manifest, sha256_of
from train import failure
from train.arguments import DataArguments, LoraArguments, ModelArguments, RunArguments
from train.data import DataError, Rows, build_rows, read_examples
from train.launch import start_workers


def main(argv: list[str]) -> int:
    # -- arguments ---------------------------------------------------------------------------------------------
    from transformers import AutoTokenizer, HfArgumentParser, set_seed

    from train import best, checkpoint, lora
    from train.devices import load
    from train.export import versions

    device_name = argv[argv.index("--device") + 1] if "--device" in argv else RunArguments.device
    device = load(device_name)
    parser = HfArgumentParser((ModelArguments, DataArguments, RunArguments, LoraArguments, device.ARGUMENTS))
    model_args, data_args, run_args, lora_args, training_args = parser.parse_args_into_dataclasses(argv)
    training_args, reason = device.adapt(training_args)
    print(f"device {device_name}: {reason}", flush=True)
    if not training_args.do_train:
        raise failure.ArgumentError("do_train is false, and this program trains and exports: remove it")
    lora.check(lora_args, training_args)
    set_seed(training_args.seed)

    # -- data --------------------------------------------------------------------------------------------------
    hub = {"revision": model_args.model_revision, "token": model_args.token}
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, **hub)
    train_rows = _rows("train", data_args, tokenizer)
    eval_rows = _rows("validation", data_args, tokenizer)
    if train_rows is None:
        raise DataError("no training data: give a train channel, train_file or dataset_name")
    best.check(run_args, training_args, eval_rows is not None)

    # -- model -------------------------------------------------------------------------------------------------
    model = device.load_model(model_args.model_name_or_path, training_args, **hub)
    config = model.config.to_dict()
    model, flops = _prepared(model, tokenizer, device, run_args, lora_args, training_args)

    # -- train -------------------------------------------------------------------------------------------------
    data_sha256 = sha256_of(*(Path(f) for f in (data_args.train_file, data_args.validation_file) if f))
    more = {"number_format": device.number_format(training_args), **(vars(lora_args) if lora_args.use_peft else {})}
    run = checkpoint.fingerprint(training_args, data_sha256, data_args.block_size, config, **more)
    output_dir = Path(training_args.output_dir)
    resume_from = checkpoint.asked(output_dir, run, training_args.resume_from_checkpoint)
    stop = checkpoint.StopOnSignal(run)
    stop.install()
    trainer, watchdog = _trainer(device, model, training_args, run_args, (train_rows, eval_rows, flops), stop)
    _check_signature(device, trainer, data_args.block_size)
    started = time.monotonic()
    result = _trained(trainer, resume_from, output_dir)
    if stop.stopped(trainer.state):
        return 128 + stop.signum
    if device.compiling_only():
        print("the graphs are in the compile cache; outputs of this run are invalid, nothing is exported", flush=True)
        return 0
    final = {"train_loss": result.training_loss, "steps": float(trainer.state.global_step)}
    final["seconds"] = time.monotonic() - started
    # A signal now: the artifact first, before the wait is over.
    if eval_rows is not None and not stop.agreement.at_end(stop.received):
        evaluated = trainer.evaluate()
        best.note(trainer, evaluated)
        final["eval_loss"] = evaluated["eval_loss"]
    watchdog.stop()

    # -- export ------------------------------------------------------------------------------------------------
    model = device.finished(trainer)
    if model is None:  # another worker of this job has it
        return 0
    manifest = Manifest(
        stack=run_args.stack,
        base_model=run_args.base_model or model_args.model_name_or_path,
        device=device_name,
        dtype=device.number_format(training_args),
        data_sha256=data_sha256,
        versions=versions(),
        metrics={key: round(value, 6) for key, value in final.items()},
    )
    _export(model, tokenizer, run_args, manifest, output_dir)
    return 0


def _prepared(
    model: Any, tokenizer: Any, device: ModuleType, run: RunArguments, lora: LoraArguments, training: Any
) -> tuple[Any, float]:
    """(the model to train, its operations a token), after everything that its export needs was tried."""
    from train.metrics import flops_per_token
    from train.rehearsal import rehearse, repair_generation_config, require_room

    for line in repair_generation_config(model):
        print(f"model: {line}", flush=True)
    rehearse(model, tokenizer, Path(run.export_dir))
    model.config.use_cache = False
    parameters = trained = sum(p.numel() for p in model.parameters())
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if embedding is head else embedding.numel()
    if lora.use_peft:
        model, trained = device.add_adapters(model, lora)
        if training.gradient_checkpointing:
            model.enable_input_require_grads()
    require_room(parameters, trained, training, Path(run.export_dir))
    return model, flops_per_token(parameters, trained, looked_up)


def _trainer(
    device: ModuleType, model: Any, training: Any, run: RunArguments, rows: tuple[Rows, Rows | None, float], stop: Any
) -> tuple[Any, Any]:
    """(the device's trainer, its watchdog); `rows` are those of training and evaluation, and operations a token."""
    from transformers import default_data_collator

    from train.best import EarlyStop
    from train.health import Watchdog
    from train.metrics import MetricsCallback

    train_rows, eval_rows, flops = rows
    metrics = MetricsCallback(Path(run.metrics_dir) / "metrics.jsonl", device.compilations)
    watchdog = Watchdog(run.hang_timeout)
    callbacks = [metrics, stop, watchdog]
    if run.early_stopping_patience:
        callbacks.append(EarlyStop(run.early_stopping_patience, run.early_stopping_threshold))
    trainer = device.trainer(
        model=model,
        args=training,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    metrics.work = device.work(trainer, train_rows, flops)
    return trainer, watchdog


def _check_signature(device: ModuleType, trainer: Any, block_size: int) -> None:
    """One shape of batches, and a layout that divides the model: before the first step."""
    from train import signature

    loaders = {"train": trainer.get_train_dataloader()}
    if trainer.eval_dataset is not None:
        loaders["validation"] = trainer.get_eval_dataloader()
    layout = signature.Layout.of(trainer.args, device.STATIC_SHAPES)
    signature.check(layout, trainer.model.config, block_size, len(trainer.train_dataset), loaders)


def _trained(trainer: Any, resume_from: str | None, output_dir: Path) -> Any:
    """trainer.train(); what goes wrong in it names the checkpoint that is left."""
    from train.checkpoint import newest

    try:
        return trainer.train(resume_from_checkpoint=resume_from)
    except failure.TrainingError as error:
        raise failure.TrainingError(f"{error}; {newest(output_dir)}") from error


def _export(model: Any, tokenizer: Any, run: RunArguments, manifest: Manifest, output_dir: Path) -> None:
    """The artifact; where it cannot be written, the weights alone beside the checkpoints."""
    from train.export import export, rescue
    from train.health import require_finite_weights

    require_finite_weights(int(manifest.metrics["steps"]), dict(model.named_parameters()))
    try:
        export(model, tokenizer, Path(run.export_dir), manifest, Path(run.metrics_dir))
    except Exception as error:
        where = rescue(model, output_dir, Path(run.metrics_dir))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise failure.TrainingError(f"the artifact could not be written ({reason}); {where}") from error
    print(f"artifact written after {manifest.metrics['seconds']:.0f} s of training", flush=True)


def _rows(channel: str, args: DataArguments, tokenizer: object) -> Rows | None:
    """The rows of one channel, with a line that says what became of the data; None where there is none."""
    file = args.train_file if channel == "train" else args.validation_file
    limit = args.max_train_samples if channel == "train" else args.max_eval_samples
    if file is not None:
        examples = read_examples(Path(file), limit)
    elif args.dataset_name is not None and channel == "train":
        examples = _from_hub(args, limit)
    else:
        return None
    rows = build_rows(examples, tokenizer, args.block_size)
    filled = rows.tokens / rows.input_ids.size
    print(
        f"{channel}: {len(rows)} rows of {args.block_size} tokens, {filled:.0%} of them not padding, "
        f"{rows.dropped} of {len(examples)} examples too long and left out",
        flush=True,
    )
    return rows


def _from_hub(args: DataArguments, limit: int | None) -> list[dict[str, str]]:
    """The train split of a hub data set, in one of the two formats of train/data.py."""
    from datasets import load_dataset

    data = load_dataset(args.dataset_name, args.dataset_config_name, split="train")
    if limit is not None:
        data = data.select(range(min(limit, len(data))))
    names = data.column_names
    keys = ("prompt", "completion") if {"prompt", "completion"} <= set(names) else ("text",)
    if keys == ("text",) and "text" not in names:
        raise DataError(f"{args.dataset_name}: needs the columns prompt and completion, or text; it has {names}")
    return [{k: str(row[k]) for k in keys} for row in data]


def guarded(argv: list[str]) -> int:
    """`main`; what was expected to go wrong is one line, and any failure of a worker leaves its reason."""
    try:
        return main(argv)
    except Exception as error:
        code = failure.exit_code(error)
        failure.leave(error, code)
        if code == 1:
            raise
        print(f"{type(error).__name__}: {error}", flush=True)
        return code


if __name__ == "__main__":
    start_workers(sys.argv[1:])  # on device neuron: become torchrun, which comes back here once per core
    sys.exit(guarded(sys.argv[1:]))
