"""What the page knows: runs asked of SageMaker now and then, and the verbs that were started here."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from harness import record as records
from harness.errors import HarnessError, NotFound
from harness.record import Record
from harness.run import invoke, platforms, spending, status
from harness.run.status import RunStatus
from harness.ui import commands
from harness.ui.commands import Command
from serve.options import ServeOptions

MAX_TOKENS = 256  # of an answer in the chat: some paragraphs, and seconds rather than minutes on engine cpu


def max_tokens(record: Record) -> int:
    """Half of n_positions at most: the other half is for what was asked."""
    serve = (record.read_json("run.json") or {}).get("serve", {})
    return min(MAX_TOKENS, int(serve.get("n_positions", ServeOptions().n_positions)) // 2)


@dataclass
class Watch:
    """Shared by all browser windows. `refresh` asks, everything else reads what it found."""

    runs: tuple[RunStatus, ...] = ()
    billed: str = ""
    failed: str = ""
    """Why the last refresh brought nothing."""
    started: list[Command] = field(default_factory=list)
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> None:
        """Ask for every run. One thread at a time: boto3's clients must not be made by two at once."""
        if not self._asking.acquire(blocking=False):
            return
        try:
            self.runs, self.billed, self.failed = tuple(status.overview()), spending.line(), ""
        except HarnessError as error:
            self.failed = error.problems[0].what
        finally:
            self._asking.release()

    def of(self, run_id: str) -> RunStatus | None:
        return next((run for run in self.runs if run.run == run_id), None)

    def start(self, words: Sequence[str]) -> Command:
        """Start a verb; the page shows its end."""
        command = commands.start(words)
        self.started.append(command)
        return command

    def ended(self) -> list[Command]:
        """Verbs that have ended since the last call."""
        found = [command for command in self.started if command.ended]
        self.started = [command for command in self.started if not command.ended]
        return found

    def answer(self, run_id: str, which: str, messages: Sequence[dict[str, str]], plain: bool) -> Iterator[str]:
        """Pieces of an endpoint's answer: `which` is base or tuned; `plain` sends the last message as it is."""
        record = records.find(run_id)
        most = max_tokens(record)
        with platforms.opened(record, lambda _: None, start=False) as client:
            with self._asking:
                name = f"{record.id}-{which}"
                endpoint = next((e for e in client.endpoints() if e.name == name and e.status == "InService"), None)
            if endpoint is None:
                raise NotFound(f"endpoint {name} is not InService")
            if plain:
                body = {**invoke.request(messages[-1]["content"], max_new_tokens=most), "stream": True}
                yield from invoke.pieces(client.invoke_stream(endpoint, body))
            else:
                body = {**invoke.chat_request(messages, most), "stream": True}
                yield from invoke.chat_pieces(client.invoke_stream(endpoint, body))


def problems_of(command: Command) -> list[str]:
    """What a verb that failed has said, from its first error on."""
    lines = command.last_lines()
    first = next((i for i, line in enumerate(lines) if line.startswith("error:")), max(len(lines) - 3, 0))
    return lines[first:]


def said(error: HarnessError) -> str:
    """Every problem of an error, in one text."""
    return "\n".join(line for problem in error.problems for line in problem.lines())


def record_of(run_id: str) -> Record | None:
    """The run of exactly that id."""
    return next((record for record in records.all_records() if record.id == run_id), None)
