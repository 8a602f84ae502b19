"""Verbs that start and ask endpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import output
from harness.cli.cleanup import age
from harness.cli.runs import JsonFlag, MaxCostFlag, RunArg, run_ids

if TYPE_CHECKING:
    from harness.sagemaker.client import RunClient
    from harness.sagemaker.endpoints import Endpoint


def deploy(
    run_id: RunArg = None,
    base: Annotated[bool, typer.Option("--base", help="The model before fine-tuning.")] = False,
    ttl: Annotated[
        str, typer.Option("--ttl", help="Time to live: then it is deleted; for example 2h.", metavar="TIME")
    ] = "",
    max_cost: MaxCostFlag = "",
) -> None:
    """Start an endpoint that stays; prints its name."""
    from harness import record as records
    from harness.errors import NotFound
    from harness.run import platforms, spending, steps

    seconds = age(ttl) if ttl else None
    with output.reporter() as reporter:
        run = steps.resume(records.find(run_id))
        deployment = run.plan.base if base else run.plan.tuned
        if deployment is None:
            raise NotFound(f"run {run.record.id} has no base model to deploy", "it does not compare before and after")
        if max_cost:
            instance = deployment.create_endpoint_config["ProductionVariants"][0]["InstanceType"]
            seconds = spending.endpoint_seconds(max_cost, instance, platforms.of(run.record), seconds)
        with steps.working_on(run.record, "deploy", reporter) as client:
            endpoint = steps.deploy(client, deployment, reporter, seconds)
    output.out(endpoint.name)


def invoke(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue.", metavar="[PROMPT]")] = None,
    run_id: Annotated[str | None, typer.Option("--run", help="A run's id.", autocompletion=run_ids)] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help='Prompts: one a line, or .jsonl rows with "prompt".')
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 64,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer as it comes.")] = False,
    json: JsonFlag = False,
) -> None:
    """Ask a running endpoint."""
    import json as encoder

    from harness.errors import InvalidInput
    from harness.run import invoke as asking

    if (prompt is None) == (file is None):
        raise InvalidInput("give either a prompt or --file")
    prompts = [prompt] if prompt is not None else asking.read_prompts(file or Path())
    if stream and (json or len(prompts) > 1):
        raise InvalidInput("--stream prints the answer to one prompt as text", hint="leave out --json or --file")
    with _running(run_id) as (client, endpoint):
        if stream:
            body = {**asking.request(prompts[0], max_new_tokens=max_new_tokens), "stream": True}
            for piece in asking.pieces(client.invoke_stream(endpoint, body)):
                output.write(piece)
            output.out("")
            return
        for text in prompts:
            answer = client.invoke(endpoint, asking.request(text, max_new_tokens=max_new_tokens))
            said = asking.texts(answer)[0]
            row = {"prompt": text, "generated_text": said}
            output.out(encoder.dumps(row, ensure_ascii=False) if json else said)


@contextmanager
def _running(run_id: str | None) -> Iterator[tuple[RunClient, Endpoint]]:
    """The newest run's endpoint that is InService, or that of the run named."""
    from harness import record as records
    from harness.errors import NotFound
    from harness.run import platforms

    candidates = [records.find(run_id)] if run_id else records.all_records() or [records.find(None)]
    for record in candidates:
        with ExitStack() as stack:
            try:
                client = stack.enter_context(platforms.opened(record, lambda _: None, start=False))
            except NotFound:  # its local SageMaker is not up, so it has no endpoint
                continue
            names = sorted(client.endpoints(), key=lambda e: e.name, reverse=True)  # tuned before base
            if endpoint := next((e for e in names if e.status == "InService"), None):
                yield client, endpoint
                return
    raise NotFound(f"run {candidates[0].id} has no endpoint", hint=f"start one: harness deploy {candidates[0].id}")
