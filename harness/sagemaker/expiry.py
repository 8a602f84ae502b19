"""The end of an endpoint that nobody deletes: a schedule that AWS keeps, made before the endpoint is.

It is in the run's ledger like everything else that costs or ends something, and goes with its endpoint.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import datetime

from harness.aws.errors import DENIED, is_missing
from harness.errors import HarnessError, Refused
from harness.estimate import spend
from harness.sagemaker.jobs import Say
from harness.sagemaker.resources import Made, Resources
from harness.spec.profile import LOCAL

KIND = "schedule"  # in the ledger


class Expiry:
    """The schedules of one run's endpoints."""

    def __init__(self, resources: Resources, say: Say) -> None:
        self.aws, self.record, self.resources, self.say = resources.aws, resources.record, resources, say

    def set(self, endpoint: str, expires: datetime, region: str) -> bool:
        """Have AWS delete `endpoint` at `expires`; where it will not, say plainly that nothing ends the bill."""
        role = self._role()
        if not role:
            self.say(f"{spend.NOTHING_STOPS_IT} (the profile has no expiry_role_arn; docs/aws.md)")
            return False
        self.cancel(endpoint, region)  # of an endpoint that had this name before: it must not end the new one
        request = spend.schedule_request(endpoint, expires, role)
        self.record.note("create", kind=KIND, operation="CreateSchedule", name=request["Name"], region=region)
        try:
            self.aws.call("scheduler", "create_schedule", region, **request)
        except Refused as error:
            if error.code == "ConflictException":  # the answer to an earlier try was lost
                self._delete(request["Name"], region)
                self.aws.call("scheduler", "create_schedule", region, **request)
            elif error.code in (*DENIED, "ValidationException"):
                self.record.note("deleted", kind=KIND, name=request["Name"], region=region)
                self.say(f"{spend.NOTHING_STOPS_IT} ({error.problems[0].why or error.problems[0].what})")
                return False
            else:
                raise
        self.record.note("created", kind=KIND, name=request["Name"], region=region, expires=expires.isoformat())
        return True

    def of(self, endpoint: str) -> datetime | None:
        """When AWS was last told to delete `endpoint`; None where it was not."""
        made = [line for line in self.record.ledger() if line["event"] == "created" and line["kind"] == KIND]
        lines = [line for line in made if line["name"] == spend.schedule_name(endpoint)]
        return datetime.fromisoformat(lines[-1]["expires"]) if lines else None

    def _role(self) -> str:
        """On a Neuron host with a profile of its own the local SageMaker has none to look at."""
        profile = self.aws.profile
        return profile.expiry_role_arn or (LOCAL.expiry_role_arn if profile.endpoint_url else "")

    def cancel(self, endpoint: str, region: str) -> None:
        """Delete the endpoint's schedule, if the ledger has one; one that has fired is gone already."""
        name = spend.schedule_name(endpoint)
        if Made(KIND, name, region) in self.resources.made():
            self._delete(name, region)
            self.record.note("deleted", kind=KIND, name=name, region=region)

    def cancel_all(self, but: Set[str] = frozenset()) -> None:
        """Those of every endpoint of the run, except of the endpoints named."""
        kept = {spend.schedule_name(name) for name in but}
        for item in self.resources.made():
            if item.kind == KIND and item.name not in kept:
                self._delete(item.name, item.region)
                self.record.note("deleted", kind=KIND, name=item.name, region=item.region)

    def _delete(self, name: str, region: str) -> None:
        try:
            self.aws.call("scheduler", "delete_schedule", region, Name=name)
        except HarnessError as error:
            if not is_missing(error):
                raise
