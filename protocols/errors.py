"""Every error moot raises on purpose.

    MootError                      anything a user can read and act on
    ├── ConfigError                a recipe, setting, prompt set or command line is wrong      exit code 2
    │   └── TaskError              a task or a file of tasks is wrong                          exit code 2
    ├── IllegalEventError          a machine was handed an event its table does not allow (a bug of ours)
    ├── GraphError                 a debate graph would stop being append-only (a bug of ours)
    ├── JournalError               the durable record cannot be written or read                exit code 2
    ├── AgentError                 an agent could not be started or spoken to              exit code 2
    │   ├── ReplyError             one ask failed; ``kind`` says how
    │   │   └── EngineDownError    no ask will be answered before the model is started again
    │   ├── HostLostError          the process of a model died
    │   │   └── UnreachableError   or it may live, and cannot be reached for now
    │   └── PausedError            the run stopped before its end and can go on             exit code 3
    │       └── TerminatedError    as the process was told to end                           exit code 130
    └── TrainerError               a training cannot start or go on

Errors cross process borders by pickle, so each takes its message as the single required argument.
"""

from __future__ import annotations

from typing import Literal

FailureKind = Literal[
    "transient", "rate_limited", "quota", "authentication", "refused", "context_too_long", "malformed", "timeout"
]
"""How an ask can fail. ``transient``, ``rate_limited`` and ``timeout`` are worth another try; the rest are not."""

RETRYABLE: frozenset[FailureKind] = frozenset({"transient", "rate_limited", "timeout"})


class MootError(Exception):
    """Base of all errors above: its text is one clear sentence for the person at the keyboard."""


class ConfigError(MootError):
    """A setting is wrong: the text names the setting, the value got and the way out."""


class TaskError(ConfigError):
    """A task or a file of tasks is wrong: the text names the file and the line."""


class IllegalEventError(MootError):
    """A machine got an event that its transition table does not allow; nothing was changed."""


class GraphError(MootError):
    """An addition would break the append-only debate graph; nothing was changed."""


class JournalError(MootError):
    """The journal cannot be written or read; what was committed before stays."""


class AgentError(MootError):
    """An agent could not be started or spoken to."""


class ReplyError(AgentError):
    """One ask failed.

    ``kind`` tells whether another try can help, ``retry_after_s`` how long the provider asks to wait before it.
    """

    def __init__(self, message: str, kind: FailureKind = "transient", retry_after_s: float | None = None) -> None:
        super().__init__(message, kind, retry_after_s)  # all in args, so that the error pickles
        self.kind: FailureKind = kind
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class EngineDownError(ReplyError):
    """The model answers nothing any more: its host must be started again, and what it held asked again."""


class HostLostError(AgentError):
    """The process of a model died, with all that it held."""


class UnreachableError(HostLostError):
    """A process cannot be reached. It may live, and may have done what it was asked to."""


class PausedError(AgentError):
    """A run ended early by itself, as a budget is spent or an account refuses: the text says what to mend.

    What is on record stays, and nothing was asked in vain: ``moot resume`` goes on.
    """


class TerminatedError(PausedError):
    """The process was told to end, and has put on record what was on its way: nothing has to be mended."""


class TrainerError(MootError):
    """A training cannot start or go on."""


def unreadable(err: ValueError | RecursionError) -> str:
    """Why Python cannot read a text, without what it says to programmers: of depth, and of thousands of digits."""
    if isinstance(err, RecursionError):
        return "it is nested too deeply"
    return "a number has too many digits" if "int_max_str_digits" in str(err) else str(err)
