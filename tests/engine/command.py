"""The command line in this process: quick, and where a test wants its outcome as data or its one sentence."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from engine.cli import main


def moot(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> dict[str, Any]:
    """What a command that succeeds tells a script."""
    result = moot(*arguments, "--json")
    assert result.exit_code == 0, result.output
    outcome: dict[str, Any] = json.loads(result.stdout)
    return outcome


def refused(*arguments: object) -> str:
    """The one sentence of a command that refuses bad input."""
    result = moot(*arguments)
    assert result.exit_code == 2 and result.stdout == "", result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("moot: ") and "Traceback" not in line
    return line
