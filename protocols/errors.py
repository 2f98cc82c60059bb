"""Every error moot raises on purpose.

    MootError                      anything a user can read and act on
    ├── ConfigError                a recipe, setting, prompt set or command line is wrong      exit code 2
    │   └── TaskError              a task or a file of tasks is wrong                          exit code 2
    ├── IllegalEventError          a machine was handed an event its table does not allow (a bug of ours)
    ├── GraphError                 a debate graph would stop being append-only (a bug of ours)
    ├── JournalError               the durable record cannot be written or read                exit code 2
    ├── AgentError                 an agent could not be started or spoken to
    │   └── ReplyError             one ask failed; ``kind`` says how
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
    """One ask failed. ``kind`` tells whether another try can help."""

    def __init__(self, message: str, kind: FailureKind = "transient") -> None:
        super().__init__(message, kind)  # both in args, so that the error pickles
        self.kind: FailureKind = kind

    def __str__(self) -> str:
        return str(self.args[0])


class TrainerError(MootError):
    """A training cannot start or go on."""
