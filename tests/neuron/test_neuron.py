"""Our run_clm drives the real NeuronTrainer of optimum-neuron 0.0.28, on XLA:CPU. `make test-neuron` runs it.

Everything is real but the packages that are published for Neuron hosts only; tests/neuron/shim stands in for those
on one core. The reference is device cpu in the same environment: fp32, the same batches, twenty steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from train.launch import ONE_HOST

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = ROOT / ".venv-neuron" / "bin" / "python"
pytestmark = [pytest.mark.neuron, pytest.mark.timeout(600)]
STEPS = 20
TRAIN_ROWS, BATCH, ACCUMULATION = 64, 4, 2
EPOCH = TRAIN_ROWS // (BATCH * ACCUMULATION)
ARGUMENTS = {
    "block_size": 24,
    "per_device_train_batch_size": BATCH,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": ACCUMULATION,
    "max_steps": STEPS,
    "learning_rate": 5e-3,
    "warmup_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
    "seed": 11,
}
SAVES = {"save_strategy": "steps", "save_steps": 12}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 5}
LORA = {"use_peft": "true", "lora_r": 4, "lora_alpha": 8}
# With the highest loss as the best, the first evaluation stays the best, and the third one ends the training.
WORST = {"metric_for_best_model": "loss", "greater_is_better": "true", "early_stopping_patience": 2}
# Device neuron leaves incomplete steps out.
PACKED = {"packing": "true", "gradient_accumulation_steps": 1, "dataloader_drop_last": "true"}
# Every run on device neuron that a test asks for and that needs no other first: name -> what is broken on purpose,
# arguments. They are made two at a time while the tests wait for the one they look at.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "neuron": ("none", {**SAVES, **EVALUATES}),
    "learning_rate": ("learning_rate", {}),
    "mask": ("mask", {}),
    "accumulation": ("accumulation", {}),
    "equal_microbatches": ("equal_microbatches", {}),
    "order": ("order", {}),
    "evaluation": ("evaluation", {"max_steps": 1}),
    "equal_batches": ("equal_batches", EVALUATES),
    "repeated_rows": ("repeated_rows", EVALUATES),
    "epoch_end": ("epoch_end", EVALUATES),
    "short_batch": ("short_batch", EVALUATES),
    "last_batch": ("last_batch", {}),
    "save": ("save", SAVES),
    "resume": ("resume", SAVES),
    "bf16": ("none", {"bf16": "true"}),
    "packed": ("none", {**PACKED, **EVALUATES}),
    "attention": ("attention", PACKED),
    "refused": ("none", {"tensor_parallel_size": 2}),
    "asynchronous": ("none", {"async_save": "true"}),
    "rows": ("none", {"gradient_accumulation_steps": 17}),
    "precompile": ("none", {"max_steps": 500}),
    "lora": ("none", {**LORA, **SAVES, **EVALUATES}),
    "nan": ("none", {"learning_rate": 1e30, "logging_steps": 10, **SAVES, "save_steps": 3}),
    "smoothing": ("none", {"label_smoothing_factor": 0.3, "max_steps": 5}),
    "best": ("none", {**EVALUATES, **SAVES, "save_steps": 5, "load_best_model_at_end": "true", **WORST}),
}
ENVIRONMENTS = {"precompile": {"NEURON_EXTRACT_GRAPHS_ONLY": "1"}}


@dataclass
class Run:
    """What a run left: its exit code and output, losses by step, compile counts, artifact."""

    code: int
    output: str
    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    counts: list[tuple[str, int, int]] = field(default_factory=list)

    def of(self, name: str) -> dict[int, float]:
        return {row["step"]: row[name] for row in self.rows if name in row}

    def good(self) -> Run:
        assert self.code == 0, self.output[-3000:]
        return self


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and data; 19 validation rows in batches of 8, so that the last batch is not full."""
    folder = tmp_path_factory.mktemp("neuron")
    done = python("-m", "tests.chain.make_tiny_model", str(folder / "model"))
    assert done.returncode == 0, done.stdout
    for name, count in (("train", TRAIN_ROWS), ("validation", 19)):
        # Answers of one to eight tokens, so that a mean over labels is no mean over batches.
        rows = [("red", "Yes" + " is" * (i % 5)) if i % 2 else ("blue", "No" + "!" * (i % 7)) for i in range(count)]
        lines = [json.dumps({"prompt": f"{name[0]}{i} {w}: warm?", "completion": a}) for i, (w, a) in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def environment(**env: str) -> dict[str, str]:
    assert PYTHON.exists(), "run `make test-neuron`, which sets .venv-neuron up"
    ours = ("NEURON", "RUN_NEURON", "XLA_", "PJRT", "SAGEMAKER", "TORCHELASTIC", "WORLD_SIZE", "CUSTOM_CACHE")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**inherited, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env}


def python(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the interpreter of .venv-neuron; both its outputs are in `stdout`."""
    return subprocess.run(
        [PYTHON, *words],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )


def with_shim(*words: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{ROOT / 'tests' / 'neuron' / 'shim'}:{ROOT}"
    cache_url = str(folder / "cache")
    return python(*words, PYTHONPATH=path, PJRT_DEVICE="CPU", NEURON_COMPILE_CACHE_URL=cache_url, **env)


def arguments(work: Path, folder: Path, device: str, **more: Any) -> list[str]:
    given = {
        **ARGUMENTS,
        "model_name_or_path": work / "model",
        "train_file": work / "train.jsonl",
        "validation_file": work / "validation.jsonl",
        "output_dir": folder / "checkpoints",
        "export_dir": folder / "model",
        "metrics_dir": folder / "metrics",
        "device": device,
        **more,
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def read(code: int, output: str, folder: Path) -> Run:
    run = Run(code, output, folder)
    for attribute, file in (("rows", folder / "metrics" / "metrics.jsonl"), ("counts", folder / "counts.jsonl")):
        lines = file.read_text().splitlines() if file.exists() else []
        setattr(run, attribute, [json.loads(line) for line in lines])
    return run


class Forge:
    """tests.neuron.forge, started once; `submit` a run, `result` waits for it."""

    def __init__(self, work: Path) -> None:
        self.work, self.codes = work, dict[str, int]()
        path = f"{ROOT / 'tests' / 'neuron' / 'shim'}:{ROOT}"
        self.log = (work / "forge.log").open("w")
        self.process = subprocess.Popen(
            [PYTHON, "-m", "tests.neuron.forge"],
            cwd=ROOT,
            env=environment(PYTHONPATH=path, PJRT_DEVICE="CPU"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def submit(self, name: str, mutant: str, more: dict[str, Any], **env: str) -> None:
        folder = self.work / name
        words = [str(folder / "counts.jsonl"), mutant, *arguments(self.work, folder, "neuron", **more)]
        self.send(name, words, **env)

    def send(self, name: str, words: list[str], **env: str) -> None:
        folder = self.work / name
        folder.mkdir()
        env["NEURON_COMPILE_CACHE_URL"] = str(folder / "cache")
        job = {"name": name, "folder": str(folder), "words": words, "environment": env}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()

    def result(self, name: str) -> Run:
        assert self.process.stdout is not None
        if not (self.work / name).exists():
            self.submit(name, *RUNS[name], **ENVIRONMENTS.get(name, {}))
        while name not in self.codes:
            line = self.process.stdout.readline()
            assert line, (self.work / "forge.log").read_text()[-3000:]
            ended = json.loads(line)
            self.codes[ended["name"]] = ended["code"]
        folder = self.work / name
        return read(self.codes[name], (folder / "output.txt").read_text(), folder)

    def close(self) -> None:
        self.process.communicate(timeout=120)
        self.log.close()


@pytest.fixture(scope="session")
def forge(work: Path) -> Iterator[Forge]:
    made = Forge(work)
    for name, (mutant, more) in RUNS.items():
        made.submit(name, mutant, more, **ENVIRONMENTS.get(name, {}))
    made.send("units", ["units"])
    yield made
    made.close()


@pytest.fixture(scope="session")
def cpu(work: Path) -> Run:
    """USE_TORCH_XLA=0, since transformers would take torch_xla for its device otherwise."""
    words = arguments(work, work / "cpu", "cpu", use_cpu="true", zero_1="true", eval_strategy="steps", eval_steps=5)
    done = python("-m", "train.run_clm", *words, USE_TORCH_XLA="0")
    run = read(done.returncode, done.stdout, work / "cpu").good()
    assert "without effect here: zero_1 True" in run.output
    return run


@pytest.fixture(scope="session")
def neuron(forge: Forge) -> Run:
    return forge.result("neuron").good()


ALLOWED = {"loss": 5e-4, "grad_norm": 5e-3, "learning_rate": 1e-9, "eval_loss": 5e-4}


def differences(cpu: Run, other: Run, *names: str) -> list[str]:
    """Where two runs differ in the third decimal; [] means equal.

    The norm of the gradient belongs to it: with AdamW and clipping, one twice too large gives the same losses.
    """
    found = []
    for name in names or ("loss", "grad_norm", "learning_rate"):
        ours, theirs = cpu.of(name), other.of(name)
        assert sorted(ours) == sorted(theirs), f"{name}: logged at {sorted(ours)} and {sorted(theirs)}"
        assert len(ours) == (4 if name == "eval_loss" else STEPS)
        found += [f"{name} {s}: {ours[s]} {theirs[s]}" for s in ours if abs(ours[s] - theirs[s]) > ALLOWED[name]]
    return found


# -- training and evaluation


def test_losses_gradients_and_rates_equal_the_cpu_devices_over_twenty_steps(cpu: Run, neuron: Run) -> None:
    assert differences(cpu, neuron) == []
    assert cpu.of("loss")[STEPS] < 0.6 * cpu.of("loss")[1], "it has to learn for the comparison to mean much"


@pytest.mark.parametrize("mutant", ["learning_rate", "mask", "accumulation", "equal_microbatches", "order"])
def test_the_comparison_sees_each_mutant(forge: Forge, cpu: Run, mutant: str) -> None:
    found = differences(cpu, forge.result(mutant).good())
    assert any(line.startswith("loss") for line in found), found


def test_evaluation_gives_the_cpu_devices_loss_with_a_last_batch_of_three_rows(cpu: Run, neuron: Run) -> None:
    assert sorted(neuron.of("eval_loss")) == [5, 10, 15, 20]
    assert differences(cpu, neuron, "eval_loss") == []


def test_upstreams_evaluation_raises(forge: Forge) -> None:
    run = forge.result("evaluation")
    assert run.code != 0
    assert "compute_loss() got an unexpected keyword argument 'return_outputs'" in run.output


@pytest.mark.parametrize("mutant", ["equal_batches", "repeated_rows"])
def test_the_comparison_sees_an_evaluation_that_counts_filled_batches_whole(
    forge: Forge, cpu: Run, mutant: str
) -> None:
    run = forge.result(mutant).good()
    assert differences(cpu, run) == []
    assert differences(cpu, run, "eval_loss") != []


@pytest.fixture(scope="session")
def packed_cpu(work: Path) -> Run:
    words = arguments(work, work / "packed-cpu", "cpu", use_cpu="true", **PACKED, **EVALUATES)
    done = python("-m", "train.run_clm", *words, USE_TORCH_XLA="0")
    return read(done.returncode, done.stdout, work / "packed-cpu").good()


def test_packed_rows_give_the_cpu_devices_losses(forge: Forge, cpu: Run, packed_cpu: Run) -> None:
    run = forge.result("packed").good()
    packed = [re.findall(r"train: (\d+) packed rows of 24 tokens", each.output) for each in (packed_cpu, run)]
    assert packed == [["41"], ["41"]]
    assert differences(packed_cpu, run) == []
    assert differences(packed_cpu, run, "eval_loss") == []
    assert run.of("loss")[1] != cpu.of("loss")[1], "other rows"


def test_the_comparison_sees_examples_that_look_at_their_neighbours(forge: Forge, packed_cpu: Run) -> None:
    assert differences(packed_cpu, forge.result("attention").good()) != []


# -- compilations


def test_nothing_is_compiled_after_the_first_steps_of_training_and_evaluation(neuron: Run) -> None:
    """Last batches and the turn of the epoch included: 3 batches of 8, 8 and 3 rows, 2.5 epochs of 8 steps."""
    steps = {step: count for event, step, count in neuron.counts if event == "step"}
    evaluations = [row for row in neuron.counts if row[0] == "evaluation"]
    assert sorted(steps) == list(range(1, STEPS + 1))
    assert len(evaluations) == 5 * 3, "four in training and one after it"
    assert 0 < steps[3] == steps[4] == steps[5], "training, before the first evaluation"
    assert {row[2] for row in evaluations[1:]} == {steps[EPOCH]}, "from the second batch of the first evaluation on"
    assert {count for step, count in steps.items() if step > 5} == {steps[EPOCH]}, "the rest of training"


@pytest.mark.parametrize("mutant", ["epoch_end", "short_batch"])
def test_the_count_sees_one_more_graph(forge: Forge, mutant: str) -> None:
    """At the end of an epoch, as upstream; for a shorter last batch, where nobody checks the signature."""
    run = forge.result(mutant).good()
    with pytest.raises(AssertionError):
        test_nothing_is_compiled_after_the_first_steps_of_training_and_evaluation(run)


def test_a_shorter_last_batch_is_refused_before_the_first_step(forge: Forge) -> None:
    run = forge.result("last_batch")
    assert run.code != 0
    assert "SignatureError" in run.output
    assert "validation: 1 of 3 batches have another shape: batch 3 of 3 (the last)" in run.output
    assert run.of("loss") == {}


# -- saving, resuming, the artifact


def test_the_artifact_is_the_cpu_devices(work: Path, cpu: Run, neuron: Run) -> None:
    ours, theirs = cpu.folder / "model", neuron.folder / "model"
    names = {p.name for p in theirs.iterdir()}
    assert names == {p.name for p in ours.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json"} <= names
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text()), name
    manifest = json.loads((theirs / "manifest.json").read_text())
    assert (manifest["device"], manifest["versions"]["optimum-neuron"]) == ("neuron", "0.0.28")
    assert manifest["metrics"]["steps"] == STEPS
    done = python("-m", "tests.neuron.compare", str(theirs), str(ours), str(work / "model"))
    apart, trained = json.loads(done.stdout.splitlines()[-1])
    assert apart < 0.1 * trained, f"bf16's rounding apart the same: {apart} against {trained} that training changed"


@pytest.mark.parametrize(("mutant", "where"), [("save", "loss"), ("resume", "TypeError")])
def test_upstreams_checkpoints_stop_the_learning_and_cannot_be_resumed_from(
    forge: Forge, cpu: Run, mutant: str, where: str
) -> None:
    run = forge.result(mutant).good()
    if where == "loss":
        found = differences(cpu, run, "loss")
        assert found
        assert {line.split()[1].rstrip(":") for line in found} <= {str(step) for step in range(13, STEPS + 1)}
    else:
        forge.submit("resume again", "none", {**SAVES, "output_dir": run.folder / "checkpoints"})
        again = forge.result("resume again")
        assert again.code != 0
        assert "TypeError: unsupported operand type(s) for //: 'NoneType' and 'int'" in again.output


def test_it_resumes_where_it_stopped_when_started_as_the_container_does(work: Path, neuron: Run) -> None:
    """`python -m train.run_clm`, which becomes torchrun; steps 13 to 20 are those of the run that was not stopped."""
    folder = work / "resumed"
    saved = neuron.folder / "checkpoints" / "checkpoint-12"
    shutil.copytree(saved, folder / "checkpoints" / "checkpoint-12")
    done = with_shim("-m", "train.run_clm", *arguments(work, folder, "neuron", **SAVES), folder=folder)
    run = read(done.returncode, done.stdout, folder).good()
    assert f"train.workers --nproc_per_node=1 {' '.join(ONE_HOST)} -m train.run_clm" in run.output
    assert "resuming from checkpoint-12" in run.output
    assert "step=12/" not in run.output
    assert "step=13/" in run.output
    assert run.of("loss") == neuron.of("loss")
    done = python("-m", "tests.neuron.compare", *(str(r.folder / "model") for r in (run, neuron, neuron)))
    assert json.loads(done.stdout.splitlines()[-1]) == [0.0, 0.0], "bit for bit"


def test_compiling_only_exports_nothing(forge: Forge) -> None:
    run = forge.result("precompile").good()
    assert "compiling only: 12 steps, nothing is exported" in run.output
    assert "step=12/12" in run.output
    assert "eval_loss" not in run.output
    assert not (run.folder / "model").exists()


def test_bf16_as_upstream_does_it(forge: Forge, cpu: Run) -> None:
    run = forge.result("bf16").good()
    assert json.loads((run.folder / "model" / "manifest.json").read_text())["dtype"] == "bf16"
    ours, theirs = cpu.of("loss"), run.of("loss")
    assert abs(ours[1] - theirs[1]) < 0.05
    assert theirs[STEPS] < 0.7 * theirs[1]
    assert differences(cpu, run) != [], "bf16 was in force"


# -- LoRA, the best model, losses that are no numbers


@pytest.fixture(scope="session")
def cpu_runs(work: Path) -> dict[str, Run]:
    """The same on device cpu: LoRA, label smoothing, an early stop."""
    found = {}
    for name in ("lora", "smoothing", "best"):
        more = {**RUNS[name][1], "use_cpu": "true"}
        folder = work / f"cpu {name}"
        done = python("-m", "train.run_clm", *arguments(work, folder, "cpu", **more), USE_TORCH_XLA="0")
        found[name] = read(done.returncode, done.stdout, folder).good()
    return found


def test_lora_trains_the_same_and_as_many_parameters_as_it_says(
    work: Path, forge: Forge, cpu_runs: dict[str, Run]
) -> None:
    ours, theirs = forge.result("lora").good(), cpu_runs["lora"]
    assert differences(theirs, ours) == []
    assert differences(theirs, ours, "eval_loss") == []
    line = next(text for text in theirs.output.splitlines() if text.startswith("LoRA: "))
    assert "8,192 of 100,864 parameters are trained" in line
    assert line in ours.output
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (ours.folder / "model" / "adapter" / name).is_file()
        assert (ours.folder / "checkpoints" / "checkpoint-12" / name).is_file()
    assert not (ours.folder / "checkpoints" / "checkpoint-12" / "model.safetensors").exists()
    done = python(
        "-m",
        "tests.neuron.compare",
        *(str(f) for f in (ours.folder / "model", theirs.folder / "model", work / "model")),
    )
    apart, trained = json.loads(done.stdout.splitlines()[-1])
    assert apart < 0.1 * trained, "merged weights"


def test_nothing_is_compiled_after_the_first_steps_with_lora(forge: Forge) -> None:
    test_nothing_is_compiled_after_the_first_steps_of_training_and_evaluation(forge.result("lora").good())


def test_lora_resumes_from_its_adapters(forge: Forge) -> None:
    whole = forge.result("lora").good()
    folder = forge.work / "lora-checkpoints"
    shutil.copytree(whole.folder / "checkpoints" / "checkpoint-12", folder / "checkpoint-12")
    forge.submit("lora resumed", "none", {**LORA, **SAVES, **EVALUATES, "output_dir": folder})
    again = forge.result("lora resumed").good()
    assert "resuming from checkpoint-12" in again.output
    assert "step=12/" not in again.output
    assert again.of("loss") == whole.of("loss")


def test_losses_that_are_no_numbers_between_two_log_lines_publish_no_checkpoint(forge: Forge) -> None:
    run = forge.result("nan")
    assert run.code != 0
    assert "TrainingError: step 3: the weights hold nan or inf" in run.output
    assert "there is no checkpoint before it" in run.output
    assert list(run.folder.glob("checkpoints/checkpoint-*/complete.json")) == []
    assert not (run.folder / "model" / "model.safetensors").exists()


def test_label_smoothing_is_the_cpu_devices(forge: Forge, cpu: Run, cpu_runs: dict[str, Run]) -> None:
    ours, theirs = forge.result("smoothing").good().of("loss"), cpu_runs["smoothing"].of("loss")
    assert max(abs(ours[step] - theirs[step]) for step in theirs) < ALLOWED["loss"]
    assert abs(ours[1] - cpu.of("loss")[1]) > 0.01


def test_early_stop_and_best_checkpoint_are_the_cpu_devices(forge: Forge, cpu_runs: dict[str, Run]) -> None:
    ours, theirs = forge.result("best").good(), cpu_runs["best"]
    for run in (ours, theirs):
        assert "early stop after step 15: 2 evaluations without a better eval_loss" in run.output
        assert "best: checkpoint-5, eval_loss" in run.output
    done = python("-m", "tests.neuron.compare", *(str(r.folder / "model") for r in (ours, theirs, theirs)))
    apart, _ = json.loads(done.stdout.splitlines()[-1])
    saved = ours.folder / "checkpoints" / "checkpoint-5"
    done = python("-m", "tests.neuron.compare", str(ours.folder / "model"), str(saved), str(saved))
    assert json.loads(done.stdout.splitlines()[-1])[0] < 0.02, "bf16's rounding"
    assert apart < 0.1


# -- refusals


def test_a_layout_that_does_not_fit_is_refused_before_anything_is_built(forge: Forge) -> None:
    run = forge.result("refused")
    assert run.code != 0
    assert (
        "SignatureError: 1 cores are no multiple of tensor_parallel_size 2 x pipeline_parallel_size 1" in run.output
    )


def test_a_save_that_goes_on_training_is_refused(forge: Forge) -> None:
    run = forge.result("asynchronous")
    assert run.code != 0
    assert (
        "async_save has no effect here or cannot work: it goes on training before a checkpoint's files" in run.output
    )
    assert run.of("loss") == {}


def test_too_few_rows_for_a_step(forge: Forge) -> None:
    run = forge.result("rows")
    assert run.code != 0
    assert "64 rows make no step: 4 rows x 17 accumulation steps x 1 data-parallel workers need 68" in run.output


# -- parts


UNITS = (
    "masked_loss_equals_torchs_in_value_and_gradient",
    "upstreams_own_loss_takes_ignored_positions_in",
    "the_loss_is_put_where_upstream_looks_for_it",
    "flags_that_the_cpu_device_accepts_are_upstreams",
    "workers_share_out_the_cpu_devices_order_in_whole_steps",
    "evaluation_rows_fill_whole_batches_without_labels",
    "a_whole_model_comes_from_weights_and_nothing_may_be_missing",
    "pickled_weights_are_converted_before_the_second_worker_opens_them",
    "a_worker_gets_its_core_of_the_lent_range",
)


@pytest.fixture(scope="session")
def units(forge: Forge) -> dict[str, str]:
    output = forge.result("units").output
    found = dict(json.loads(line) for line in output.splitlines() if line.startswith('["'))
    assert set(found) == set(UNITS), output[-3000:]
    return found


@pytest.mark.parametrize("name", UNITS)
def test_unit(units: dict[str, str], name: str) -> None:
    assert units[name] == "ok", units[name]
