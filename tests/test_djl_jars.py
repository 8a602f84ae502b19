"""What ensure() says when it cannot make the launcher: one error with the reason, and nothing half done."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.assets import djl
from harness.errors import MissingPrerequisite

JAR = {"group": "org.example", "artifact": "thing", "version": "1.0", "classifier": ""}
CONTENT = b"not really a jar"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository on loopback with one jar in it; the caller breaks what it wants broken."""
    root = tmp_path / "repository"
    folder = root / "org/example/thing/1.0"
    folder.mkdir(parents=True)
    (folder / "thing-1.0.jar").write_bytes(CONTENT)
    (folder / "thing-1.0.jar.sha1").write_text(hashlib.sha1(CONTENT).hexdigest())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("MAVEN_MIRROR_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield folder
        server.shutdown()
        thread.join()


def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    entry = JAR | {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tmp_path / "lock.json").write_text(json.dumps({"jars": [entry]}))
    monkeypatch.setattr(djl, "LOCK", tmp_path / "lock.json")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("DJL_SERVING", raising=False)


def test_a_jar_is_downloaded_once(tmp_path, monkeypatch, mirror):
    lock(tmp_path, monkeypatch, CONTENT)
    monkeypatch.setattr(djl, "_build", lambda java, jars, folder, built: built.mkdir())
    said: list[str] = []
    first = djl.ensure(tmp_path, said.append)
    (mirror / "thing-1.0.jar").unlink()
    assert djl.ensure(tmp_path, said.append) == first
    assert [line.split()[0] for line in said] == ["downloading", "compiling"]
    assert (tmp_path / "djl" / djl.VERSION / "thing-1.0.jar").read_bytes() == CONTENT


def test_another_file_than_the_locked_one_is_refused(tmp_path, monkeypatch, mirror):
    lock(tmp_path, monkeypatch, b"what was locked")
    with pytest.raises(MissingPrerequisite, match=r"thing-1\.0\.jar is another file than the one in locks"):
        djl.ensure(tmp_path, lambda _: None)
    assert [path.name for path in (tmp_path / "djl" / djl.VERSION).iterdir()] == ["lock"]


def test_a_jar_that_the_repository_lacks(tmp_path, monkeypatch, mirror):
    lock(tmp_path, monkeypatch, CONTENT)
    (mirror / "thing-1.0.jar").unlink()
    with pytest.raises(MissingPrerequisite, match="could not be downloaded"):
        djl.ensure(tmp_path, lambda _: None)


def test_no_network(tmp_path, monkeypatch):
    lock(tmp_path, monkeypatch, CONTENT)
    monkeypatch.setenv("MAVEN_MIRROR_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(MissingPrerequisite, match="could not be downloaded") as error:
        djl.ensure(tmp_path, lambda _: None)
    assert "MAVEN_MIRROR_URL" in error.value.problems[0].hint


def test_java_home_is_used_or_refused(tmp_path, monkeypatch):
    home = tmp_path / "java"
    monkeypatch.setenv("JAVA_HOME", str(home))
    with pytest.raises(MissingPrerequisite, match="is not a Java installation"):
        djl.java_home()
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch(mode=0o755)
    (home / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="11.0.2"\n')
    with pytest.raises(MissingPrerequisite, match="is Java 11"):
        djl.java_home()
    (home / "release").write_text('JAVA_VERSION="17"\n')
    assert djl.java_home() == home
    monkeypatch.delenv("JAVA_HOME")
    assert (djl.java_home() / "bin" / "java").exists()


def test_a_launcher_of_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("DJL_SERVING", str(tmp_path / "djl-serving"))
    with pytest.raises(MissingPrerequisite, match="is not an executable"):
        djl.ensure(tmp_path, lambda _: None)
    (tmp_path / "djl-serving").touch(mode=0o755)
    assert djl.ensure(tmp_path, lambda _: None) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["djl-serving"]
