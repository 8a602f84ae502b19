"""Every block of the README says what it is; what can be run is run.

run                 executed by CI itself (`make demo`, `make test`) or here
run-with-endpoint   executed against an endpoint (tests/chain/test_readme_blocks.py)
shown, shown-for-AWS   not executed
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TAGS = {"run", "run-with-endpoint", "shown", "shown-for-AWS"}


def blocks(root: Path, name: str = "README.md") -> list[tuple[str, str, str]]:
    """(language, tag, text) of every fenced block."""
    found = re.findall(r"^```(\w*) ?([\w-]*)\n(.*?)^```$", (root / name).read_text(), re.MULTILINE | re.DOTALL)
    return [(language, tag, text) for language, tag, text in found]


def test_every_shell_block_has_a_tag(root: Path) -> None:
    untagged = [text for language, tag, text in blocks(root) if language in ("sh", "text") and tag not in TAGS]
    assert untagged == []


def test_blocks_to_run_are_run(root: Path) -> None:
    ran = 0
    for _, tag, text in blocks(root):
        for line in text.splitlines() if tag == "run" else []:
            if line.startswith("make "):
                # CI runs these targets themselves; here it is seen that they exist.
                assert re.search(rf"^{line.split()[1]}:", (root / "Makefile").read_text(), re.MULTILINE), line
                assert line.split()[1] in (root / ".ci" / "run").read_text(), line
            else:
                done = subprocess.run(line, shell=True, cwd=root, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
            ran += 1
    assert ran >= 3


def test_the_toml_block_is_the_ready_made_file_in_short(root: Path) -> None:
    import tomllib

    (text,) = [text for language, _, text in blocks(root, "docs/quickstart.md") if language == "toml"]
    shown = tomllib.loads(text)
    ready = tomllib.loads((root / "harness" / "runs" / "tinyllama-imdb.toml").read_text())
    for table, value in shown.items():
        if isinstance(value, dict):
            assert value.items() <= ready[table].items()
        else:
            assert value == ready[table]


PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", PAGES)
def test_links_and_paths_exist(root: Path, name: str) -> None:
    text = (root / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((root / name).parent / target).exists(), target
