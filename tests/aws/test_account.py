"""What is asked of an account before anything costs, against moto; and what its refusals become."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from harness.aws.session import Aws
from harness.errors import HarnessError, InvalidInput, MissingPrerequisite, Refused
from harness.images import registry
from harness.sagemaker import account as setup, preflight
from harness.spec import profile as profiles
from harness.spec.profile import Profile
from harness.spec.runfile import RunFile

RUN = RunFile.model_validate({"name": "x", "model": {"id": "a/b"}, "data": {"id": "c/d"}})


def test_what_create_makes_passes_the_checks(aws: Aws, profile: Profile) -> None:
    said: list[str] = []
    preflight.check(aws, profile, RUN, said.append)
    assert said == []
    setup.create(aws, profile, said.append)
    assert said == [], "nothing is made twice"
    policy = aws.call("iam", "get_role_policy", RoleName="neuron-harness", PolicyName="neuron-harness")
    assert "arn:aws:s3:::a-bucket/*" in json.dumps(policy["PolicyDocument"])
    block = aws.call("s3", "get_public_access_block", Bucket="a-bucket")["PublicAccessBlockConfiguration"]
    assert all(block.values())


def test_every_problem_of_an_account_is_told_at_once(aws: Aws, profile: Profile) -> None:
    trust = {
        "Statement": {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}
    }
    aws.call("iam", "create_role", RoleName="for-ec2", AssumeRolePolicyDocument=json.dumps(trust))
    wrong = replace(
        profile,
        role_arn=profile.role_arn.replace("neuron-harness", "for-ec2"),
        bucket="no-such-bucket",
        kms_key=f"arn:aws:kms:us-west-2:{profile.account}:key/00000000-0000-0000-0000-000000000000",
        subnets=("subnet-00000000",),
        security_groups=("sg-00000000",),
    )
    with pytest.raises(InvalidInput) as error:
        preflight.check(Aws(wrong), wrong, RUN, print)
    found = [p.what for p in error.value.problems]
    assert len(found) == 4
    for text in ("SageMaker cannot assume", "no bucket no-such-bucket", "no key arn:", "subnet-00000000"):
        assert any(text in what for what in found), (text, found)


def test_a_bucket_of_another_region_is_refused(aws: Aws, profile: Profile) -> None:
    where = {"LocationConstraint": "eu-west-1"}
    aws.call("s3", "create_bucket", "eu-west-1", Bucket="far-away", CreateBucketConfiguration=where)
    (problem,) = preflight.check_bucket(aws, replace(profile, bucket="far-away"))
    assert problem.what == "bucket far-away is in eu-west-1, not in us-west-2"


def test_another_account_than_the_profiles(aws: Aws, profile: Profile) -> None:
    other = replace(profile, account="999999999999")
    with pytest.raises(InvalidInput, match="for account 999999999999, not 123456789012"):
        preflight.check(Aws(other), other, RUN, print)


REPOSITORY = "123456789012.dkr.ecr.us-west-2.amazonaws.com"


@pytest.fixture
def in_ecr(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tags put into it are images of both repositories, each newer than the last (moto's digests are all one)."""
    tags: list[str] = []

    def pages(service: str, operation: str, key: str, *_: str, **request: Any) -> list[dict[str, Any]]:
        assert (service, operation, key) == ("ecr", "describe_images", "imageDetails")
        name = request["repositoryName"]
        return [
            {"imageTags": [tag], "imagePushedAt": at, "imageDigest": f"sha256:{name}-{tag}"}
            for at, tag in enumerate(tags)
        ]

    monkeypatch.setattr(aws, "pages", pages)
    return tags


def digests(aws: Aws, profile: Profile) -> list[str]:
    """What preflight chooses; the hints where it refuses."""
    try:
        found = preflight.images(aws, profile)
    except InvalidInput as error:
        return [p.hint for p in error.problems]
    assert list(found) == ["train_image", "serve_image"]
    return [uri.replace(f"{REPOSITORY}/", "") for uri in found.values()]


def test_without_a_repository_the_push_is_named(aws: Aws, profile: Profile) -> None:
    assert digests(aws, profile) == ["push it: harness push --region us-west-2"] * 2


def test_images_are_taken_by_digest_the_newest_of_the_stack(aws: Aws, profile: Profile, in_ecr: list[str]) -> None:
    in_ecr += ["sdk2.20-cpu-gaaa", "sdk2.99-gaaa"]  # on stand-ins, and of another stack
    assert digests(aws, profile) == ["push it: harness push --region us-west-2"] * 2
    in_ecr += ["sdk2.20-gaaa", "sdk2.20-c123", "sdk2.20-cpu-gbbb"]
    assert digests(aws, profile) == [f"{n}@sha256:{n}-sdk2.20-c123" for n in ("neuron-train", "neuron-serve")]


def test_what_was_pushed_from_here_goes_before_what_is_newer(aws: Aws, profile: Profile, in_ecr: list[str]) -> None:
    in_ecr += ["sdk2.20-gmine", "sdk2.20-gtheirs"]
    for region, tag in (("us-west-2", "sdk2.20-gmine"), ("eu-west-1", "sdk2.20-gtheirs")):
        for role in ("train", "serve"):
            name = f"{region}/neuron-{role}:{tag}"
            registry.record(registry.Pushed("sdk2.20", role, region, name, f"sha256:neuron-{role}-{tag}", "now"))
    assert digests(aws, profile) == [f"{n}@sha256:{n}-sdk2.20-gmine" for n in ("neuron-train", "neuron-serve")]
    in_ecr.remove("sdk2.20-gmine")  # deleted there since
    assert digests(aws, profile) == [f"{n}@sha256:{n}-sdk2.20-gtheirs" for n in ("neuron-train", "neuron-serve")]


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        ("ExpiredToken", "the AWS credentials have expired or are not valid", "aws sso login"),
        ("AccessDeniedException", "sagemaker create_model in us-west-2: access denied", "docs/aws.md"),
        ("ResourceLimitExceeded", "a quota of the account is used up", "Service Quotas"),
        ("ThrottlingException", "AWS throttles this account", "goes on where it was"),
        ("ValidationException", "AWS refuses sagemaker create_model in us-west-2: ValidationException", ""),
    ],
)
def test_a_refusal_says_what_why_and_what_now(code: str, said: str, hint: str) -> None:
    from botocore.exceptions import ClientError

    from harness.aws.errors import refusal

    error = refusal(
        ClientError({"Error": {"Code": code, "Message": "because"}}, "CreateModel"),
        "sagemaker",
        "create_model",
        "us-west-2",
    )
    assert isinstance(error, Refused)
    (problem,) = error.problems
    assert said in problem.what
    assert problem.why == "because"
    assert hint in problem.hint
    assert error.exit_code == 10


def test_without_credentials_the_remedy_is_told(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(Refused, match="no AWS credentials") as error:
        Aws(replace(profile, endpoint_url="")).call("sts", "get_caller_identity")
    assert "aws sso login" in error.value.problems[0].hint
    with pytest.raises(Refused, match=r"profile \(nobody\) could not be found"):
        Aws(replace(profile, endpoint_url="", aws_profile="nobody")).call("sts", "get_caller_identity")


def test_who_is_not_there_is_said(profile: Profile) -> None:
    nobody = replace(profile, endpoint_url="http://127.0.0.1:9")
    with pytest.raises(Refused, match="no answer to sts get_caller_identity"):
        Aws(nobody).call("sts", "get_caller_identity")


# -- the profile ---------------------------------------------------------------------------------------------------
GOOD: dict[str, Any] = {
    "account": "123456789012",
    "region": "us-west-2",
    "role_arn": "arn:aws:iam::123456789012:role/x",
    "bucket": "b-1",
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "neuron-harness" / "profile.toml"


def test_a_profile_comes_back_as_it_was_saved(home: Path) -> None:
    made = Profile(
        **GOOD,
        subnets=("subnet-1",),
        security_groups=("sg-1", "sg-2"),
        tags={"cost centre": 'a "b"'},
        secrets={"HF_TOKEN": "arn:aws:secretsmanager:us-west-2:123456789012:secret:hf-x"},
        endpoint_hours=2,
    )
    assert profiles.save(made) == home
    assert home.stat().st_mode & 0o077 == 0
    assert profiles.load() == made
    assert profiles.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_environment_and_flags_override_the_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles.save(Profile(**GOOD))
    monkeypatch.setenv("NEURON_HARNESS_BUCKET", "from-environment")
    monkeypatch.setenv("NEURON_HARNESS_SUBNETS", "subnet-1, subnet-2")
    monkeypatch.setenv("NEURON_HARNESS_SECURITY_GROUPS", "sg-1")
    monkeypatch.setenv("NEURON_HARNESS_TAGS", "team=ml,cost=7")
    found = profiles.load(region="us-east-1", account="")
    assert (found.bucket, found.region, found.account) == ("from-environment", "us-east-1", "123456789012")
    assert found.subnets == ("subnet-1", "subnet-2")
    assert found.tags == {"team": "ml", "cost": "7"}


def test_no_profile_and_a_wrong_one(home: Path) -> None:
    with pytest.raises(MissingPrerequisite) as missing:
        profiles.load()
    assert missing.value.problems[0].hint == "write one: harness init"
    home.parent.mkdir(parents=True)
    home.write_text(
        'account = "12"\nregion = "west"\nbuckt = "b"\nrole_arn = "arn:aws:iam::123456789012:role/x"\n'
        'subnets = ["s"]\nserve_region = "eu-west-1"\nendpoint_hours = 0\n[secrets]\nHF_TOKEN = "hf_secret"\n'
    )
    with pytest.raises(InvalidInput) as error:
        profiles.load()
    lines = [p.what.split(": ", 1)[1] for p in error.value.problems]
    assert lines[0] == "buckt is not known"
    assert error.value.problems[0].hint == 'did you mean "bucket"?'
    for text in ("bucket is missing", "twelve digits", "a region such as", "go together", "serve_bucket is missing"):
        assert any(text in line for line in lines), text
    assert "secrets.HF_TOKEN is not the ARN of a secret" in lines
    assert "hf_secret" not in str(lines), "a secret is not repeated"
    assert len(lines) == 9


def test_an_endpoint_url_does_not_come_from_a_file(home: Path) -> None:
    home.parent.mkdir(parents=True)
    home.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in GOOD.items()) + '\nendpoint_url = "http://x"\n')
    with pytest.raises(HarnessError, match="endpoint_url is not known"):
        profiles.load()


def test_init_asks_aws_for_the_account(home: Path, moto_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    found = setup.propose(None, {"region": "eu-west-1"})
    assert found.account == "123456789012"
    assert found.bucket == "neuron-harness-123456789012-eu-west-1"
    profiles.save(found)
    assert setup.propose(None, {"bucket": "other"}).bucket == "other"


def test_the_profile_in_the_docs_is_one(root: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", (root / "docs" / "aws.md").read_text(), re.MULTILINE | re.DOTALL)
    raw = tomllib.loads(block)
    assert profiles.check(raw) == []
    assert set(raw) == {f.name for f in fields(Profile)} - set(profiles.NOT_FROM_A_FILE), "every key is there"


def test_what_belongs_to_one_region_is_not_used_in_another() -> None:
    key = "arn:aws:kms:{}:123456789012:key/k"
    raw = {
        "account": "123456789012",
        "region": "us-west-2",
        "role_arn": "arn:aws:iam::123456789012:role/r",
        "bucket": "here",
        "kms_key": key.format("us-west-2"),
        "subnets": ["subnet-1"],
        "security_groups": ["sg-1"],
    }
    assert profiles.check(raw) == []
    elsewhere = {**raw, "serve_region": "us-east-2", "serve_bucket": "there"}
    assert profiles.check(elsewhere) == [
        "serve_kms_key is missing: keys of us-west-2 cannot be used in us-east-2",
        "serve_subnets is missing: subnets of us-west-2 cannot be used in us-east-2",
    ]
    assert profiles.check({**raw, "kms_key": key.format("eu-west-1")}) == [
        "kms_key is a key of eu-west-1, not of us-west-2"
    ]
    own = {"serve_kms_key": key.format("us-east-2"), "serve_subnets": ["subnet-2"], "serve_security_groups": ["sg-2"]}
    assert profiles.check({**elsewhere, **own}) == []
    serving = profiles.from_json({**elsewhere, **own}).serving
    assert (serving.region, serving.bucket, serving.kms_key) == ("us-east-2", "there", key.format("us-east-2"))
    assert (serving.subnets, serving.security_groups) == (("subnet-2",), ("sg-2",))
    assert serving.serving is serving
