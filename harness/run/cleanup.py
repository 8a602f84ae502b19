"""Which runs to take down: by age, by time to live. And the lab's sweep by name, which looks at no ledger."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from harness import record as records
from harness.aws.session import Aws
from harness.record import Record
from harness.sagemaker import resources
from harness.sagemaker.client import RunClient
from harness.sagemaker.resources import DELETION, KINDS, RUNNING_JOB, Made

Say = Callable[[str], None]


def begun_before(seconds: float) -> list[Record]:
    """The runs below this directory that began at least so many seconds ago; the time is in a run's id."""
    now = datetime.now(UTC)
    return [r for r in records.all_records() if (begun := r.begun) and (now - begun).total_seconds() >= seconds]


def expire(client: RunClient, say: Say) -> list[str]:
    """Delete the run's endpoints whose tag says that their time is over; returns their names."""
    now, gone = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), []
    for endpoint in list(client.endpoints()):
        expires = client.expires(endpoint)
        if expires and expires < now:
            say(f"endpoint {endpoint.name}: its time was over at {expires}")
            client.delete(endpoint)
            gone.append(endpoint.name)
    return gone


def sweep_list(aws: Aws, prefix: str, regions: list[str]) -> list[Made]:
    """Running jobs, endpoints, configurations and models whose names begin with `prefix`, whoever made them."""
    found = []
    for region in regions:
        for kind in ("training-job", *DELETION):
            for name in resources.named(aws, kind, prefix, region):
                if not name.startswith(prefix):
                    continue
                if kind == "training-job":
                    now = resources.describe(aws, kind, name, region)
                    if now is None or now["TrainingJobStatus"] not in RUNNING_JOB:
                        continue
                found.append(Made(kind, name, region))
    return found


def sweep(aws: Aws, found: list[Made], poll: float, say: Say) -> None:
    """Stop and delete what sweep_list has found."""
    for item in found:
        if item.kind == "training-job":
            resources.stop_job(aws, item.name, item.region, poll, say)
        elif item.kind == "endpoint":
            resources.delete_endpoint(aws, item.name, item.region, poll, say)
        else:
            how = KINDS[item.kind]
            aws.call("sagemaker", f"delete_{how.noun}", item.region, **{how.name: item.name})
        say(f"deleted {item.kind} {item.name} in {item.region}")
