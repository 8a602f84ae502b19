"""harness/run/evaluate.py and report.py: the parser, the interval, and a page that escapes what models say."""

from __future__ import annotations

import json
import math
import random
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from containers.rows import Row
from harness.errors import EndpointFailed, InvalidInput, MissingPrerequisite
from harness.record import Record
from harness.run import compare, evaluate, invoke, report
from harness.run.evaluate import Given, Score, parse_answer
from harness.spec import heldout
from harness.spec.heldout import HeldOut

LABELS = ["Yes", "No"]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Yes", "Yes"),
        (" yes.", "Yes"),
        ("\n**No**, because", "No"),
        ("NO!", "No"),
        ("Notable", None),
        ("The answer is Yes", None),
        ("", None),
        ("Yes_No", "Yes"),
    ],
)
def test_answers_are_parsed_by_whole_words_at_the_start(text: str, label: str | None) -> None:
    assert parse_answer(text, LABELS) == label


ROWS = [HeldOut("a", "Yes"), HeldOut("b", " No"), HeldOut("c", "Yes")]


def test_score_counts_what_cannot_be_parsed_as_wrong() -> None:
    score = evaluate.score("label", ROWS, ["yes", "no", "maybe"], Given(("Yes", "No")))
    assert score.values == (1, 1, 0)
    assert score.unparsable == 1
    assert score.mean == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("measure", "answers", "values"),
    [
        ("exact_match", ["Yes ", "no", "Yes, that"], (1, 0, 0)),
        ("regex", ["on 2026-11-26.", "26.11.", ""], (1, 0, 0)),
        ("json", ['{"a": 1}', "{'a': 1}", "[" * 100_000], (1, 0, 0)),
    ],
)
def test_other_measures(measure: str, answers: list[str], values: tuple[float, ...]) -> None:
    assert evaluate.score(measure, ROWS, answers, Given(pattern=r"\d{4}-\d\d-\d\d")).values == values


@pytest.mark.parametrize(
    ("measure", "answers", "values"),
    [
        # By hand: a common subsequence of two of three and four words; F1 = 2 * 2/4 * 2/3 / (2/4 + 2/3).
        ("rouge_l", ["the cat sat", "a cat sat down", ""], (1, 4 / 7, 0)),
        ("chrf", ["the cat sat", "a cat sat down", ""], (1, 0.4737, 0)),
    ],
)
def test_free_text_is_measured_by_its_references(measure: str, answers: list[str], values: tuple[float, ...]) -> None:
    rows = [HeldOut(str(i), "the cat sat") for i in range(3)]
    assert evaluate.score(measure, rows, answers, Given()).values == pytest.approx(values, abs=1e-4)
    constant = evaluate.trivial(measure, rows, Given())
    assert constant is not None and constant.mean == pytest.approx(1)
    assert evaluate.trivial(measure, [HeldOut("a", "one"), HeldOut("b", "two")], Given()) is None


def test_a_measure_without_its_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingPrerequisite) as caught:
        evaluate.score("chrf", ROWS, ["", "", ""], Given())
    assert caught.value.problems[0].hint == "pip install 'neuron-harness[text]'"


def test_a_completions_likelihood_is_of_what_the_prompt_alone_does_not_have() -> None:
    told = [
        prefill((1, None), (2, -1.0), (3, -2.0), (4, -0.5)),
        prefill((1, None), (2, -1.0)),
        # Prompt and completion meet in one token: it is the completion's.
        prefill((1, None), (9, -4.0)),
        prefill((1, None), (8, -3.0)),
    ]
    found = invoke.completion_likelihoods(json.dumps(told).encode(), 2)
    assert found == [(-2.5, 2), (-4.0, 1)]
    score = evaluate.likelihoods(found)
    assert math.exp(-score.mean) == pytest.approx(math.exp(6.5 / 3)), "over tokens, not over rows"
    assert evaluate.shown_of("perplexity")(score.mean) == "8.73"
    better = evaluate.likelihoods([(-1.0, 2), (-2.0, 1)])
    said = evaluate.verdict("perplexity", score, better, None)
    assert said.startswith("the tuned model is better than the base model (+1.167 nats a token, 95 % interval")
    for answer in (b"[]", b"{}", json.dumps([prefill((1, None)), prefill((1, None))] * 2).encode()):
        with pytest.raises(EndpointFailed, match="no log probabilities"):
            invoke.completion_likelihoods(answer, 2)


def row(values: dict[str, object]) -> Row:
    return Row(Path("f"), "line 1", "messages", values)


def turn(role: str, content: object = "hello") -> dict[str, object]:
    return {"role": role, "content": content}


def test_a_chat_is_held_out_by_its_last_turn() -> None:
    found = heldout.of(row({"messages": [turn("system", "be kind"), turn("user", "hi"), turn("assistant", "yes")]}))
    assert found == HeldOut(
        "system: be kind\nuser: hi",
        "yes",
        (turn("system", "be kind"), turn("user", "hi")),  # type: ignore[arg-type]
    )
    assert heldout.of(row({"prompt": "p", "completion": "c"})) == HeldOut("p", "c")
    body = invoke.chat_request(found.messages, 24)
    assert (body["messages"][1]["content"], body["max_tokens"], body["temperature"]) == ("hi", 24, 0)
    answer = {"choices": [{"message": {"role": "assistant", "content": "yes"}}]}
    assert invoke.chat_text(json.dumps(answer).encode()) == "yes"
    for other in (b"", b"[]", b'{"choices": []}'):
        with pytest.raises(EndpointFailed, match="no chat's"):
            invoke.chat_text(other)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"text": "t"}, "needs prompt and completion, or messages"),
        ({"messages": [turn("assistant")]}, "must be the assistant's"),
        ({"messages": [turn("user"), turn("user")]}, "must be the assistant's"),
        ({"messages": [turn("user"), turn("assistant", None)]}, "texts only"),
        ({"messages": [turn("user"), turn("assistant")], "tools": [{}]}, "tools are not asked for"),
    ],
)
def test_what_cannot_be_held_out_is_said(values: dict[str, object], says: str) -> None:
    found = heldout.of(row(values))
    assert isinstance(found, str)
    assert says in found


def scorer_file(folder: Path, body: str) -> Given:
    file = folder / "score.py"
    file.write_text(body)
    return Given(scorer=file)


def test_a_users_own_scorer(tmp_path: Path) -> None:
    body = (
        "print('loading')\ndef score(prompt, completion, answer):\n    print(prompt)\n    return len(answer) / 10\n"
    )
    found = evaluate.score("scorer", ROWS, ["abc", "\u2028x", "d\n\ne"], scorer_file(tmp_path, body))
    assert found.values == (0.3, 0.2, 0.4)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("x = (", "SyntaxError"),
        ("def other(): ...", "KeyError: 'score'"),
        ("def score(**row):\n    return row['gold']", "KeyError: 'gold'"),
        ("def score(**row):\n    return None", "TypeError"),
        ("def score(**row):\n    return float('nan')", "no finite number"),
        ("import os\ndef score(**row):\n    os._exit(0)", "0 values for 3 rows"),
    ],
)
def test_a_scorer_that_does_not_work_is_one_line(tmp_path: Path, body: str, why: str) -> None:
    with pytest.raises(InvalidInput) as error:
        evaluate.score("scorer", ROWS, ["a", "b", "c"], scorer_file(tmp_path, body))
    (problem,) = error.value.problems
    assert why in f"{problem.what} {problem.why}"
    assert "score(prompt, completion, answer)" in problem.hint


def test_the_trivial_answer_is_the_most_frequent_one() -> None:
    constant = evaluate.trivial("label", ROWS, Given(("Yes", "No")))
    assert constant is not None
    assert (constant.answers[0], constant.values) == ("Yes", (1, 0, 1))
    assert evaluate.trivial("json", ROWS, Given()) is None


def of(right: int, n: int = 400, unparsable: int = 0) -> Score:
    hits = set(random.Random(right).sample(range(n), right))
    return Score(("no",) * n, tuple(float(i in hits) for i in range(n)), unparsable)


def test_a_gain_over_a_base_model_that_cannot_answer_is_no_success() -> None:
    """As seen: 81.5 % of the base model's answers without a label, tuned 49.5 %, always "no" 50.5 %."""
    said = evaluate.verdict("label", of(30, unparsable=326), of(198), of(202))
    assert said.startswith("the tuned model is no better than always answering 'no' (-1.0 points, 95 % interval")
    assert "81.5 % of the base model's answers have no label, so the gain over it says little" in said
    good = evaluate.verdict("label", of(227), of(334), of(202))
    assert good.startswith("the tuned model is better than always answering 'no' (+33.0 points")
    assert "; better than the base model (+26.7 points" in good
    assert "worse than" in evaluate.verdict("label", None, of(100), of(202))
    assert evaluate.verdict("json", None, of(100), None) == "there is nothing to compare the tuned model with"


def prefill(*tokens: tuple[int, float | None]) -> dict[str, object]:
    """As the handler answers: the first token has no log probability."""
    told = [{"id": i, "text": "?"} | ({} if p is None else {"log_prob": p}) for i, p in tokens]
    return {"generated_text": "x", "details": {"prefill": told}}


def test_likelihoods_are_of_the_tokens_behind_the_prompt() -> None:
    told = [
        prefill((1, None), (5, -9.0), (6, -0.5), (7, -0.25)),  # 6 joins the prompt's end and the word's beginning
        prefill((1, None), (5, -9.1), (8, -1.0), (9, -2.0), (10, -3.0)),
        prefill((1, None), (4, -7.0), (7, -2.0)),
        prefill((1, None), (4, -7.0), (7, -2.0), (9, -1.0)),  # the other word begins this one
    ]
    found = invoke.likelihoods(json.dumps(told).encode(), ["Is it?", "Why?"], [" yes", " yes sir"])
    assert found == [[-0.75, -6], [-2, -3]]


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"{", b'[{"generated_text": "x"}]', json.dumps([prefill((1, None)), prefill((1, None))]).encode()],
)
def test_an_answer_without_likelihoods_is_no_measure(answer: bytes) -> None:
    with pytest.raises(EndpointFailed, match="no log probabilities"):
        invoke.likelihoods(answer, ["Is it?"], [" yes", " no"])


def scores(before: list[bool], after: list[bool]) -> tuple[Score, Score]:
    return Score((), tuple(map(float, before))), Score((), tuple(map(float, after)))


def test_the_interval_covers_the_true_gain_as_often_as_it_says() -> None:
    rng, hits, rounds = random.Random(1), 0, 2000
    for _ in range(rounds):
        before = [rng.random() < 0.5 for _ in range(400)]
        after = [rng.random() < (0.85 if b else 0.65) for b in before]
        low, high = evaluate.gain_ci95(*scores(before, after))
        hits += low <= 0.25 <= high
    assert 0.93 < hits / rounds < 0.97


def test_the_interval_is_paired() -> None:
    before = [True] * 200 + [False] * 200
    after = [True] * 200 + [True] * 60 + [False] * 140
    low, high = evaluate.gain_ci95(*scores(before, after))
    assert low == pytest.approx(0.15 - 1.96 * (60 - 9) ** 0.5 / 400)
    assert high - low < 0.08  # unpaired it would be 0.14
    assert evaluate.gain_ci95(*scores(before, before)) == (0, 0)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]


def test_the_report_is_self_contained_and_escapes_what_models_say() -> None:
    evil = "<script>alert(1)</script>"
    result = {
        "run": "r-1",
        "score": {
            "measure": "label",
            "base": 0.5,
            "tuned": 0.8,
            "over_base": 0.3,
            "over_base_ci95": [0.2, 0.4],
            "trivial": 0.5,
            "rows": 400,
        },
        "verdict": f"better than {evil}",
        "trivial_answer": evil,
        "unparsable": {"base": 0.0, "tuned": 0.0},
        "prompts": [{"prompt": evil, "right": "Yes", "base": evil, "tuned": evil, "value": 1.0}],
        "seconds": {"train": 1.0, "total": 2.0},
        "peak_rss_mb": 1000,
        "versions": {"torch": "2"},
        "dtype": "fp32",
        "latency": {"tuned": {"requests": 25, "p50": 0.25, "p95": 1.5}},
        "tokens_per_second": 512.4,
        "cost": f"job 60 s: {evil}",
    }
    page = Tags()
    text = report.html(result, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.1}])
    page.feed(text)
    assert "script" not in page.tags
    assert page.links == []
    assert "80.0 %" in text
    assert "+30.0" in text
    assert "0.25 s, 1.50 s" in text and ">512<" in text
    assert text.count("<svg") == 1


def test_requests_are_timed_by_model_and_a_failed_one_is_none() -> None:
    meter = report.Meter()
    for which in ("base", "tuned", "tuned"):
        with meter.request(which):
            pass
    with pytest.raises(ZeroDivisionError), meter.request("tuned"):
        raise ZeroDivisionError
    found = meter.latency()
    assert {which: one["requests"] for which, one in found.items()} == {"base": 1, "tuned": 2}
    assert all(0 <= one["p50"] <= one["p95"] for one in found.values())


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2), (95, 4), (100, 4)])
def test_a_percentile_is_a_value_that_was_measured(percent: int, value: float) -> None:
    assert report.percentile([4.0, 1.0, 3.0, 2.0], percent) == value


def test_throughput_is_the_median_of_what_was_logged() -> None:
    assert report.throughput([{"tokens_per_second": 5.0}, {"loss": 1.0}, {"tokens_per_second": 9.0}]) == 5.0
    assert report.throughput([{"loss": 1.0}]) is None


def test_a_curve_needs_two_points_and_has_no_script() -> None:
    assert report.loss_curves({"a": [{"step": 1, "loss": 1.0}]}) == ""
    image = report.loss_curves({"a": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], "<b>": []})
    assert image.startswith("<svg")
    assert "script" not in image


def compared(name: str, tuned: float, rate: str) -> compare.Measured:
    score = {"measure": "exact_match", "rows": 10, "base": 0.1, "tuned": tuned}
    prompts = [{"prompt": "2 + 2 =", "right": "4", "base": "", "tuned": f" {name}</td>", "value": 1.0}]
    result = {"run": name, "score": score, "prompts": prompts, "seconds": {"train": 3.0}, "peak_rss_mb": 5}
    result |= {"verdict": "better", "versions": {"torch": "2", "peft": name}, "training": {"train_loss": 1.5}}
    return compare.Measured(name, result, {"train.learning_rate": rate, "name": "x"}, [])


def test_runs_beside_each_other_show_what_differs() -> None:
    runs = [compared("a", 0.5, "0.1"), compared("b", 0.75, "0.2")]
    runs[0].result["latency"] = {"tuned": {"requests": 25, "p50": 0.25, "p95": 1.5}}
    found = {table.title: {row[0]: row[1:] for row in table.rows} for table in compare.tables(runs)}
    assert found["result"]["after fine-tuning"] == ("50.0 %", "75.0 %")
    assert found["result"]["always the most frequent answer"] == ("-", "-")
    assert found["settings that differ"] == {"train.learning_rate": ("0.1", "0.2")}
    assert found["versions that differ"] == {"peft": ("a", "b")}
    assert found["time and memory"]["train, s"] == ("3", "3")
    assert found["time and memory"]["request to the tuned model, s: 95th percentile"] == ("1.50", "-")
    assert compare.examples(runs) == [("2 + 2 =", "4", "a</td>", "b</td>")]
    page = compare.html(runs)
    assert "a&lt;/td&gt;" in page
    assert "Settings that differ" in page


def test_what_is_compared_has_a_result(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InvalidInput, match="has no result yet"):
        compare.read(Record("r", tmp_path))
