"""Engine `neuron` on the double, and the double against what the real source was recorded to do.

TNX_SOURCE=CHECKOUT pytest -m server tests/tnx runs the same scenarios on the real host code.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TABLE = json.loads((Path(__file__).resolve().parent / "table.json").read_text(encoding="utf-8"))
OUTCOMES = """
import json, sys
from pathlib import Path
from tests.tnx import calls, double, tiny
from tests.tnx.device import Echo
tnx = double.install(lambda m: Echo(m.batch_sizes[0], max(m.token_buckets)))
work = Path(sys.argv[1])
tiny.write(work / "model")
found = {"outcomes": calls.outcomes(tnx, work / "model", work), "signatures": calls.signatures(tnx)}
(work / "found.json").write_text(json.dumps(found))
"""


def drive(work: Path, *words: str) -> Any:
    """Run `python <words> work` in the serving environment; the found.json it leaves."""
    done = subprocess.run(
        [ROOT / ".venv-serve" / "bin" / "python", *words, str(work)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((work / "found.json").read_text())


@pytest.fixture(scope="module")
def doubled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive(tmp_path_factory.mktemp("double"), "-c", OUTCOMES)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive(tmp_path_factory.mktemp("scenarios"), "-m", "tests.tnx.scenarios")


def test_the_table_says_what_it_was_recorded_from() -> None:
    source = TABLE["source"]
    assert re.fullmatch("[0-9a-f]{40}", source["commit"])
    assert len(source["sha256"]) == 15
    assert all(re.fullmatch("[0-9a-f]{64}", h) for h in source["sha256"].values())


@pytest.mark.server
@pytest.mark.parametrize("group", sorted(TABLE["outcomes"]))
def test_the_double_accepts_refuses_and_sends_what_the_source_does(doubled: Any, group: str) -> None:
    assert doubled["outcomes"][group] == TABLE["outcomes"][group]


@pytest.mark.server
def test_the_table_notices_each_change_of_the_double(tmp_path: Path) -> None:
    found = drive(tmp_path, "-m", "tests.tnx.mutants")
    assert len(found) == 14
    assert [name for name, groups in found.items() if not groups] == []


# The double takes NeuronConfig's keywords from the table itself, and the engine does not call sample.
BY_OTHER_MEANS = {"NeuronConfig.__init__", "LlamaForSampling.sample"}


@pytest.mark.server
@pytest.mark.parametrize("name", sorted({*TABLE["signatures"]} - BY_OTHER_MEANS))
def test_the_doubles_signatures_are_the_sources(doubled: Any, name: str) -> None:
    assert doubled["signatures"][name] == TABLE["signatures"][name]


@pytest.mark.server
def test_the_same_tokens_alone_together_in_any_slot_and_joined_mid_way(found: Any) -> None:
    company = found["company"]
    alone = company["cpu"]
    assert len({a[0] for a in alone.values()}) == 6
    assert [alone[n][2] for n in ("127", "128", "129")] == [127, 128, 129]  # around a bucket
    assert company["alone"] == alone
    for answers in (*company["together"].values(), company["joined"]):
        assert [a for _, a in answers] == [alone[n] for n, _ in answers]
    assert company["slots"] == [[[slot], alone["few"]] for slot in range(4)]
    assert len(company["joined"]) == 24


@pytest.mark.server
def test_n_positions_is_the_limit_and_refused_as_by_engine_cpu(found: Any) -> None:
    limits = found["limits"]
    for name in ("to the last position", "one token more"):
        cpu, neuron = limits[name]
        assert cpu == neuron, name
    assert limits["to the last position"][1][2:] == [128, 32]
    assert limits["one token more"][1][0] == 422
    few = found["company"]["cpu"]["few"]
    assert limits["more prompts than slots"] == [few] * 6, "they wait for their turn"
    assert limits["after refusals"] == few
    cpu, neuron = limits["prompt log probabilities"]
    assert cpu == []
    why = "the prompt: log probabilities of the prompt need a graph that this engine does not compile"
    assert neuron == [422, [why]]


@pytest.mark.server
def test_stop_strings_over_the_border_of_two_tokens(found: Any) -> None:
    stops, alone = found["stops"], found["company"]["cpu"]
    cpu, neuron = stops["stopped"]
    assert cpu == neuron == [stops["whole"].split(stops["border"])[0], "stop_sequence", cpu[2], cpu[3]]
    *pieces, last = stops["streamed"]
    assert "".join(pieces) == last[0] == neuron[0]
    for *shown, end in stops["plain stream"]:
        assert "".join(shown) == end[0]
    assert [s[-1] for s in stops["plain stream"]] == list(alone.values())
    assert stops["end token"][0] == stops["end token"][1]
    assert stops["end token"][1][1] == "eos_token"
    assert stops["ends"] == [1]


@pytest.mark.server
def test_a_seed_gives_the_same_answer_alone_and_in_company(found: Any) -> None:
    seeds = found["seeds"]
    first, again = seeds["again"]
    assert first == again == seeds["in company"][-1:] == seeds["on engine cpu"]
    assert seeds["penalties"][0] == seeds["penalties"][1] != first
    assert len({*seeds["others"], *seeds["negative"], *first}) == 8
    assert len(set(seeds["none"])) == 6


@pytest.mark.server
def test_text_that_grows_by_tokens_is_what_all_tokens_say(found: Any) -> None:
    assert found["decoding"] == {"bytes": 0, "words": 0}


@pytest.mark.server
def test_engine_cpu_leaves_the_models_spaces_alone_as_engine_neuron_does(found: Any) -> None:
    spaces = found["spaces"]
    assert spaces["cleaned"] == "is it warm, or cold? don 't say.", "the tokenizer does clean up unless told not to"
    assert spaces["streamed"] == "is it warm , or cold ? don 't say ."


@pytest.mark.server
def test_slots_are_free_after_readers_left_and_the_device_failed(found: Any) -> None:
    failures, few = found["failures"], found["company"]["cpu"]["few"]
    assert failures["broken"] == [["RuntimeError", "RuntimeError: nrt error"]] * 2
    assert failures["still running"] == [False, False]  # an abandoned answer is not computed to its end
    assert [failures["after readers left"], *failures["after failures"]] == [few] * 5


@pytest.mark.server
def test_prepared_graphs_are_loaded_before_to_neuron_and_the_model_is_left_alone(found: Any) -> None:
    artifacts, few = found["artifacts"], found["company"]["cpu"]["few"]
    assert artifacts["unprepared"] == [4, few]  # graphs compiled, answer
    assert artifacts["prepare"] == [4, [".json", *[".neff"] * 4]]
    assert artifacts["prepared"] == [0, few]
    assert artifacts["prepare again"] == 0
    assert artifacts["model directory untouched"]
    assert artifacts["prepared untouched"]
    assert artifacts["other options"][0] == "ArtifactError"
    assert artifacts["without its key"] == 4
    assert artifacts["prepare anew, in place"] == [2, 0]
    assert artifacts["split"] == [4, few]
    assert artifacts["no model"][0] == "ArtifactError"


@pytest.mark.server
def test_keywords_and_cache(found: Any) -> None:
    artifacts = found["artifacts"]
    assert {k: v["amp"] for k, v in artifacts["dtypes"].items()} == {"bf16": "bf16", "fp16": "f16", "fp32": "f32"}
    for given in artifacts["dtypes"].values():
        buckets = {"n_positions": [128, 160], "context_length_estimate": [128, 160]}
        assert given == {**buckets, "tp_degree": 2, "batch_size": 4, "amp": given["amp"]}
    assert artifacts["one prompt at a time"] == 2  # one shared slot cannot be built
    assert artifacts["cache"] == [False, ["neuronxcc-2.15/MODULE_1/model.neff"]]
    assert not artifacts["cache set inside"]
    assert artifacts["cache set outside"]
    assert artifacts["cache on s3"] == "s3://bucket/cache"


FAMILIES = json.loads((Path(__file__).resolve().parent / "families.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return drive(tmp_path_factory.mktemp("families"), "-m", "tests.tnx.families")


@pytest.mark.server
@pytest.mark.parametrize("family", sorted(FAMILIES["families"]))
def test_the_double_does_to_each_family_what_the_source_does(families: Any, family: str) -> None:
    """Built or not, every answer in any slot and company, and the kind of the first error; the words may differ."""
    recorded, found = FAMILIES["families"][family], families[family]
    for name in recorded:
        expected, got = recorded[name], found[name]
        if name == "error":
            expected, got = expected.partition(":")[0], got.partition(":")[0]
        assert got == expected, name


def test_the_families_were_recorded_from_the_same_source() -> None:
    assert FAMILIES["source"]["commit"] == TABLE["source"]["commit"]
    allowed = [name for name, found in FAMILIES["families"].items() if found["answers"] == found["equal"] > 0]
    assert allowed == ["llama", "mistral", "mixtral"]
    assert not any(FAMILIES["families"][name]["unread weights"] for name in allowed)
