"""`down`: everything of one run that runs or costs money is stopped and deleted, and what is left is named.

Every step is tried, whatever became of the others. What was refused is raised at the end, so that one throttled call
does not leave the rest running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from harness.aws.transfer import Transfer
from harness.errors import EndpointFailed, HarnessError, Interrupted, Problem
from harness.sagemaker import resources
from harness.sagemaker.expiry import Expiry
from harness.sagemaker.jobs import Jobs, Say
from harness.sagemaker.resources import DELETION, RUNNING_JOB, Made, Resources
from harness.spec.profile import Profile

COPY = "artifact-copy"  # in the ledger: the artifact in the serving region's bucket


class Takedown:
    """One attempt to take a run down. `gone` are the names of what was there, `errors` what was refused.

    `keep_log` is called with an endpoint's name before its deletion.
    """

    def __init__(
        self, resources: Resources, jobs: Jobs, transfer: Transfer, keep_log: Callable[[str], None], say: Say
    ) -> None:
        self.resources, self.jobs, self.transfer = resources, jobs, transfer
        self.keep_log, self.say = keep_log, say
        self.aws, self.record = resources.aws, resources.record
        self.gone: list[str] = []
        self.left: list[str] = []
        self.errors: list[HarnessError] = []

    def carry_out(self) -> list[str]:
        """Jobs first, then endpoints, configurations and models; then every region that was used is asked again.

        Raises the class of the first refusal with all problems, EndpointFailed where something is left all the same.
        """
        # Also what was deleted: a request of a killed command may have arrived after the deletion that followed it.
        made = self.resources.made(ever=True)
        self._stop_jobs([item for item in made if item.kind == "training-job"])
        for kind in DELETION:
            self._delete([item for item in made if item.kind == kind])
        with self._tried():
            self.transfer.abort_all()
        profile: Profile = self.aws.profile
        for region in sorted({item.region for item in made} | {profile.region, profile.serving.region}):
            with self._tried():
                self._look_again(region)
        if not self.errors and not self.left:
            self._delete_copies()  # what an endpoint that could not be deleted still loads, and what costs least
            with self._tried():
                Expiry(self.resources, self.say).cancel_all()  # as long as something is left, it is to end by itself
        self._report()
        return list(dict.fromkeys(self.gone))

    @contextmanager
    def _tried(self) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            raise
        except HarnessError as error:
            self.errors.append(error)

    def _stop_jobs(self, made: list[Made]) -> None:
        for item in made:
            with self._tried():
                self._gone_if(self.resources.stop_job(item.name, item.region, self.say), item.name)
        with self._tried():
            self.jobs.note_end()

    def _delete(self, made: list[Made]) -> None:
        for item in made:
            with self._tried():
                if item.kind == "endpoint":
                    self.keep_log(item.name)
            with self._tried():
                delete: Callable[..., bool] = self.resources.delete
                self._gone_if(delete(item.kind, item.name, item.region, self.say), item.name)

    def _gone_if(self, was_there: bool, name: str) -> None:
        if was_there:
            self.gone.append(name)

    def _look_again(self, region: str) -> None:
        """Ask a region for anything of this run that still runs or costs."""
        aws, run_id = self.aws, self.record.id
        for kind in ("training-job", *DELETION):
            for name in resources.named(aws, kind, run_id, region):
                found = self.resources.describe(kind, name, region)
                ended = kind == "training-job" and found and found["TrainingJobStatus"] not in RUNNING_JOB
                if found and not ended and self.resources.is_ours(kind, found, region):
                    self.left.append(f"{kind} {name} in {region}")

    def _delete_copies(self) -> None:
        for item in self.resources.made():
            if item.kind == COPY:
                with self._tried():
                    self.transfer.remove(item.name, item.region)
                    self.record.note("deleted", kind=COPY, name=item.name, region=item.region)
                    self.gone.append(item.name)

    def _report(self) -> None:
        problems = list(dict.fromkeys(problem for error in self.errors for problem in error.problems))
        if self.left:
            why = "" if self.aws.profile.endpoint_url else "it is billed until it is deleted"
            hint = f"repeat: harness down {self.record.id}"
            problems.insert(0, Problem(f"still there: {', '.join(self.left)}", why, hint))
        if problems:
            raise (type(self.errors[0]) if self.errors else EndpointFailed).of(problems)
