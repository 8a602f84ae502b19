"""Several versions of the packages: fetched by hash, read and never imported; what each lacks is declared.

versions.toml says for each version which of our names it does not have and what replaced them. The wheels and jars
are those of locks/conformance.json; docs/reference/versions.md is made from versions.toml.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from harness.assets import djl, packages as fetch
from harness.assets.packages import Package
from harness.paths import CACHE, PRODUCT as ROOT
from harness.spec import plan as plans
from tests.conformance import uses
from tests.conformance.operations import Models, calls
from tests.conformance.source import Tree
from tests.conformance.test_conformance import ELSEWHERE, USES, misfit
from tests.conformance.test_versions import on_neuron
from tests.conformance.uses import Use

DECLARED = ROOT / "tests" / "conformance" / "versions.toml"
LOCK = ROOT / "locks" / "conformance.json"
# torch is not among what is read: these its Module has.
OF_TORCH = {
    f"transformers.PreTrainedModel.{name}"
    for name in ("__call__", "state_dict", "load_state_dict", "parameters", "named_parameters", "named_buffers")
}

HEAD = """# Which versions our code fits

Made by `make generated` from tests/conformance/versions.toml, which `make test-neuron` holds against the source of
each version (wheels and jars by hash, locks/conformance.json; read, not run). A version that has every name and
keyword may still behave otherwise: only the pinned ones are run. In parentheses: what was read with it, because its
classes inherit from there. optimum-neuron is held against train/, transformers against train/ and serve/ (4.45.2:
serve/), djl_python against serve/, boto3 against harness/: its names, every operation that is called, every request
to SageMaker.

| version | pinned by | fits |
|---|---|---|""".splitlines()


@dataclass(frozen=True)
class Version:
    """One version with what is read beside it, because its classes inherit from there."""

    title: str
    files: tuple[str, ...]
    """name==version of wheels; djl_python==version for DJL's jar."""
    folders: tuple[str, ...]
    """Parts of our code that have this package in their environment."""
    pinned: str = ""
    """Where it is the pinned one."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """What does not fit -> what replaced it, or why it does not matter."""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Name -> where its class has it in this version; must exist there."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that are looked at, as our code imports them."""
        name = self.title.split()[0]
        return {"optimum-neuron": ("optimum",), "boto3": ("boto3", "botocore")}.get(name, (name,))


def declared() -> list[Version]:
    """The versions of versions.toml."""
    raw = tomllib.loads(DECLARED.read_text(encoding="utf-8"))
    return [
        Version(title, **{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        for title, entry in raw.items()
    ]


def file_of(name: str) -> Path:
    """A wheel or jar of the lock in the cache, downloaded once and checked against its hash."""
    package, _, version = name.partition("==")
    lock = json.loads(LOCK.read_text(encoding="utf-8"))
    if package != "djl_python":
        (entry,) = [w for w in lock["wheels"] if (w["name"], w["version"]) == (package, version)]
        return fetch.wheel(Package(**entry), CACHE, lambda text: print(text, flush=True))
    jars = [*lock["jars"], *json.loads(djl.LOCK.read_text(encoding="utf-8"))["jars"]]
    (found,) = [j for j in jars if j["group"] == "ai.djl.python" and j["version"] == version]
    jar, folder = djl.Jar(**found), CACHE / "djl" / version
    if not (folder / jar.file).exists():
        folder.mkdir(parents=True, exist_ok=True)
        djl.download(jar, folder)
    return folder / jar.file


def fetch_all() -> None:
    """Everything that is not in the cache yet, four at a time: 130 MB."""
    names = sorted({name for version in declared() for name in version.files})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(file_of, names))


def uses_of(version: Version) -> Iterator[Use]:
    """What our code uses of the version's packages, on both devices."""
    for use in USES:
        if use.file.partition("/")[0] in version.folders:
            for one in (use, on_neuron(use)):
                if one is not None and uses.root(one.name[0]) in version.packages:
                    yield one


def lacks(version: Version) -> set[str]:
    """What our code uses and this version does not have."""
    files = [file_of(name) for name in version.files]
    source, elsewhere = Tree(*files), {**ELSEWHERE, **version.elsewhere}
    looked_at = list(uses_of(version))
    assert looked_at, f"our code uses nothing of {version.title}"
    found = {text for use in looked_at if (text := misfit(source, use, elsewhere)) is not None}
    found -= {f"{name} does not exist" for name in OF_TORCH}
    if "botocore" in version.packages:
        models = Models(next(f for f in files if f.name.startswith("botocore")))
        found |= {text for call in calls() for text in models.misfits(call)}
        found |= {text for operation, request in sent() for text in models.refused(operation, request)}
    return found


def sent() -> Iterator[tuple[str, dict[str, object]]]:
    """The requests to SageMaker that a run and `harness verify` send, placeholders filled with examples."""
    from harness.verify import jobs as verify_jobs, verification as verify

    for operation, request in verify.planned("neuron").requests():
        yield operation, plans.resolve(request, verify_jobs.PLACEHOLDERS)


def verdict(found: set[str], version: Version) -> list[str]:
    """Where what was found is not what versions.toml declares: a name that went, or one that is there after all."""
    news = [f"not declared: {text}" for text in sorted(found - version.missing.keys())]
    return news + [f"declared and not so: {text}" for text in sorted(version.missing.keys() - found)]


def page() -> str:
    """docs/reference/versions.md."""
    lines = [*HEAD]
    for version in declared():
        beside = [f.replace("==", " ") for f in version.files if f.replace("==", " ") != version.title]
        title = version.title + (f" ({', '.join(beside)})" if beside else "")
        fits = f"no: {len(version.missing)} of our names or keywords" if version.missing else "yes"
        lines.append(f"| {title} | {version.pinned} | {fits} |")
    for version in declared():
        if version.missing:
            lines += ["", f"## {version.title}", "", "| what does not fit | what replaced it |", "|---|---|"]
            lines += [f"| {text} | {why} |" for text, why in version.missing.items()]
    return "\n".join(lines) + "\n"
