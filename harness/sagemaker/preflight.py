"""Questions to the account before anything costs: role, bucket, images, network, key, quotas. All problems at once.

What the caller may not ask is said, not guessed: many accounts forbid iam:GetRole or Service Quotas.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from harness.aws.errors import DENIED, is_missing
from harness.aws.session import Aws
from harness.errors import HarnessError, InvalidInput, Problem, Refused
from harness.estimate import spend
from harness.images import build as builds, registry
from harness.spec import stacks
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile

Say = Callable[[str], None]
IMAGES = {"train_image": "neuron-train", "serve_image": "neuron-serve"}


def check(aws: Aws, profile: Profile, run: RunFile, say: Say, stack: str = stacks.DEFAULT) -> None:
    """Raises InvalidInput with everything that would make the run fail later, Refused without valid credentials."""
    identity(aws, profile)  # without it every other answer would be the same refusal
    problems, unanswered = [], []
    questions: list[tuple[str, Callable[[], list[Problem]]]] = [
        ("the role", lambda: check_role(aws, profile)),
        ("the expiry's role", lambda: check_expiry_role(aws, profile)),
        ("the bucket", lambda: check_bucket(aws, profile)),
        ("the key", lambda: check_key(aws, profile)),
        ("the network", lambda: check_network(aws, profile)),
    ]
    if profile.serving is not profile:
        there = profile.serving
        questions += [
            ("the serving region's bucket", lambda: check_bucket(aws, there)),
            ("the serving region's key", lambda: check_key(aws, there)),
            ("the serving region's network", lambda: check_network(aws, there)),
        ]
    if not profile.endpoint_url:
        questions += [
            ("the images", lambda: check_images(aws, profile, stack)),
            ("quotas", lambda: check_quotas(aws, profile, run)),
        ]
    for what, ask in questions:
        try:
            problems += ask()
        except Refused as error:
            if error.code in (*DENIED, "UnknownOperationException", "InternalFailure"):
                unanswered.append(what)
            else:
                problems += error.problems
    if unanswered:
        say(f"not checked, because these credentials may not ask: {', '.join(unanswered)}")
    if problems:
        raise InvalidInput.of(problems)


def identity(aws: Aws, profile: Profile) -> str:
    """Who the credentials are. Raises InvalidInput where that is another account than the profile's."""
    who = aws.call("sts", "get_caller_identity")
    if who["Account"] != profile.account:
        why = f"the credentials are {who['Arn']}"
        hint = "choose other credentials (AWS_PROFILE) or another profile (NEURON_HARNESS_ACCOUNT)"
        raise InvalidInput(f"the profile is for account {profile.account}, not {who['Account']}", why, hint)
    return str(who["Arn"])


def check_role(aws: Aws, profile: Profile) -> list[Problem]:
    """It is there, and SageMaker may assume it."""
    name = profile.role_arn.rsplit("/", 1)[1]
    try:
        role = aws.call("iam", "get_role", RoleName=name)["Role"]
    except HarnessError as error:
        if not is_missing(error):
            raise
        return [
            Problem(f"there is no role {profile.role_arn}", hint="make it: harness init --create, or docs/aws.md")
        ]
    document = _document(role)
    if not any(_lets_sagemaker(s) for s in _as_list(document.get("Statement", []))):
        why = 'its trust policy does not allow sts:AssumeRole to "sagemaker.amazonaws.com"'
        return [Problem(f"SageMaker cannot assume {profile.role_arn}", why, "docs/aws.md has the trust policy")]
    return []


def check_expiry_role(aws: Aws, profile: Profile) -> list[Problem]:
    """It is there, and EventBridge Scheduler may assume it; a profile without one is told when an endpoint starts."""
    arn = profile.expiry_role_arn
    if not arn:
        return []
    try:
        role = aws.call("iam", "get_role", RoleName=arn.rsplit("/", 1)[1])["Role"]
    except HarnessError as error:
        if not is_missing(error):
            raise
        hint = "make it: harness init --create, or docs/aws.md"
        return [Problem(f"there is no role {arn}, which deletes endpoints at their expiry", hint=hint)]
    return spend.check_trust(_document(role), arn)


def _document(role: dict[str, Any]) -> dict[str, Any]:
    document = role["AssumeRolePolicyDocument"]
    found: dict[str, Any] = json.loads(unquote(document)) if isinstance(document, str) else document
    return found


def _lets_sagemaker(statement: dict[str, Any]) -> bool:
    principal = statement.get("Principal", {})
    services = _as_list(principal.get("Service", [])) if isinstance(principal, dict) else []
    actions = _as_list(statement.get("Action", []))
    return (
        statement.get("Effect") == "Allow" and "sagemaker.amazonaws.com" in services and "sts:AssumeRole" in actions
    )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def check_bucket(aws: Aws, profile: Profile) -> list[Problem]:
    """It is there and in the region."""
    try:
        answer = aws.call("s3", "head_bucket", profile.region, Bucket=profile.bucket)
    except HarnessError as error:
        if not is_missing(error):
            raise
        hint = "make it: harness init --create, or docs/aws.md"
        return [Problem(f"there is no bucket {profile.bucket}", hint=hint)]
    region = answer.get("BucketRegion") or profile.region
    if region != profile.region:
        why = "SageMaker reads from and writes to buckets of its own region only"
        return [Problem(f"bucket {profile.bucket} is in {region}, not in {profile.region}", why)]
    return []


def check_key(aws: Aws, profile: Profile) -> list[Problem]:
    """It is enabled."""
    if not profile.kms_key:
        return []
    try:
        state = aws.call("kms", "describe_key", profile.region, KeyId=profile.kms_key)["KeyMetadata"]["KeyState"]
    except HarnessError as error:
        if not is_missing(error):
            raise
        return [Problem(f"there is no key {profile.kms_key}")]
    return [] if state == "Enabled" else [Problem(f"key {profile.kms_key} is {state}")]


def check_network(aws: Aws, profile: Profile) -> list[Problem]:
    """Subnets and security groups are there and of one VPC."""
    if not profile.subnets:
        return []
    try:
        region, ids = profile.region, list(profile.security_groups)
        subnets = aws.call("ec2", "describe_subnets", region, SubnetIds=list(profile.subnets))["Subnets"]
        groups = aws.call("ec2", "describe_security_groups", region, GroupIds=ids)["SecurityGroups"]
    except Refused as error:
        if "NotFound" not in error.code:
            raise
        return [Problem(f"the profile's network: {error.problems[0].why}")]
    vpcs = {item["VpcId"] for item in [*subnets, *groups]}
    if len(vpcs) != 1:
        return [Problem(f"subnets and security_groups belong to {len(vpcs)} VPCs: {', '.join(sorted(vpcs))}")]
    return []


def images(aws: Aws, profile: Profile, stack: str = stacks.DEFAULT) -> dict[str, str]:
    """Digests of `stack`: what was pushed from here, else the newest. Raises InvalidInput where one is missing."""
    if problems := check_images(aws, profile, stack):
        raise InvalidInput.of(problems)
    found = {}
    for key, repository in IMAGES.items():
        where = profile if key == "train_image" else profile.serving
        chosen = _chosen(aws, where, repository, stack)
        assert chosen is not None
        found[key] = f"{where.image(repository)}@{chosen['imageDigest']}"
    return found


def check_images(aws: Aws, profile: Profile, stack: str) -> list[Problem]:
    """Both are in the ECR of the region in which they run. Images on stand-ins are none: they have no Neuron."""
    problems = []
    for key, repository in IMAGES.items():
        where = profile if key == "train_image" else profile.serving
        if _chosen(aws, where, repository, stack) is None:
            hint = f"push it: harness push --region {where.region}"
            problems.append(Problem(f"no image of stack {stack} in {where.image(repository)}", hint=hint))
    return problems


def _chosen(aws: Aws, profile: Profile, repository: str, stack: str) -> dict[str, Any] | None:
    """What was pushed from here, else the newest: a colleague may push in between."""
    try:
        details = list(
            aws.pages(
                "ecr",
                "describe_images",
                "imageDetails",
                profile.region,
                registryId=profile.account,
                repositoryName=repository,
                filter={"tagStatus": "TAGGED"},
            )
        )
    except HarnessError as error:
        if is_missing(error):
            return None
        raise
    ours = [d for d in details if any(builds.is_for_aws(tag, stack) for tag in d["imageTags"])]
    by_digest = {d["imageDigest"]: d for d in ours}
    recorded = [
        by_digest[p.digest] for p in registry.pushed() if p.digest in by_digest and p.region == profile.region
    ]
    return recorded[-1] if recorded else max(ours, key=lambda d: d["imagePushedAt"], default=None)


def check_quotas(aws: Aws, profile: Profile, run: RunFile) -> list[Problem]:
    """The account may have as many instances as the run needs; new accounts have none of these types."""
    wanted = [
        (profile, run.compute.train_instance, "training job usage", run.compute.train_instance_count),
        (profile.serving, run.compute.serve_instance, "endpoint usage", 1),
    ]
    problems = []
    for where, instance, use, count in wanted:
        name = f"{instance} for {use}"
        quotas = aws.pages("service-quotas", "list_service_quotas", "Quotas", where.region, ServiceCode="sagemaker")
        value = next((q["Value"] for q in quotas if q["QuotaName"] == name), None)
        if value is not None and value < count:
            what = f"the quota {name!r} in {where.region} is {value:.0f}, the run needs {count}"
            problems.append(Problem(what, hint="ask for more in Service Quotas; it takes hours to days"))
    return problems
