"""Uploads: nothing twice, what broke off goes on, what is given up leaves nothing; and logs, each line once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.aws import transfer
from harness.aws.session import Aws
from harness.aws.transfer import Transfer
from harness.errors import NotFound, Refused
from harness.record import Record
from harness.sagemaker.logs import TRAINING_GROUP, LogFollower, Streams
from harness.spec.profile import Profile


class Counting(Aws):
    """Counts calls, and fails one on demand."""

    def __init__(self, profile: Profile) -> None:
        super().__init__(profile)
        self.calls: list[str] = []
        self.fail_at = ""

    def call(self, service: str, operation: str, region: str = "", **request: Any) -> Any:
        self.calls.append(operation)
        name = f"{operation} {request.get('PartNumber', '')}".strip()
        if name == self.fail_at:
            raise Refused("cut off")
        return super().call(service, operation, region, **request)


@pytest.fixture
def counting(profile: Profile) -> Counting:
    return Counting(profile)


def test_an_unchanged_file_is_not_sent_again(counting: Counting, record: Record, tmp_path: Path) -> None:
    (tmp_path / "d" / "deep").mkdir(parents=True)
    (tmp_path / "d" / "a").write_text("1")
    (tmp_path / "d" / "deep" / "b").write_text("22")
    sender = Transfer(counting, record)
    assert sender.upload(tmp_path / "d", "s3://a-bucket/p/") == 3
    assert sender.upload(tmp_path / "d", "s3://a-bucket/p/") == 0
    (tmp_path / "d" / "a").write_text("9")  # of the same size
    assert sender.upload(tmp_path / "d", "s3://a-bucket/p/") == 1
    sender.download("s3://a-bucket/p/deep/b", tmp_path / "back" / "b")
    assert (tmp_path / "back" / "b").read_text() == "22"
    assert counting.calls.count("put_object") == 3


@pytest.mark.left_behind(
    "upload in parts", ("success", "KILL"), "CompleteMultipartUpload; the next command goes on with it"
)
def test_a_large_upload_goes_on_where_it_broke_off(
    counting: Counting, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(transfer, "PART", part)
    monkeypatch.setattr(transfer, "THREADS", 1)
    big = tmp_path / "big"
    big.write_bytes(bytes(range(256)) * (3 * part // 256) + b"tail")
    counting.fail_at = "upload_part 4"
    with pytest.raises(Refused, match="cut off"):
        Transfer(counting, record).upload(big, "s3://a-bucket/m")
    assert Transfer(counting, record).head("s3://a-bucket/m/big") is None
    counting.calls, counting.fail_at = [], ""
    told: list[int] = []
    again = Transfer(counting, record, lambda label, done, total: told.append(done))  # as after a crash
    assert again.upload(big, "s3://a-bucket/m") == big.stat().st_size
    assert counting.calls.count("upload_part") == 1, "the others were there"
    assert told == [3 * part + 4]
    again.download("s3://a-bucket/m/big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert again.upload(big, "s3://a-bucket/m") == 0


def test_a_changed_file_starts_anew_and_what_is_given_up_is_gone(
    counting: Counting, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(transfer, "PART", part)
    big = tmp_path / "big"
    big.write_bytes(b"a" * (part + 1))
    counting.fail_at = "upload_part 2"
    sender = Transfer(counting, record)
    with pytest.raises(Refused):
        sender.upload(big, "s3://a-bucket/m")
    big.write_bytes(b"b" * (part + 1))
    with pytest.raises(Refused):
        sender.upload(big, "s3://a-bucket/m")
    uploads = counting.call("s3", "list_multipart_uploads", Bucket="a-bucket").get("Uploads", [])
    assert len(uploads) == 1, "the first one was given up"
    assert sender.abort_all() == ["s3://a-bucket/m/big"]
    assert not counting.call("s3", "list_multipart_uploads", Bucket="a-bucket").get("Uploads")
    assert sender.abort_all() == []


def test_an_artifact_is_copied_to_another_region_once(counting: Counting, record: Record, tmp_path: Path) -> None:
    where = {"LocationConstraint": "eu-west-1"}
    counting.call("s3", "create_bucket", "eu-west-1", Bucket="there", CreateBucketConfiguration=where)
    (tmp_path / "model.tar.gz").write_bytes(b"model")
    sender = Transfer(counting, record)
    sender.upload(tmp_path / "model.tar.gz", "s3://a-bucket/out")
    ends = ("s3://a-bucket/out/model.tar.gz", "s3://there/out/model.tar.gz", "us-west-2", "eu-west-1")
    assert sender.copy(*ends)
    assert not sender.copy(*ends)
    sender.download(ends[1], tmp_path / "back", "eu-west-1")
    assert (tmp_path / "back").read_bytes() == b"model"


@pytest.mark.parametrize("broken", ["upload_part_copy 2", "complete_multipart_upload"])
def test_a_copy_that_broke_off_goes_on_and_a_changed_artifact_begins_anew(
    counting: Counting, record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(transfer, "PART", part)
    monkeypatch.setattr(transfer, "THREADS", 1)
    where = {"LocationConstraint": "eu-west-1"}
    counting.call("s3", "create_bucket", "eu-west-1", Bucket="there", CreateBucketConfiguration=where)
    ends = ("s3://a-bucket/out/m", "s3://there/out/m", "us-west-2", "eu-west-1")
    (tmp_path / "m").write_bytes(b"a" * part + b"b" * part + b"tail")
    Transfer(counting, record).upload(tmp_path / "m", "s3://a-bucket/out")
    counting.fail_at = broken
    with pytest.raises(Refused, match="cut off"):
        Transfer(counting, record).copy(*ends)
    assert Transfer(counting, record).head(ends[1], "eu-west-1") is None, "whole or not there"
    counting.calls, counting.fail_at = [], ""
    again = Transfer(counting, record)
    assert again.copy(*ends)
    assert counting.calls.count("upload_part_copy") <= (2 if broken.startswith("upload") else 0), "part 1 was there"
    again.download(ends[1], tmp_path / "back", "eu-west-1")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m").read_bytes()
    assert not again.copy(*ends), "unchanged"
    (tmp_path / "m").write_bytes(b"c" * (2 * part + 4))  # of the same size
    again.upload(tmp_path / "m", "s3://a-bucket/out")
    assert again.copy(*ends)
    again.download(ends[1], tmp_path / "back", "eu-west-1")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "m").read_bytes()
    with pytest.raises(NotFound, match="there is no s3://a-bucket/gone"):
        again.copy("s3://a-bucket/gone", *ends[1:])


def test_objects_are_encrypted_with_the_profiles_key(profile: Profile, record: Record, tmp_path: Path) -> None:
    keys = [Aws(profile).call("kms", "create_key", r)["KeyMetadata"]["Arn"] for r in ("us-west-2", "eu-west-1")]
    where = {"LocationConstraint": "eu-west-1"}
    Aws(profile).call("s3", "create_bucket", "eu-west-1", Bucket="there", CreateBucketConfiguration=where)
    (tmp_path / "a").write_text("1")
    there = {"serve_region": "eu-west-1", "serve_bucket": "there", "serve_kms_key": keys[1]}
    sender = Transfer(Aws(replace(profile, kms_key=keys[0], **there)), record)
    sender.upload(tmp_path / "a", "s3://a-bucket/k")
    sender.copy("s3://a-bucket/k/a", "s3://there/k/a", "us-west-2", "eu-west-1")
    for uri, region, key in (
        ("s3://a-bucket/k/a", "us-west-2", keys[0]),
        ("s3://there/k/a", "eu-west-1", keys[1]),
    ):
        head = sender.head(uri, region)
        assert head is not None
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", key)


# -- logs ----------------------------------------------------------------------------------------------------------
def put(aws: Aws, stream: str, *lines: str) -> None:
    import time

    events = [{"timestamp": int(time.time() * 1000), "message": line} for line in lines]
    aws.call("logs", "put_log_events", logGroupName=TRAINING_GROUP, logStreamName=stream, logEvents=events)


def test_a_log_is_followed_and_taken_up_again_each_line_once(aws: Aws, record: Record) -> None:
    follower = LogFollower(aws, record, "job", "us-west-2")
    assert follower.pump() == 0, "no group yet"
    aws.call("logs", "create_log_group", logGroupName=TRAINING_GROUP)
    for stream in ("job/algo-1-1", "job/algo-2-1", "job-r2/algo-1-1"):
        aws.call("logs", "create_log_stream", logGroupName=TRAINING_GROUP, logStreamName=stream)
    put(aws, "job/algo-1-1", "a", "b")
    put(aws, "job/algo-2-1", "c")
    put(aws, "job-r2/algo-1-1", "of another job")
    assert follower.pump() == 3
    with record.log.open("a") as log:
        log.write("d\n")  # killed between the line and the note of the position
    put(aws, "job/algo-1-1", "d")
    again = LogFollower(aws, record, "job", "us-west-2")
    assert again.pump() == 1
    assert again.pump() == 0
    assert record.log.read_text() == "a\nb\nc\nd\n"
    assert Streams(aws, TRAINING_GROUP, "job/", "us-west-2").new() == ["a", "b", "d", "c"]
    LogFollower(aws, record, "job-r2", "us-west-2").pump()
    assert record.log.read_text() == "a\nb\nc\nd\nof another job\n", "the next attempt's log comes behind"
