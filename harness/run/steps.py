"""The steps of a run on any platform, in order: plan, upload, train, deploy, measure, report, down."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from containers import rows as data
from containers.artifact import ArtifactError, read_manifest
from harness import record as records
from harness.errors import HarnessError, Interrupted, InvalidInput, Problem, Refused
from harness.estimate import cpu
from harness.files import LineFollower
from harness.interrupts import repeated, shielded
from harness.record import Record
from harness.reporter import Reporter
from harness.run import evaluate, forecast, inputs, invoke, lm_eval, platforms, report, spending
from harness.run.evaluate import Score
from harness.run.platforms import DEFAULT, Target
from harness.run.report import Meter
from harness.sagemaker.client import RunClient
from harness.sagemaker.endpoints import Endpoint
from harness.spec import checks, plan as plans, runfile, stacks
from harness.spec.heldout import HeldOut
from harness.spec.plan import Deployment, Plan
from harness.spec.runfile import RunFile

ASK_BATCH = 16  # prompts a request: a batch that two cores answer in well under a second
CHATS = 8  # that are asked at once: a chat is a request by itself, and the endpoint answers several together
SHOWN_PROMPTS = 5
TRAINED = "the model is trained"
INSTEAD = {"label_likelihood": "label", "perplexity": "exact_match"}  # measures that need no log probabilities
SECOND_INTERRUPT = 5.0  # seconds after Ctrl-C on a Neuron host in which a second one stops the job


@dataclass(frozen=True)
class Run:
    """A run that is being worked on: its record, its file and its plan."""

    record: Record
    file: RunFile
    plan: Plan


def start(path: Path, measured: bool = False, target: Target = DEFAULT, max_cost: str = "") -> Run:
    """Check the run file, make the plan, and only then a record. `max_cost`: USD that the run may cost."""
    path = runfile.find(path)
    stack = stacks.get(stacks.DEFAULT)
    file, limit = spending.within(max_cost, path, checks.load(path, stack, measured), stack, target)
    plan = plans.make(file, stack, target.profile, records.new_id(file.name))
    texts = {
        "run.json": file.model_dump_json(indent=2) + "\n",
        "plan.json": plan.to_json() + "\n",
        **platforms.texts(target),
        **limit,
    }
    return Run(records.create(plan.run_id, path, texts), file, plan)


def start_or_continue(
    argument: Path,
    measured: bool = False,
    platform: str = "",
    region: str = "",
    executor: str = "",
    max_cost: str = "",
) -> Run:
    """A run file starts a run on `platform`; the id of a run goes on with it where it was started."""
    if argument.parent == Path() and not argument.is_file():
        for record in records.all_records():
            if record.id == argument.name:
                run = resume(record)
                where = platforms.of(record).platform
                if platform and platform != where:
                    raise InvalidInput(f"run {record.id} is on platform {where}")
                if region:
                    raise InvalidInput(f"run {record.id} has its region; --region is for a new run")
                if max_cost:
                    raise InvalidInput(f"run {record.id} is planned already; --max-cost is for a new run")
                platforms.with_executor(record, executor)
                if measured and (problems := checks.check_measurable(run.file)):
                    raise InvalidInput.of(problems)
                return run
    return start(argument, measured, platforms.choose(platform, region, executor), max_cost)


def resume(record: Record) -> Run:
    """A run from its record. Raises InvalidInput where that is damaged, or of a version with other keys."""
    try:
        file = RunFile.model_validate_json((record.path / "run.json").read_text(encoding="utf-8"))
        plan = plans.from_json((record.path / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        hint = f"what it left running is deleted by: harness down {record.id}"
        raise InvalidInput(f"the record of run {record.id} cannot be read", why, hint) from None
    return Run(record, file, plan)


@contextmanager
def working_on(record: Record, verb: str, reporter: Reporter) -> Iterator[RunClient]:
    """Hold a run, settle what a crash has left, and say where things stand after an interruption."""
    with record.held(verb), platforms.opened(record, reporter.say) as client:
        try:
            client.settle()
            yield client
        except Interrupted as error:
            raise _interrupted(error, client, verb, reporter) from None
        except Refused as error:
            if found := _goes_on(client):
                error.problems.append(found)  # whatever we may not ask any more
            raise


def _interrupted(error: Interrupted, client: RunClient, verb: str, reporter: Reporter) -> Interrupted:
    """What the command ends with. Work that AWS bills goes on; on this machine it is stopped with a checkpoint.

    On a Neuron host the job survives the first Ctrl-C, and a second one within five seconds stops it.
    """
    run_id, platform = client.record.id, platforms.of(client.record).platform
    if not client.local:
        found = _goes_on(client)
        ended = TRAINED if _has_trained(client) else "no training job runs"
        what = f"detached; {found.what}" if found else f"interrupted; {ended}"
        return Interrupted(error.signum, what, found.hint if found else f"go on: harness {verb} {run_id}")
    job = client.running_job()
    if platform == "ec2" and job is not None and verb != "down" and not _stop_asked(error, reporter):
        hint = f"follow it: harness train {run_id}; stop it: harness down {run_id}"
        return Interrupted(error.signum, f"detached; training job {job['name']} goes on", hint)
    with shielded(), suppress(HarnessError):  # what is not stopped now, `down` and the next verb find
        client.stop_jobs()
    return Interrupted(error.signum, f"interrupted; {_stands(client)}", f"go on: harness {verb} {run_id}")


def _stop_asked(error: Interrupted, reporter: Reporter) -> bool:
    """Whether a second Ctrl-C follows the first."""
    if error.signum != signal.SIGINT:
        return False
    reporter.say(f"detaching; Ctrl-C again within {SECOND_INTERRUPT:.0f} s stops the job")
    return repeated(within=SECOND_INTERRUPT)


def _goes_on(client: RunClient) -> Problem | None:
    """What still runs of this run, as far as the record knows; and how to follow and stop it."""
    run_id, job = client.record.id, client.running_job()
    billed = "" if client.local else " and is billed"
    if job is not None:
        what = f"training job {job['name']} goes on in {job['region']}{billed}"
        return Problem(what, hint=f"follow it: harness train {run_id}; stop it: harness down {run_id}")
    created = [line for line in client.record.ledger() if line["event"] == "created"]
    begun = {line["name"] for line in created if line["kind"] == "endpoint"}  # its model has the same name
    for item in client.resources.made():
        if item.kind == "endpoint" and item.name in begun:
            what = f"endpoint {item.name} goes on in {item.region}{billed}"
            return Problem(what, hint=f"delete it: harness down {run_id}")
    return None


def _has_trained(client: RunClient) -> bool:
    """Whether the record knows of a job that has left its artifact."""
    job = client.record.read_json("job.json") or {}
    return bool(job.get("trained", job.get("status") == "Completed"))  # older records have no more


def _stands(client: RunClient) -> str:
    """Where training stands, in a few words."""
    if _has_trained(client):
        return TRAINED
    try:
        step = client.checkpoint_step()
    except HarnessError:
        step = None
    return f"training stands at step {step}, saved" if step is not None else "training has no checkpoint yet"


def train(run: Run, client: RunClient, reporter: Reporter) -> None:
    """Upload what the job needs, then run it to its end; nothing is done that is done already."""
    platforms.check(client, run.file, run.plan)
    model = inputs.model_folder(run.file, reporter.say)
    channels = inputs.channels(run.file, run.record, reporter.say)
    if client.local and model is not None:
        inputs.check_disk(run.record, model)
    client.upload(run.file, run.plan, model, channels)
    if platforms.of(run.record).platform == "local":
        _say_estimate(channels.get("train"), run.file, reporter)
    progress = _Progress(run.record.log, reporter)
    artifact = client.train(
        run.plan, lambda status, text: reporter.say(f"{status}: {text}" if text else status), progress
    )
    progress()
    reporter.say(f"artifact: {artifact}")


def _say_estimate(file: Path | None, run: RunFile, reporter: Reporter) -> None:
    """Of the one model whose speed here was measured; of another nothing is known before it is read."""
    if file is None or run.model.id != cpu.MEASURED:
        return
    found = [row.values for row in data.read(file) if isinstance(row, data.Row)]
    characters = sum(len(str(text)) for values in found for text in values.values())
    steps = run.train.get("max_steps", -1)
    if isinstance(steps, int) and steps > 0:
        each = int(run.train.get("per_device_train_batch_size", 8))
        seen = steps * each * int(run.train.get("gradient_accumulation_steps", 1)) / max(len(found), 1)
    else:
        seen = float(run.train.get("num_train_epochs", 3.0))
    reporter.say(cpu.training(characters * seen).text)


class _Progress:
    """Called now and then: reports the steps that the trainer has logged since."""

    def __init__(self, log: Path, reporter: Reporter) -> None:
        self.follower, self.reporter = LineFollower(log), reporter  # a resumed job appends

    def __call__(self) -> None:
        for line in self.follower.lines():
            if line.startswith(("device ", "train:", "validation:")):
                self.reporter.say(line)
            match = re.match(r"step=(\d+)/(\d+) loss=(\S+)", line)
            if match:
                self.reporter.progress(f"training, loss {match[3]}", int(match[1]), int(match[2]))


def deploy(client: RunClient, deployment: Deployment, reporter: Reporter, ttl: float | None = None) -> Endpoint:
    """One endpoint, InService. `ttl`: seconds until it ends by itself, instead of the run's limit or the profile's.

    Interrupted on this machine, what was begun is deleted; what AWS has begun goes on.
    """
    if client.local:
        platforms.set_up(platforms.of(client.record).executor, reporter.say)  # may have gone since training
    reporter.say(f"endpoint {deployment.endpoint_name}: Creating")
    try:
        endpoint = client.deploy(deployment, ttl=ttl if ttl is not None else spending.ttl_of(client.record))
    except Interrupted:
        if client.local:
            with suppress(HarnessError):
                _delete_left(client, deployment)
        raise
    reporter.say(f"endpoint {endpoint.name}: InService on {client.address(endpoint)}")
    return endpoint


def measure(
    run: Run, client: RunClient, meter: Meter, reporter: Reporter, keep: bool, anew: bool = False
) -> dict[str, Any]:
    """Base and tuned model over the test rows, each through its own endpoint; no row is asked twice, but `anew`.

    `keep` leaves the tuned model's endpoint running.
    """
    rows = _held_out(run, reporter)
    kind, given, tasks = _measure_of(run), evaluate.given(run.file), _lm_eval_tasks(run)
    scores: dict[str, Score] = {}
    others: dict[str, Any] = {}
    for which, deployment in (("base", run.plan.base), ("tuned", run.plan.tuned)):
        if deployment is None:
            continue
        stays = keep and which == "tuned"
        answers = None if anew else run.record.read_json(f"answers-{which}.json")
        others[which] = None if anew else run.record.read_json(f"lm-eval-{which}.json")
        if answers is None or stays or (tasks and others[which] is None):
            with meter.phase(f"deploy_{which}"):
                endpoint = deploy(client, deployment, reporter)
            try:
                if answers is None:
                    with meter.phase(f"evaluate_{which}"):
                        answers = _ask_all(run, client, endpoint, rows, which, meter, reporter)
                    if not anew:  # they are the run's own measure's
                        run.record.write_json(f"answers-{which}.json", answers)
                if tasks and others[which] is None:
                    reporter.say(f"asking the {which} model: lm-eval, {', '.join(tasks)}")
                    with meter.phase(f"lm_eval_{which}"):
                        others[which] = _lm_eval(run, client, endpoint, tasks, reporter)
                    if not anew:
                        run.record.write_json(f"lm-eval-{which}.json", others[which])
            except Refused:
                stays = not client.local  # a call was refused: that says nothing about the endpoint
                raise
            except BaseException:
                stays = False
                raise
            finally:
                if not stays:
                    with meter.phase(f"delete_{which}"):
                        client.delete(endpoint)
        else:
            _delete_left(client, deployment)
        scores[which] = (
            evaluate.likelihoods(answers) if kind == "perplexity" else evaluate.score(kind, rows, answers, given)
        )
    result = _result(run.record, kind, rows, scores, evaluate.trivial(kind, rows, given))
    return result | ({"lm_eval": {which: others[which] for which in scores}} if tasks else {})


def _lm_eval_tasks(run: Run) -> list[str]:
    """Tasks of lm-eval that this endpoint can answer: most are measured by log probabilities of prompts."""
    return list(run.file.evaluate.lm_eval or ()) if _computes_likelihoods(run) else []


def _lm_eval(
    run: Run, client: RunClient, endpoint: Endpoint, tasks: list[str], reporter: Reporter
) -> lm_eval.Results:
    folder, path = inputs.model_folder(run.file, reporter.say), run.file.evaluate.lm_eval_path
    runtime = client.aws.client("sagemaker-runtime", endpoint.region)
    tokenizer = str(folder) if folder is not None else run.file.model.id
    return lm_eval.ask(runtime, endpoint.name, tokenizer, tasks, Path(path) if path is not None else None)


def _delete_left(client: RunClient, deployment: Deployment) -> None:
    """The endpoint of a model that is measured already: a run was killed before it could delete it."""
    for endpoint in list(client.endpoints()):
        if endpoint.name == deployment.endpoint_name:
            client.delete(endpoint)


def _measure_of(run: Run) -> str:
    """The run file's measure, or the one that an endpoint on Inferentia can answer instead."""
    kind = run.file.measure
    return kind if _computes_likelihoods(run) else INSTEAD.get(kind, kind)


def _computes_likelihoods(run: Run) -> bool:
    """Engine neuron has no graph for the log probabilities of a prompt; on platform local it is engine cpu."""
    return platforms.of(run.record).platform == "local"


def evaluated_by(run: Run, path: Path) -> Run:
    """The run with the table [evaluate] of another run file. Raises InvalidInput with what is wrong with it."""
    other = runfile.load(runfile.find(path))
    file = run.file.model_copy(update={"evaluate": other.evaluate})
    if problems := checks.check_measurable(file):
        raise InvalidInput.of(problems)
    return replace(run, file=file)


def require_trained(client: RunClient) -> None:
    """Raises InvalidInput where the run has no artifact yet."""
    if not _has_trained(client):
        run_id = client.record.id
        raise InvalidInput(f"run {run_id} is not trained yet", hint=f"harness run {run_id} trains it, too")


def check_measure(run: Run, reporter: Reporter) -> None:
    """Before anything is trained: scorer or library is tried on a right answer, another measure than asked is said.

    Raises InvalidInput where the scorer does not work or the rows are of another kind, MissingPrerequisite where a
    library is not there.
    """
    kind = _measure_of(run)
    if kind != run.file.measure:
        why = "an endpoint on Inferentia computes no log probabilities of a prompt"
        reporter.say(f'measure "{kind}" instead of "{run.file.measure}": {why}')
    asked, tasks, path = run.file.evaluate.lm_eval, _lm_eval_tasks(run), run.file.evaluate.lm_eval_path
    if tasks:
        lm_eval.check(tasks, Path(path) if path is not None else None)
    elif asked:
        reporter.say(
            "lm-eval's tasks are left out: an endpoint on Inferentia computes no log probabilities of a prompt"
        )
    if kind not in ("scorer", *evaluate.TEXTUAL, *checks.OF_PROMPTS):
        return
    row = _held_out(run, reporter)[0]
    if row.messages and kind in checks.OF_PROMPTS:
        raise InvalidInput(f'evaluate.measure = "{kind}" needs prompt and completion, and the test file has chats')
    if kind not in checks.OF_PROMPTS:
        evaluate.score(kind, [row], [row.answer], evaluate.given(run.file))


def _held_out(run: Run, reporter: Reporter) -> list[HeldOut]:
    reading = data.Reading(run.file.data.columns or {}, run.file.data.format)
    return evaluate.read_rows(inputs.channels(run.file, run.record, reporter.say)["test"], reading)


def _ask_all(
    run: Run, client: RunClient, endpoint: Endpoint, rows: list[HeldOut], which: str, meter: Meter, reporter: Reporter
) -> list[Any]:
    """The answers in the rows' order: texts, or of perplexity (log-likelihood, tokens)."""

    def ask(body: dict[str, Any]) -> bytes:
        with meter.request(which):
            return client.invoke(endpoint, body)

    answers: list[Any] = []
    words = list((run.file.data.labels or {}).values())
    kind, tokens = _measure_of(run), evaluate.max_new_tokens(run.file)
    each = {"label_likelihood": len(words), "perplexity": 2}.get(kind, 1)
    size = max(ASK_BATCH // each, 1)
    for start_at in range(0, len(rows), size):
        asked = rows[start_at : start_at + size]
        prompts = [row.prompt for row in asked]
        if kind == "label_likelihood":
            found = ask(invoke.likelihood_request(prompts, words))
            answers += [words[each.index(max(each))] for each in invoke.likelihoods(found, prompts, words)]
        elif kind == "perplexity":
            body = invoke.completion_request(prompts, [row.answer for row in asked])
            answers += invoke.completion_likelihoods(ask(body), len(asked))
        elif asked[0].messages:
            bodies = [invoke.chat_request(row.messages, tokens) for row in asked]
            with ThreadPoolExecutor(CHATS) as pool:
                answers += pool.map(lambda body: invoke.chat_text(ask(body)), bodies)
        else:
            answers += invoke.texts(ask(invoke.request(prompts, max_new_tokens=tokens)))
        reporter.progress(f"asking the {which} model", len(answers), len(rows))
    return answers


def _result(
    record: Record, kind: str, rows: list[HeldOut], scores: dict[str, Score], constant: Score | None
) -> dict[str, Any]:
    tuned, base = scores["tuned"], scores.get("base")
    shown = [
        {
            "prompt": row.prompt,
            "right": row.answer.strip(),
            "base": base.answers[i] if base else "",
            "tuned": tuned.answers[i],
            "value": tuned.values[i],
        }
        for i, row in enumerate(rows[:SHOWN_PROMPTS])
    ]
    score: dict[str, Any] = {"measure": kind, "tuned": tuned.mean, "rows": len(rows)}
    for name, other in (("base", base), ("trivial", constant)):
        if other is not None:
            low, high = evaluate.gain_ci95(other, tuned)
            score |= {name: other.mean, f"over_{name}": tuned.mean - other.mean, f"over_{name}_ci95": [low, high]}
    return {
        "run": record.id,
        "score": score,
        "verdict": evaluate.verdict(kind, base, tuned, constant),
        "trivial_answer": constant.answers[0] if constant else None,
        "unparsable": {name: s.unparsable_share for name, s in scores.items()} if kind == "label" else {},
        "prompts": shown,
    }


def finish(record: Record, client: RunClient, result: dict[str, Any], meter: Meter) -> None:
    """result.json and report.html."""
    outputs = client.outputs()
    manifest, metrics = _manifest(outputs), report.read_metrics(outputs)
    billed = "" if client.local else spending.costs(record, set(), datetime.now(UTC), forecast.prices())
    result |= {
        "seconds": {name: round(value, 2) for name, value in meter.seconds.items()},
        "peak_rss_mb": round(meter.peak_rss_mb),
        "latency": meter.latency(),
        "tokens_per_second": report.throughput(metrics),
        "cost": billed,
        "versions": manifest.get("versions", {}),
        "training": manifest.get("metrics", {}),
        "dtype": manifest.get("dtype", ""),
    }
    record.write_json("result.json", result)
    record.write_text("report.html", report.html(result, metrics))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return asdict(read_manifest(folder))
    except ArtifactError:
        return {}
