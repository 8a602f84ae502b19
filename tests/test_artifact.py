"""What comes out of a model.tar.gz, on a Python with extraction filters and on one without (Debian 12's)."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from containers.artifact import ArtifactError, opened, unpack

MODEL = ("config.json", "model.safetensors", "tokenizer.json", "compiled/graph.neff")


def archive(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = 5 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"bytes") if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.uid, made.mode = kind, link, 4711, 0o4777
    return made


@pytest.fixture(params=["with filters", "without"])
def _python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        plain = tarfile.TarFile.extractall

        def extractall(self: tarfile.TarFile, path: str = ".", members: None = None) -> None:
            plain(self, path, members)  # as 3.11.2 has it: no `filter`

        monkeypatch.delattr(tarfile, "data_filter", raising=False)  # Debian 12's Python has none to begin with
        monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)


@pytest.mark.usefixtures("_python")
def test_a_channel_with_an_archive_is_its_content(tmp_path: Path) -> None:
    archive(tmp_path / "model.tar.gz", member(".", tarfile.DIRTYPE), *map(member, MODEL))
    folder = opened(tmp_path)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(MODEL)
    for name in MODEL:
        assert (folder / name).read_bytes() == b"bytes"
        assert not (folder / name).stat().st_mode & 0o4000


@pytest.mark.usefixtures("_python")
@pytest.mark.parametrize(
    "bad",
    [
        member("../beside"),
        member("a/../../beside"),
        member("link", tarfile.SYMTYPE, "../beside"),
        member("link", tarfile.LNKTYPE, "../beside"),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda bad: f"{bad.name}{bad.linkname}",
)
def test_nothing_gets_out_of_the_directory(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    (tmp_path / "in").mkdir()
    made = archive(tmp_path / "model.tar.gz", bad)
    with tarfile.open(made) as tar, pytest.raises(tarfile.TarError):
        unpack(tar, tmp_path / "in")
    assert not (tmp_path / "beside").exists()
    assert list((tmp_path / "in").iterdir()) == []
    with pytest.raises(ArtifactError, match="cannot be unpacked"):
        opened(tmp_path)
