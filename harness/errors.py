"""Every failure a user can meet: what happened, why, what to do now, and an exit code by class.

    HarnessError
    ├── InvalidInput          3  a run file, a data file or a flag; carries every problem found at once
    ├── MissingPrerequisite   4  something this machine lacks (an environment, Java, jars, disk, memory)
    ├── JobFailed             5  a training job ended as Failed
    ├── EndpointFailed        6  an endpoint did not become InService, or an invocation failed
    ├── Busy                  7  another command holds the run, or a port is taken
    ├── NotFound              8  no such run, endpoint or file
    ├── NotStarted            9  a container could not be started, or the local SageMaker
    └── Refused              10  AWS refuses: credentials, permissions, a quota, a request; or it cannot be reached
    Interrupted             130  Ctrl-C or TERM (128 + signal number); beside the family, as KeyboardInterrupt is

Exit code 1 is left to bugs, 2 to the command line's own parser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `what` in one line, `why` if it is not plain, `hint` for what to do now."""

    what: str
    why: str = ""
    hint: str = ""

    def lines(self) -> list[str]:
        """The problem as it is printed: one line, the reason and the remedy indented below it."""
        out = [self.what]
        if self.why:
            out.append(f"  why:  {self.why}")
        if self.hint:
            out.append(f"  hint: {self.hint}")
        return out


class HarnessError(Exception):
    """Base of the family; `problems` are printed one after the other, then the process ends with `exit_code`."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.problems: list[Problem] = [Problem(what, why, hint)]

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> HarnessError:
        """One error for all `problems`, so that a user mends them in one go."""
        error = cls(problems[0].what, problems[0].why, problems[0].hint)
        error.problems = list(problems)
        return error


class InvalidInput(HarnessError):
    exit_code = 3


class MissingPrerequisite(HarnessError):
    exit_code = 4


class JobFailed(HarnessError):
    exit_code = 5


class EndpointFailed(HarnessError):
    exit_code = 6


class Busy(HarnessError):
    exit_code = 7


class NotFound(HarnessError):
    exit_code = 8


class NotStarted(HarnessError):
    exit_code = 9


class Refused(HarnessError):
    """AWS answered with an error, or not at all.

    `code` is its own name for it, as in "AccessDenied", `operation` boto3's name of the call, as in "create_model".
    """

    exit_code = 10

    def __init__(self, what: str, why: str = "", hint: str = "", code: str = "", operation: str = "") -> None:
        super().__init__(what, why, hint)
        self.code, self.operation = code, operation


class Interrupted(BaseException):
    """Ended by a signal; `signum` 2 gives exit code 130, 15 gives 143, as a shell reports them.

    No Exception, as KeyboardInterrupt is none: botocore takes an Exception in mid-request for a broken connection and
    tries again, and the signal would be lost.
    """

    def __init__(self, signum: int, what: str = "interrupted", hint: str = "") -> None:
        super().__init__(what)
        self.problems = [Problem(what, hint=hint)]
        self.signum = signum
        self.exit_code = 128 + signum


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`did you mean "x"?`, or the empty string where nothing comes close."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""
