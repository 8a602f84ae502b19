"""Every rule: a source, a file that makes it speak, and silence when it is switched off."""

from __future__ import annotations

import pytest

from harness.errors import NotFound
from harness.rules import lint, where
from harness.rules.document import read
from harness.rules.rule import ERROR, RULES, SEVERITIES, Rule
from harness.rules.run import judge
from tests.rules import survey
from tests.rules.triggers import T48, TRIGGERS, Trigger


def speaks(trigger: Trigger, off: tuple[str, ...] = ()) -> None:
    """Assert that the trigger's rule has a finding on the trigger's line."""
    found = [(f.rule, f.line) for f in lint.lint(trigger.name, trigger.text, off)]
    assert (trigger.rule, trigger.line) in found


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.rule)
def test_the_rule_speaks_on_its_line(trigger: Trigger) -> None:
    speaks(trigger)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.rule)
def test_the_test_above_is_red_when_the_rule_is_switched_off(trigger: Trigger) -> None:
    with pytest.raises(AssertionError):
        speaks(trigger, off=(trigger.rule,))


def test_every_rule_has_a_trigger_and_every_trigger_a_rule() -> None:
    assert {t.rule for t in TRIGGERS} == set(RULES)
    assert len(TRIGGERS) == len(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda r: r.id)
def test_every_rule_has_severity_source_and_remedy_and_can_explain_itself(rule: Rule) -> None:
    assert rule.severity in SEVERITIES
    assert rule.source.startswith("https://")
    assert len(rule.remedy) > 10
    assert rule.topic in {t.__name__.rsplit(".", 1)[1] for t in lint.TOPICS}
    text = "\n".join(lint.explanation(rule))
    assert rule.source in text
    assert rule.remedy in text


def test_an_unknown_rule_gets_a_suggestion() -> None:
    with pytest.raises(NotFound) as error:
        lint.get("tp-more-than-core")
    assert "tp-more-than-cores" in error.value.problems[0].hint


# Ten launches as people published them, rebuilt from their settings (addresses in survey.json).
WORKING = {
    "djl-llama-13b.ipynb": (
        '{"cells": [{"cell_type": "code", "source": ["%%writefile serving.properties\\n", "engine=Python\\n",\n'
        '"option.entryPoint=djl_python.transformers_neuronx\\n", "option.tensor_parallel_degree=2\\n",\n'
        '"option.n_positions=512\\n", "option.rolling_batch=auto\\n", "option.model_loading_timeout=1600\\n"]},\n'
        '{"cell_type": "code", "source": ["model.deploy(instance_type=\\"ml.inf2.8xlarge\\",\\n",\n'
        '"container_startup_health_check_timeout=3600)\\n", "predictor.delete_endpoint()\\n"]}]}'
    ),
    "djl-llama-70b.properties": (
        "engine=Python\noption.model_id=meta-llama/Llama-2-70b-hf\n"
        "option.entryPoint=djl_python.transformers_neuronx\noption.tensor_parallel_degree=24\n"
        "option.n_positions=512\noption.rolling_batch=auto\noption.max_rolling_batch_size=4\n"
    ),
    "lab-inference.properties": (
        "engine=Python\noption.entryPoint=djl_python.transformers_neuronx\noption.batch_size=1\n"
        "option.neuron_optimize_level=1\noption.tensor_parallel_degree=2\noption.load_in_8bit=false\n"
        "option.n_positions=512\noption.rolling_batch=auto\noption.dtype=fp16\n"
    ),
    "lab-training.py": (
        "from sagemaker.pytorch import PyTorch\n"
        'PyTorch(entry_point="run_clm.py", instance_type="ml.trn1.2xlarge", instance_count=1,\n'
        '  distribution={"torch_distributed": {"enabled": True}}, disable_profiler=True,\n'
        '  hyperparameters={"tensor_parallel_size": 2, "block_size": 150, "max_steps": 100, "bf16": "",\n'
        '  "model_name_or_path": "PY007/TinyLlama-1.1B-intermediate-step-715k-1.5T", "do_train": ""})\n'
    ),
    "llama3-70b-tgi.py": (
        'from sagemaker.huggingface import HuggingFaceModel\ninstance_type = "ml.inf2.48xlarge"\n'
        'config = {"HF_MODEL_ID": "meta-llama/Meta-Llama-3-70B-Instruct", "HF_NUM_CORES": "24",\n'
        '  "HF_BATCH_SIZE": "4", "HF_SEQUENCE_LENGTH": "4096", "MAX_INPUT_LENGTH": "4000"}\n'
        "llm = HuggingFaceModel(env=config).deploy(instance_type=instance_type, initial_instance_count=1,\n"
        "  container_startup_health_check_timeout=3600, volume_size=512)\nllm.delete_endpoint()\n"
    ),
    "eks-inf2.Dockerfile": (
        "FROM public.ecr.aws/docker/library/ubuntu:22.04\n"
        "RUN pip config set global.extra-index-url https://pip.repos.neuron.amazonaws.com && \\\n"
        "    pip install neuronx-cc==2.* torch-neuronx transformers-neuronx sentencepiece\n"
    ),
    "lora-llama-8b.sh": (
        'export NEURON_CC_FLAGS="--model-type transformer --retry_failed_compilation"\n'
        "export NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS=3\nTP_DEGREE=8\n"
        "torchrun --nproc_per_node 32 finetune_llama.py --model_id meta-llama/Llama-3.1-8B --do_train \\\n"
        "  --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --bf16 \\\n"
        "  --tensor_parallel_size $TP_DEGREE\n"
    ),
    "nxd-7b.sh": (
        "TP_DEGREE=8\nSEQ_LEN=4096\nexport FI_PROVIDER=efa\nexport FI_EFA_USE_DEVICE_RDMA=1\n"
        "torchrun --nproc_per_node 32 --nnodes 4 pretrain.py --tensor_parallel_size $TP_DEGREE --max_steps 10\n"
    ),
    "vllm-optimum.yaml": (
        "services:\n  vllm-1:\n"
        "    image: 763104351884.dkr.ecr.us-east-1.amazonaws.com/huggingface-vllm-inference-neuronx:"
        "0.11.0-optimum0.4.5-neuronx-py310-sdk2.26.1-ubuntu22.04\n"
        '    command: ["--model", "meta-llama/Llama-3.1-8B-Instruct", "--tensor-parallel-size", "8",\n'
        '      "--max-num-seqs", "32", "--max-model-len", "4096"]\n    devices: ["/dev/neuron0", "/dev/neuron1"]\n'
        "    labels: [inf2.48xlarge]\n"
    ),
    "requirements.txt": (
        "--extra-index-url https://pip.repos.neuron.amazonaws.com\ntransformers==4.35.0\ndatasets==2.14.7\n"
        "optimum==1.14.1\nneuronx-distributed==0.5.0\n"
    ),
}


@pytest.mark.parametrize("name", WORKING)
def test_published_working_launches_have_no_error(name: str) -> None:
    found = [f for f in lint.lint(name, WORKING[name]) if f.severity == ERROR]
    assert found == []


def test_the_working_launches_are_really_read() -> None:
    """An unreadable file would have no findings either."""
    for name, text in WORKING.items():
        assert read(name, text).facts, name


def test_the_survey_is_of_thirty_files_by_others_with_address_commit_and_hash() -> None:
    assert len(survey.FILES) >= 30
    for f in survey.FILES:
        assert len(f["commit"]) == 40
        assert len(f["sha256"]) == 64
        assert all(rule in RULES and severity in SEVERITIES for rule, severity, _ in f["findings"])
        assert {rule for rule, _ in f["false_positives"]} <= {rule for rule, _, _ in f["findings"]}
    assert not any(severity == ERROR for f in survey.FILES for _, severity, _ in f["findings"])


LAB = {"tensor_parallel_size": 2, "block_size": 150, "max_steps": 100, "bf16": True}
SERVE = {"tp_degree": 2, "n_positions": 512, "dtype": "fp16"}
COMPUTE = {"train_instance": "ml.trn1.2xlarge", "serve_instance": "ml.inf2.xlarge", "train_instance_count": 1}
IMAGES = (T48, "djl-inference:0.30.0-neuronx-sdk2.20.1")
TINYLLAMA = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"


def rules_of(model: str = TINYLLAMA, **changes: dict) -> set[str]:
    train, serve, compute = (
        LAB | changes.get("train", {}),
        SERVE | changes.get("serve", {}),
        COMPUTE | changes.get("compute", {}),
    )
    found = judge("run.toml", model, "llama", "sdk2.20", train, serve, compute, IMAGES)
    return {f.rule for f in found if f.severity == ERROR}


def test_the_lab_has_no_error() -> None:
    assert rules_of() == set()


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("tp-more-than-cores", {"train": {"tensor_parallel_size": 8}}),
        ("tp-more-than-cores", {"serve": {"tp_degree": 4}}),
        ("instance-name", {"compute": {"train_instance": "ml.trn1.4xlarge"}}),
        (
            "tp-divides-heads",
            {"train": {"tensor_parallel_size": 32}, "compute": {"train_instance": "ml.trn1.32xlarge"}},
        ),
        ("startup-timeout-range", {"compute": {"startup_seconds": 7200}}),
    ],
)
def test_the_same_rules_judge_a_run_of_ours(rule: str, changes: dict) -> None:
    model = "Qwen/Qwen2.5-7B" if rule == "tp-divides-heads" else TINYLLAMA
    assert rule in rules_of(model, **changes)


YES, NO = {"ok": True, "why": "shown"}, {"ok": False, "why": "its heads are not cut"}
ALL = {"train": YES, "train_tensor": YES, "train_pipeline": YES, "train_lora": YES}
FAMILIES = {
    "llama": {**ALL, "serve": YES, "continuous_batching": YES},
    "gpt2": {**ALL, "train_tensor": NO, "serve": NO, "continuous_batching": NO},
}
WHERE = {"sdk2.20": {"families": FAMILIES}}


@pytest.mark.parametrize(
    ("family", "needs", "said"),
    [
        ("llama", ("train", "train_tensor", "serve", "continuous_batching"), []),
        ("gpt2", ("train", "train_lora"), []),
        (
            "gpt2",
            ("train_tensor",),
            ["with tensor parallelism: model_type gpt2, its heads are not cut; these: llama"],
        ),
        ("gpt2", ("serve", "continuous_batching"), ["does not serve it: model_type gpt2"]),
        ("mamba", ("train",), []),
        ("mamba", ("train_tensor",), ["it is not in the table"]),
        ("", ("train_tensor",), []),
    ],
)
def test_the_table_of_what_runs_where_refuses_what_it_knows(
    family: str, needs: tuple[str, ...], said: list[str]
) -> None:
    found = where.refusals(family, "sdk2.20", dict.fromkeys(needs, True), WHERE)
    assert len(found) == len(said)
    assert all(text in refusal for text, refusal in zip(said, found, strict=True))
    assert where.refusals(family, "another stack", dict.fromkeys(needs, True), WHERE) == []


def test_a_run_is_judged_by_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "table", lambda: WHERE)
    needs_tensor = {"train": {"tensor_parallel_size": 2}}
    assert "what-runs-where" not in rules_of(TINYLLAMA, **needs_tensor)
    without = {"sdk2.20": {"families": {"gpt2": FAMILIES["gpt2"]}}}
    monkeypatch.setattr(where, "table", lambda: without)
    assert "what-runs-where" in rules_of(TINYLLAMA, **needs_tensor)


def test_without_the_table_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "table", lambda: {})
    assert where.refusals("gpt2", "sdk2.20", {"serves": True}) == []
