"""Where requests go and as whom. A run file never says; a profile does.

`harness init` writes it to $XDG_CONFIG_HOME/neuron-harness/profile.toml. A variable NEURON_HARNESS_<KEY> overrides a
key of the file; flags override both.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness import files
from harness.errors import InvalidInput, MissingPrerequisite, Problem, did_you_mean

PREFIX = "NEURON_HARNESS_"


@dataclass(frozen=True)
class Profile:
    """One account, role and bucket, and what an organisation wants on every request."""

    account: str
    region: str
    """Where jobs run."""
    role_arn: str
    """What SageMaker runs containers as."""
    bucket: str
    serve_region: str = ""
    """Where endpoints run, if elsewhere: the artifact is copied there."""
    serve_bucket: str = ""
    serve_subnets: tuple[str, ...] = ()
    serve_security_groups: tuple[str, ...] = ()
    serve_kms_key: str = ""
    """Networks and keys belong to one region, so endpoints elsewhere have their own."""
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    kms_key: str = ""
    """ARN of the key for objects and volumes."""
    permissions_boundary: str = ""
    """ARN; only for the role that `harness init --create` makes."""
    expiry_role_arn: str = ""
    """What EventBridge Scheduler deletes endpoints as, at their expiry. Empty: nothing ends an endpoint by itself."""
    aws_profile: str = ""
    """Section of ~/.aws/config; the standard chain where empty."""
    endpoint_hours: int = 8
    """After how long `harness down --expired` takes an endpoint down: a working day."""
    tags: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Variable -> ARN of a secret. A training container is told the ARN, as <VARIABLE>_SECRET_ARN."""
    endpoint_url: str = ""
    """A local SageMaker; never from a file."""
    access_key: tuple[str, ...] = ()
    """Id and secret of a local SageMaker's key pair; never from a file, never in a record."""
    objects_in_s3: bool = False
    """Of a local SageMaker: its objects are in AWS's S3, in this account; never from a file."""

    def image(self, name: str) -> str:
        """The repository of one of our images in this account's ECR, without tag or digest."""
        return f"{self.account}.dkr.ecr.{self.region}.amazonaws.com/{name}"

    @property
    def serving(self) -> Profile:
        """This profile as endpoints see it: their region, with bucket, network and key of that region."""
        if not self.serve_region or self.serve_region == self.region:
            return self
        there: dict[str, Any] = {}
        for name in ("region", "bucket", "subnets", "security_groups", "kms_key"):
            value = getattr(self, f"serve_{name}")
            there |= {name: value, f"serve_{name}": type(value)()}
        return replace(self, **there)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(raw: dict[str, Any]) -> Profile:
    """Read what to_json wrote."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Profile(**values)


LOCAL = Profile(
    account="000000000000",
    region="us-west-2",  # the lab's region
    role_arn="arn:aws:iam::000000000000:role/local",
    bucket="local",
    expiry_role_arn="arn:aws:iam::000000000000:role/local-expiry",
)

# [api] botocore's sagemaker model, ECR's and S3's rules for names; a partition is aws, aws-cn, aws-us-gov.
PATTERNS = {
    "account": (r"\d{12}", "twelve digits"),
    "region": (r"[a-z]{2}(-[a-z]+)+-\d", "a region such as us-west-2"),
    "serve_region": (r"([a-z]{2}(-[a-z]+)+-\d)?", "a region such as us-west-2"),
    "role_arn": (r"arn:aws[a-z-]*:iam::\d{12}:role/.+", "the ARN of a role"),
    "expiry_role_arn": (r"(arn:aws[a-z-]*:iam::\d{12}:role/.+)?", "the ARN of a role"),
    "bucket": (r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", "a bucket's name, without s3://"),
    "serve_bucket": (r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])?", "a bucket's name, without s3://"),
    "kms_key": (r"(arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/.+)?", "the ARN of a key"),
    "serve_kms_key": (r"(arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:(key|alias)/.+)?", "the ARN of a key"),
    "permissions_boundary": (r"(arn:aws[a-z-]*:iam::(aws|\d{12}):policy/.+)?", "the ARN of a policy"),
    "aws_profile": (r"[^\n]*", "a section of ~/.aws/config"),
}
LISTS = ("subnets", "security_groups", "serve_subnets", "serve_security_groups")
SECRET_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:\d{12}:secret:.+")
NOT_FROM_A_FILE = ("endpoint_url", "access_key", "objects_in_s3")


def path() -> Path:
    """Where the profile is."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "neuron-harness" / "profile.toml"


def is_there() -> bool:
    """Whether a profile was written, or the environment says one."""
    return path().is_file() or any(os.environ.get(PREFIX + f.name.upper()) for f in fields(Profile))


def load(file: Path | None = None, **flags: str) -> Profile:
    """The profile of `file` (path() if None), overridden by the environment, then by `flags` that are not empty.

    Raises MissingPrerequisite where nothing says the account, InvalidInput with every key that does not fit.
    """
    file = file or path()
    raw: dict[str, Any] = {}
    if file.is_file():
        try:
            raw = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{file}: not TOML", str(error)) from None
    known = [f.name for f in fields(Profile) if f.name not in NOT_FROM_A_FILE]
    unknown = [k for k in raw if k not in known]
    raw |= {k: _of_text(k, v) for k in known if (v := os.environ.get(PREFIX + k.upper()))}
    raw |= {k: _of_text(k, v) for k, v in flags.items() if v}
    if not raw:
        raise MissingPrerequisite("there is no AWS profile", f"looked for {file}", "write one: harness init")
    problems = [Problem(f"{file}: {k} is not known", hint=did_you_mean(k, known)) for k in unknown]
    raw = {k: v for k, v in raw.items() if k in known}
    problems += [Problem(f"{file}: {text}") for text in check(raw)]
    if problems:
        raise InvalidInput.of(problems)
    return from_json(raw)


def _of_text(key: str, value: str) -> Any:
    """A variable or flag as the file would say it: lists by commas, tables as NAME=value by commas."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if key in LISTS:
        return parts
    if key in ("tags", "secrets"):
        return {name: text for name, _, text in (part.partition("=") for part in parts)}
    return int(value) if key == "endpoint_hours" and value.isdigit() else value


def check(raw: Mapping[str, Any]) -> list[str]:
    """What does not fit, one line each."""
    found = [f"{k} is missing" for k in ("account", "region", "role_arn", "bucket") if not raw.get(k)]
    for key, (pattern, what) in PATTERNS.items():
        value = raw.get(key, "")
        if value != "" and not (isinstance(value, str) and re.fullmatch(pattern, value)):
            found.append(f"{key} = {value!r} is not {what}")
    for key in LISTS:
        value = raw.get(key, [])
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            found.append(f"{key} = {value!r} is not a list of ids")
    if bool(raw.get("subnets")) != bool(raw.get("security_groups")):
        found.append("subnets and security_groups go together: a VPC needs both")
    for key in ("tags", "secrets"):
        value = raw.get(key, {})
        if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
            found.append(f"{key} must be a table of texts")
        elif key == "secrets":
            # What is pasted here in the clear would end in every request: its text is not repeated.
            found += [f"secrets.{k} is not the ARN of a secret" for k, v in value.items() if not SECRET_ARN.match(v)]
    hours = raw.get("endpoint_hours", 8)
    if not isinstance(hours, int) or isinstance(hours, bool) or hours < 1:
        found.append(f"endpoint_hours = {hours!r}: must be a whole number of hours, at least 1")
    return found + _check_regions(raw)


def _check_regions(raw: Mapping[str, Any]) -> list[str]:
    """Buckets, networks and keys are of the region that uses them."""
    found = []
    region, serve_region = raw.get("region"), raw.get("serve_region") or raw.get("region")
    for key, wanted in (("kms_key", region), ("serve_kms_key", serve_region)):
        parts = str(raw.get(key, "")).split(":")
        if len(parts) > 5 and parts[3] != wanted:
            found.append(f"{key} is a key of {parts[3]}, not of {wanted}")
    if bool(raw.get("serve_subnets")) != bool(raw.get("serve_security_groups")):
        found.append("serve_subnets and serve_security_groups go together: a VPC needs both")
    if serve_region == region:
        return found
    if not raw.get("serve_bucket"):
        found.append("serve_bucket is missing: an endpoint reads its model from a bucket of its own region")
    for key, what in (("kms_key", "keys"), ("subnets", "subnets")):
        if raw.get(key) and not raw.get(f"serve_{key}"):
            found.append(f"serve_{key} is missing: {what} of {region} cannot be used in {serve_region}")
    return found


def save(profile: Profile, file: Path | None = None) -> Path:
    """Write the profile: whole or not at all, readable by its owner alone."""
    file = file or path()
    plain, tables = [], []
    for item in fields(Profile):
        value = getattr(profile, item.name)
        if item.name in NOT_FROM_A_FILE or value in ("", (), {}):
            continue
        if isinstance(value, Mapping):
            rows = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items()]
            tables.append("\n".join([f"\n[{item.name}]", *rows]))
        else:
            plain.append(f"{item.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    return files.write_text(file, "\n".join(plain + tables) + "\n", mode=0o600)
