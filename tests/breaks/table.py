"""What is broken on purpose, and which test has to be red then; docs/reference/breaks.md is made from this.

A Break changes the product's source in a copy of the repository; tests/breaks/test_breaks.py runs the test there.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
POINTS = {
    "1": "workers start on a host whose name resolves to nothing",
    "2": "device neuron drives the real NeuronTrainer",
    "3": "shards are put together",
    "4": "engine neuron on transformers-neuronx",
    "5": "one batch signature, and what divides what",
    "6": "signature conformance",
    "7": "harness verify",
    "8": "docs/limits.md is complete",
    "9": "requests: protocols, options, proxy",
}


@dataclass(frozen=True)
class Break:
    """`before` stands once in `file`; `after` is put there, and `test` fails with `says` in its output."""

    point: str
    what: str
    file: str
    before: str
    after: str
    test: str
    says: str


NEURON = "train/devices/neuron.py"
ENGINE = "serve/engines/neuron.py"
SIGNATURE = "train/signature.py"
SHARDS = "tests/shards/test_shards.py::test_the_consolidated_model_is_the_original"
TNX = "tests/tnx/test_engine_neuron.py::test_"
RULES = "tests/test_signature.py::test_"
PROTOCOLS = "tests/protocols/"
VERSIONS = "tests/conformance/test_several_versions.py::test_a_version_lacks_what_is_declared_and_nothing_else"

BREAKS = (
    Break(
        *("1", "torchrun is left to ask for the host's own name", "train/launch.py"),
        *("words += ONE_HOST", 'words.append("--standalone")'),
        "tests/neuron/test_hosts.py::test_one_host_whose_name_resolves_to_nothing[.venv-neuron]",
        "the workers do not meet",
    ),
    Break(
        *("2", "batches of an accumulation are added up instead of averaged", NEURON),
        *("divisor = tokens[0].float() / parallel_state", "divisor = label_count(inputs['labels']) / parallel_state"),
        "tests/neuron/test_neuron.py::test_losses_gradients_and_rates_equal_the_cpu_devices_over_twenty_steps",
        "loss 1: ",
    ),
    Break(
        *("3", "parts are joined in the order from the last rank to the first", "train/consolidate.py"),
        *("full = torch.cat(parts, dim=dim)", "full = torch.cat(parts[::-1], dim=dim)"),
        f"{SHARDS}[tp2]",
        'assert result["stored"] and result["equal"]',
    ),
    Break(
        *("3", "shuffled query heads stay shuffled", "train/consolidate.py"),
        *('if suffix in ("weight_q", "bias_q"):', 'if suffix in ("weight_q?",):'),
        f"{SHARDS}[tp4 kv heads repeated]",
        'assert result["stored"] and result["equal"]',
    ),
    Break(
        *("4", "graphs are loaded after to_neuron", "serve/compilers.py"),
        *("        model.load(str(compiled))", "        model.to_neuron(); model.load(str(compiled))"),
        f"{TNX}prepared_graphs_are_loaded_before_to_neuron_and_the_model_is_left_alone",
        'artifacts["prepared"] == [0, few]',
    ),
    Break(
        *("4", "a keyword of from_pretrained is misspelt", ENGINE),
        *("amp=AMP[options.dtype]", "ampl=AMP[options.dtype]"),
        f"{TNX}keywords_and_cache",
        "KeyError: 'amp'",
    ),
    Break(
        *("4", "an abandoned answer keeps its slot", "serve/generator.py"),
        *("        self.scheduler.release(job.sequence)", "        pass"),
        f"{TNX}slots_are_free_after_readers_left_and_the_device_failed",
        "KeyError: Sequence(",
    ),
    Break(
        *("5", "only the first batch is looked at", SIGNATURE),
        *("        if found != first:", "        if number < 1:"),
        f"{RULES}a_shorter_last_batch_is_named",
        "not enough values to unpack",
    ),
    Break(
        *("5", "types of a batch do not count", SIGNATURE),
        *("tuple(int(n) for n in value.shape), str(value.dtype)", 'tuple(int(n) for n in value.shape), ""'),
        f"{RULES}another_width_type_or_key_is_a_problem_on_every_device[True]",
        "assert 0 == 1",
    ),
    Break(
        *("5", "key-value heads must be divided, not may divide", "containers/families.py"),
        *("% tensor and tensor % size.kv_heads:", "% tensor:"),
        f"{RULES}key_value_heads_may_be_fewer_than_cores_when_they_divide_them[8-True]",
        "assert (",
    ),
    Break(
        *("5", "the rule of the rows' length is left out", "containers/families.py"),
        *("if sequence_parallel and block_size % tensor:", "if False:"),
        f"{RULES}each_rule[config4-layout4-511-set block_size 512, or disable_sequence_parallel true]",
        "disable_sequence_parallel true",
    ),
    Break(
        *("6", "a name of optimum-neuron is misspelt", NEURON),
        *("self.args.mp_plugin.checkpoint_dir = Path", "self.args.mp_plugins.checkpoint_dir = Path"),
        f"{VERSIONS}[optimum-neuron 0.0.28]",
        "mp_plugins does not exist",
    ),
    Break(
        *("6", "an operation of boto3 is misspelt", "harness/sagemaker/resources.py"),
        *('"stop_training_job", region', '"stop_training_jobs", region'),
        f"{VERSIONS}[boto3 1.44.5]",
        "sagemaker has no operation stop_training_jobs",
    ),
    Break(
        *("6", "a method of DJL's is misspelt", "serve/model.py"),
        *("inputs.get_batches", "inputs.get_parts"),
        f"{VERSIONS}[djl_python 0.34.0]",
        "get_parts does not exist",
    ),
    Break(
        *("6", "a version is said to lack what it has", "tests/conformance/versions.toml"),
        *('["optimum-neuron 0.1.0".missing]', '["optimum-neuron 0.1.0".missing]\n"x does not exist" = "made up"'),
        f"{VERSIONS}[optimum-neuron 0.1.0]",
        "declared and not so: x does not exist",
    ),
    Break(
        *("7", "the cap is not looked at again before a job", "harness/verify/bench.py"),
        *("if most > self.cap + 1e-6:", "if False:"),
        "tests/test_verify.py::test_nothing_is_started_that_could_exceed_the_cap",
        "DID NOT RAISE",
    ),
    Break(
        *("7", "what runs is left running at the end", "harness/verify/verification.py"),
        *("for name in client.down():", "for name in ():"),
        "tests/aws/test_verify.py::test_an_interruption_stops_the_job_that_runs",
        "stopped or deleted: ",
    ),
    Break(
        *("8", "the code uses a name that limits.md does not have", NEURON),
        *("    xm.mark_step()\n    return", "    xm.mark_step()\n    xm.wait_device_ops()\n    return"),
        "tests/test_limits.py::test_every_neuron_touching_name_has_an_entry_and_every_entry_a_name",
        "torch_xla.core.xla_model.wait_device_ops",
    ),
    Break(
        *("8", "the code reads a variable that limits.md does not have", "train/launch.py"),
        *('int(given["NEURON_RT_NUM_CORES"])', 'int(given["NEURON_RT_VIRTUAL_CORES"])'),
        "tests/test_limits.py::test_every_neuron_touching_name_has_an_entry_and_every_entry_a_name",
        "NEURON_RT_VIRTUAL_CORES",
    ),
    Break(
        *("9", "null is handed on to the checks", "serve/protocols/body.py"),
        *("for k, v in given.items() if v is not None", "for k, v in given.items()"),
        f"{PROTOCOLS}test_lmi.py::test_null_is_as_good_as_absent",
        "RequestError",
    ),
    Break(
        *("9", "a body is read however long it is", "serve/protocols/body.py"),
        *("if len(raw) > context.max_body_bytes:", "if not raw and context.max_body_bytes:"),
        f"{PROTOCOLS}test_hostile.py::test_hostile[prompt-24-mb]",
        "assert error.value.status == status",
    ),
    Break(
        *("9", "what the client wrote goes into the reason phrase as it is", "serve/protocols/errors.py"),
        *("c if c.isprintable() else", "c if c else"),
        f"{PROTOCOLS}test_hostile.py::test_hostile[a-zero-in-a-name]",
        "p.isprintable()",
    ),
    Break(
        *("9", "the answers to one prompt share a seed", "serve/protocols/openai.py"),
        *("seed=parameters.seed + i)", "seed=parameters.seed)"),
        f"{PROTOCOLS}test_openai.py::test_several_prompts_and_answers_are_one_request_each",
        "('a', 6)",
    ),
    Break(
        *("9", "a stream ends with its first answer", "serve/protocols/openai.py"),
        *("if len(self._ended) < len(self.requests):", "if not self._ended:"),
        f"{PROTOCOLS}test_openai.py::test_a_chat_stream_is_deltas_usage_and_done",
        "KeyError",
    ),
    Break(
        *("9", "a prompt counts once for each of its answers", "serve/protocols/openai.py"),
        *("for answer in answers[:: self._n])", "for answer in answers)"),
        f"{PROTOCOLS}test_openai.py::test_chat_completions_have_openais_shape",
        "'prompt_tokens': 6",
    ),
    Break(
        *("9", "a variable that would do nothing is let pass", "serve/options.py"),
        *("or not value or name in known", "or value or name in known"),
        "tests/test_serve_options.py::test_all_such_variables_are_told_at_once",
        "DID NOT RAISE",
    ),
    Break(
        *("9", "the proxy lets everybody in", "harness/proxy.py"),
        *("if not hmac.compare_digest(given, wanted):", "if not given and not wanted:"),
        "tests/proxy/test_proxy.py::test_nothing_without_the_token[/v1/models-Bearer other]",
        "== 401",
    ),
    Break(
        *("9", "a stream goes on at SageMaker when its client has left", "harness/proxy.py"),
        *("        events.close()", "        events = None"),
        "tests/proxy/test_proxy.py::test_a_client_that_leaves_ends_the_stream_at_sagemaker",
        ".closed",
    ),
)

# Breaks that tests make themselves, by changing objects or files instead of the source: where they stand, the test
# that sees them, which asserts that the comparison fails.
INSIDE = (
    ("2", "tests/neuron/drive.py", "break_on_purpose", "tests/neuron/test_neuron.py, one test for each"),
    ("3", "tests/shards/test_shards.py", "REFUSED", "test_damage_is_refused_with_one_line_and_leaves_nothing"),
    ("3", "tests/shards/test_shards.py", "UNEQUAL", "test_a_changed_layout_is_another_model"),
    ("4", "tests/tnx/mutants.py", "MUTANTS", "test_the_table_notices_each_change_of_the_double"),
)


def named(file: str, name: str) -> list[str]:
    """The names in a table of breaks: a dictionary's keys, a tuple's texts, what `mutant` is compared with."""
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            found = ast.literal_eval(node.value)
            return list(found)
        if isinstance(node, ast.FunctionDef) and node.name == name:
            compared = [n for n in ast.walk(node) if isinstance(n, ast.Compare) and ast.unparse(n.left) == "mutant"]
            values = [ast.literal_eval(n.comparators[0]) for n in compared]
            flat = [v for value in values for v in (value if isinstance(value, tuple) else (value,))]
            return [v for v in dict.fromkeys(flat) if v not in ("none",)]
    raise LookupError(f"{file}: no {name}")


HEAD = """# What is broken on purpose

Made by `make generated` from tests/breaks/table.py. `make test-neuron` makes each of these breaks and is red where a
test does not see it. The points are those of [status](../internals/measurements.md), part 3.
"""


def page() -> str:
    """docs/reference/breaks.md."""
    lines = [HEAD]
    for point, title in POINTS.items():
        lines += [f"## {point} {title}", ""]
        if rows := [b for b in BREAKS if b.point == point]:
            lines += ["| broken in the source | file | red test |", "|---|---|---|"]
            lines += [
                f"| {b.what} | `{b.file}` | `{b.test.split('::')[1]}` ({b.test.split('::')[0]}) |" for b in rows
            ]
            lines.append("")
        for _, file, name, test in (row for row in INSIDE if row[0] == point):
            found = named(file, name)
            lines += [f"{len(found)} more inside the tests (`{name}` in {file}; seen by: {test}):", ""]
            lines += [*(f"* {text}" for text in found), ""]
    return "\n".join(lines).rstrip() + "\n"
