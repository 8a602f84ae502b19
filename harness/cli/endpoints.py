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


def proxy(
    endpoint: Annotated[str, typer.Argument(help="An endpoint's name, such as `harness ps` shows.")],
    platform: Annotated[str, typer.Option(help="Where it is: local, ec2 or sagemaker.")] = "local",
    region: Annotated[str, typer.Option(help="Instead of the profile's.")] = "",
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Instead of a free one.")] = None,
) -> None:
    """Offer an endpoint to OpenAI's clients on this machine."""
    import secrets
    import time

    from harness import proxy as proxying
    from harness.run import platforms

    with platforms.runtime(platform, region) as aws:
        described = aws.call("sagemaker", "describe_endpoint", EndpointName=endpoint)
        if described["EndpointStatus"] not in ("InService", "Updating"):
            from harness.errors import NotStarted

            raise NotStarted(
                f"endpoint {endpoint} is {described['EndpointStatus']}", hint="wait until it is InService"
            )
        token = secrets.token_urlsafe(24)
        application = proxying.application(proxying.Endpoint(aws.client("sagemaker-runtime"), endpoint), token)
        with proxying.serving(application, port or 0) as bound:
            output.note(f"endpoint {endpoint} under OpenAI's routes, for this machine only; Ctrl-C ends it")
            output.out(f"export OPENAI_BASE_URL=http://127.0.0.1:{bound}/v1")
            output.out(f"export OPENAI_API_KEY={token}")
            while True:
                time.sleep(3600)  # the interrupt ends it


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
