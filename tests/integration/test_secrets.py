"""Nothing that a run leaves behind holds a key, though the service repeats it in every error and every reply."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from protocols.machine import AgentFailed, Replied
from tests.integration.command import Moot, RunOnDisk, check_clean, command_here, moot_in
from tests.integration.fault_server import fault_server, read_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

IN_ENV = "Zq7xW3vK9pLm+" + "2RtY8bNc/4HdF6sJ="  # of no known form, and spelled otherwise in a URL
IN_FILE = "sk-ant-api03-" + "Uw5eGh1Tz0_aQi8PoXn4-Vb"
WRONG = "wrong-M3yCk7" + "DjR2fSuE9lBw"
PROXY = "hushHush7" + "Lq4Zr9Xv"

RECIPE = """
name: secrets
seed: 3
tasks: {{source: arithmetic, level: mixed30, train: 40, test: 0}}
models:
  gpt: {{backend: openai, model: gpt-x, base_url: "{url}/v1", api_key_env: GPT_KEY, limits: {limits}}}
  claude: {{backend: anthropic, model: claude-x, base_url: "{url}", api_key_file: "{file}", limits: {limits}}}
agents:
  ada: {{model: gpt, max_tokens: 64, persona: You are Ada.}}
  bo: {{model: claude, max_tokens: 64, persona: You are Bo.}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo]}}
"""
LIMITS = "{timeout_s: 1.0, backoff_s: 0.05}"


def spellings(secret: str) -> dict[str, bytes]:
    """A secret as somebody might find it; in base64 at each of the three places it can begin at in what was encoded."""
    plain = secret.encode()
    encoded = {f"base64 at {skip}": base64.b64encode(b"x" * skip + plain)[4 * bool(skip) : -4] for skip in range(3)}
    forms = {"plain": plain, "quoted": quote(secret, safe="").encode(), "hex": plain.hex().encode(), **encoded}
    return forms | {
        "its beginning": plain[:12],
        "its end": plain[-12:],
        "its beginning in hex": plain[:12].hex().encode(),
    }


def leaks(folders: list[Path], secrets: list[str], but: Path) -> list[str]:
    wanted = [(secret[:4], form, text) for secret in secrets for form, text in spellings(secret).items()]
    found = []
    for file in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file() and path != but):
        data = file.read_bytes()
        found += [f"{file}: {secret}... ({form})" for secret, form, text in wanted if text in data]
    return found


@pytest.fixture
def moot(tmp_path: Path) -> Iterator[Moot]:
    with moot_in(tmp_path) as moot:
        moot.env |= {"GPT_KEY": IN_ENV, "no_proxy": "127.0.0.1", "http_proxy": f"http://ada:{PROXY}@127.0.0.1:9"}
        (tmp_path / "key").write_text(IN_FILE)
        yield moot


def test_what_would_be_a_leak_is_found(tmp_path: Path) -> None:
    for number, text in enumerate((IN_ENV, quote(IN_ENV, safe=""), IN_ENV[:12], IN_ENV.encode().hex())):
        (tmp_path / f"{number}").write_text(f"x{text}x")
    for skip in range(3):
        (tmp_path / f"b{skip}").write_bytes(base64.b64encode(b"." * skip + f"{IN_ENV}, and more".encode()))
    assert len({leak.split(":")[0] for leak in leaks([tmp_path], [IN_ENV], tmp_path)}) == 7


def test_a_run_leaves_no_key_behind(moot: Moot, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, run = moot.folder, RunOnDisk(moot.folder / "r")
    with fault_server(folder / "seen.jsonl", 0.1, "--echo", "--revoke-after", "80") as url:
        (folder / "secrets.yaml").write_text(RECIPE.format(url=url, file=folder / "key", limits=LIMITS))
        moot.env["GPT_KEY"] = WRONG
        refused = moot("run", "secrets.yaml", "--run-dir", "refused", "--json")
        assert refused.wait() == 2
        told = "model 'gpt' cannot start: " + f"{url}/v1/chat/completions does not accept the key (status 401); "
        assert told + "check the environment variable GPT_KEY: Incorrect API key" in refused.sentence()

        moot.env["GPT_KEY"] = IN_ENV
        paused = moot("run", "secrets.yaml", "--run-dir", "r", "--json")
        assert paused.wait() == 3, paused.stderr
        assert "was refused (authentication)" in paused.sentence() and "Incorrect API key" in paused.sentence()
        done = moot("resume", "r", "--json")
        assert done.wait() in (0, 1), done.stderr
        check_clean(done.stderr)
    monkeypatch.setenv("GPT_KEY", IN_ENV)
    command_here("report", run.path)
    command_here("export", "json", run.path, "-o", folder / "out")
    command_here("export", "trl-sft", run.path, "-o", folder / "sft.jsonl")

    events = run.events("debate")
    replies = [event.reply for event in events if isinstance(event, Replied)]
    said = {(reply.model, reply.text.partition("I was called with ")[2]) for reply in replies}
    assert said == {("gpt-x", "Bearer [key]."), ("claude-x", "[key].")}
    reasons = [attempt.reason for event in events if isinstance(event, Replied) for attempt in event.reply.attempts]
    reasons += [event.failure.reason for event in events if isinstance(event, AgentFailed)]
    assert any("(Authorization: Bearer [key])" in reason for reason in reasons), "no error repeated the key"
    assert len(read_log(folder / "seen.jsonl")) > 160

    logs = list(moot.temp.glob("ray/session_*/logs/*"))
    assert len(logs) > 10, "Ray's logs are somewhere else"
    secrets = [IN_ENV, IN_FILE, WRONG, PROXY]
    assert leaks([folder, moot.temp], secrets, but=folder / "key") == []
