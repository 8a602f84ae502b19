"""Fine-tune a causal language model: arguments -> data -> model -> train -> export.

In an image the entrypoint calls it with the hyperparameters and SageMaker's paths. By hand, on a laptop:

    python -m train.run_clm --device cpu --model_name_or_path MODEL --train_file train.jsonl --block_size 64 \\
        --output_dir /tmp/checkpoints --export_dir /tmp/model --metrics_dir /tmp/metrics --max_steps 10
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from containers.artifact import Manifest, sha256_of
from train import failure
from train.arguments import DataArguments, LoraArguments, ModelArguments, RunArguments, parse
from train.channels import check_model, check_rows, data_files, load_rows, load_tokenizer
from train.data import Prepared
from train.launch import device_of, start_workers


def main(argv: list[str]) -> int:
    # -- arguments ---------------------------------------------------------------------------------------------
    from transformers import set_seed

    from train import best, checkpoint, endings, tracking
    from train.devices import load
    from train.export import versions

    device_name = device_of(argv)
    device = load(device_name)
    groups = (ModelArguments, DataArguments, RunArguments, LoraArguments, device.ARGUMENTS)
    model_args, data_args, run_args, lora_args, training_args = parse(argv, groups)
    training_args, reason = device.adapt(training_args)
    print(f"device {device_name}: {reason}", flush=True)
    tracking.prepare(training_args, Path(run_args.metrics_dir))
    set_seed(training_args.seed)

    # -- data --------------------------------------------------------------------------------------------------
    check_model(model_args.model_name_or_path, model_args.allow_missing_weights)
    hub = {"revision": model_args.model_revision, "token": model_args.token}
    tokenizer = load_tokenizer(model_args.model_name_or_path, data_args.chat_template, **hub)
    data = load_rows(data_args, tokenizer, hub_token=model_args.token)
    print("\n".join(data.lines if os.environ.get("RANK", "0") == "0" else ()), end="\n", flush=True)
    best.take_over(run_args, training_args)

    # -- model -------------------------------------------------------------------------------------------------
    model = device.load_model(model_args.model_name_or_path, training_args, **hub)
    for note in endings.prepare(model, tokenizer, data.ends):
        print(f"generation: {note}", flush=True)
    check_rows(data, model.config)
    config = model.config.to_dict()
    model, flops = _prepared(model, tokenizer, device, run_args, lora_args, training_args)

    # -- train -------------------------------------------------------------------------------------------------
    more = {"number_format": device.number_format(training_args), **(vars(lora_args) if lora_args.use_peft else {})}
    run = checkpoint.fingerprint(training_args, data.train.digest(), data_args.block_size, config, **more)
    output_dir = Path(training_args.output_dir)
    resume_from = checkpoint.asked(output_dir, run, training_args.resume_from_checkpoint)
    stop = checkpoint.StopOnSignal(run)
    stop.install()
    trainer, watchdog = _trainer(device, model, training_args, run_args, data, flops, stop)
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
    if data.validation is not None and not stop.agreement.at_end(stop.received):
        evaluated = trainer.evaluate()
        best.note(trainer, evaluated)
        final["eval_loss"] = evaluated["eval_loss"]
    watchdog.stop()

    # -- export ------------------------------------------------------------------------------------------------
    trained = device.finished(trainer)
    if trained is None:  # another worker of this job has it
        return 0
    manifest = Manifest(
        stack=run_args.stack,
        base_model=run_args.base_model or model_args.model_name_or_path,
        device=device_name,
        dtype=device.number_format(training_args),
        data_sha256=sha256_of(*data_files(data_args)),
        versions=versions(),
        metrics={key: round(value, 6) for key, value in final.items()},
    )
    _export(trained, tokenizer, run_args, manifest, output_dir)
    return 0


def _prepared(
    model: Any, tokenizer: Any, device: ModuleType, run: RunArguments, lora: LoraArguments, training: Any
) -> tuple[Any, float]:
    """(the model to train, its operations a token), after everything that its export needs was tried."""
    from train.metrics import flops_per_token
    from train.rehearsal import rehearse, require_room

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
    device: ModuleType, model: Any, training: Any, run: RunArguments, data: Prepared, flops: float, stop: Any
) -> tuple[Any, Any]:
    """(the device's trainer, its watchdog); `flops` are the model's operations a token."""
    from transformers import default_data_collator

    from train.best import EarlyStop
    from train.health import Watchdog
    from train.metrics import MetricsCallback

    metrics = MetricsCallback(Path(run.metrics_dir) / "metrics.jsonl", device.compilations)
    watchdog = Watchdog(run.hang_timeout)
    callbacks = [metrics, stop, watchdog]
    if run.early_stopping_patience:
        callbacks.append(EarlyStop(run.early_stopping_patience, run.early_stopping_threshold))
    trainer = device.trainer(
        model=model,
        args=training,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=default_data_collator,
        callbacks=callbacks,
    )
    metrics.work = device.work(trainer, data.train, flops)
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


def _export(trained: Any, tokenizer: Any, run: RunArguments, manifest: Manifest, output_dir: Path) -> None:
    """The artifact; where it cannot be written, the weights alone beside the checkpoints."""
    from train.export import export, rescue

    try:
        export(trained, tokenizer, Path(run.export_dir), manifest, Path(run.metrics_dir))
    except failure.TrainingError:
        raise  # weights that are not finite are nobody's to keep
    except Exception as error:
        where = rescue(trained, output_dir, Path(run.metrics_dir))
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise failure.TrainingError(f"the artifact could not be written ({reason}); {where}") from error
    print(f"artifact written after {manifest.metrics['seconds']:.0f} s of training", flush=True)


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
