"""The record, the local object store, the model archive: whole or not there, and nothing outside its directory."""

from __future__ import annotations

import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from containers import artifact
from containers.artifact import ArtifactError, Manifest
from harness import record as records
from harness.errors import NotFound
from harness.local.endpoints import container as hosting
from harness.local.jobs.runner import pack
from harness.local.store.objects import ObjectStore
from harness.record import Record


def test_a_record_is_found_by_id_by_its_beginning_and_as_the_newest(tmp_path: Path) -> None:
    run_file = tmp_path / "run.toml"
    run_file.write_text("")
    for day in (1, 2):
        run_id = records.new_id("b" if day == 1 else "a", datetime(2026, 1, day, tzinfo=UTC))
        records.create(run_id, run_file, {"run.json": "{}"})
    assert records.find(None).id.startswith("a-20260102")
    assert records.find("b").id.startswith("b-20260101")
    with pytest.raises(NotFound, match="no run c"):
        records.find("c")


def test_ids_fit_sagemakers_names() -> None:
    assert len(records.new_id("x" * 80)) <= 56  # the endpoint adds -tuned; 63 are allowed


def test_a_torn_ledger_line_is_left_out(tmp_path: Path) -> None:
    record = Record("r", tmp_path)
    record.note("create", name="a")
    with (tmp_path / "ledger.jsonl").open("a") as handle:
        handle.write('{"event": "cre')
    assert [line["name"] for line in record.ledger()] == ["a"]


def test_objects_come_back_as_they_were_put(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "s3")
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "a").write_text("1")
    (source / "deep" / "b").write_text("2")
    store.put_tree(source, "s3://bucket/prefix/")
    assert [key for key, _ in store.files("s3://bucket/prefix/")] == ["a", "deep/b"]
    assert store.download("s3://bucket/prefix/", tmp_path / "out") == 2
    assert (tmp_path / "out" / "deep" / "b").read_text() == "2"
    store.put_tree(source, "s3://bucket/prefix/")  # the same files again
    assert not list((tmp_path / "s3").rglob("*.partial"))
    (source / "a").unlink()
    (source / "a").write_text("new")
    store.put_file(source / "a", "s3://bucket/prefix/a")
    assert (tmp_path / "out" / "a").read_text() == "1"
    with pytest.raises(NotFound):
        store.download("s3://bucket/nothing/", tmp_path / "none")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab./\\\0s3:-", max_size=30))
def test_no_uri_leaves_the_store(tmp_path: Path, text: str) -> None:
    store = ObjectStore(tmp_path / "s3")
    for uri in (text, f"s3://{text}"):
        try:
            path = store.path(uri)
        except ValueError:
            continue
        assert (tmp_path / "s3") in path.resolve().parents


@pytest.mark.left_behind("half-written file", "success", "whoever writes it: renamed when it is whole")
def test_an_archive_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    target = tmp_path / "s3" / "model.tar.gz"
    pack(folder, target)
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["config.json"]
    before = target.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", full)
    with pytest.raises(OSError, match="No space"):
        pack(folder, target)
    assert target.read_bytes() == before
    assert [p.name for p in target.parent.iterdir()] == ["model.tar.gz"]


def test_model_data_is_read_only_and_stays_inside(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path / "s3")
    (tmp_path / "config.json").write_text("{}")
    store.put_file(tmp_path / "config.json", "s3://b/m/config.json")
    source = {"S3Uri": "s3://b/m/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    hosting.load_model_data(source, store, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").stat().st_mode & 0o222 == 0
    evil = store.path("s3://b/evil.tar.gz")
    with tarfile.open(evil, "w:gz") as tar:
        tar.add(tmp_path / "config.json", arcname="../../outside")
    source = {"S3Uri": "s3://b/evil.tar.gz", "S3DataType": "S3Object", "CompressionType": "Gzip"}
    with pytest.raises(tarfile.TarError):
        hosting.load_model_data(source, store, tmp_path / "deep" / "model")
    assert not (tmp_path / "outside").exists()


MANIFEST = Manifest("sdk2.20", "m", "cpu", "fp32", "0" * 64, {"torch": "2"}, {"loss": 1.0})


def test_a_manifest_comes_back_and_newer_ones_are_refused(tmp_path: Path) -> None:
    artifact.write_manifest(tmp_path, MANIFEST)
    assert artifact.read_manifest(tmp_path) == MANIFEST
    (tmp_path / "manifest.json").write_text('{"schema": 2}')
    with pytest.raises(ArtifactError, match="newer version"):
        artifact.read_manifest(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError) as error:
        artifact.read_manifest(tmp_path)
    assert "\n" not in str(error.value)
