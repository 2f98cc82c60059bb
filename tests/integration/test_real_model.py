"""The embedded model through vLLM, as the README's first recipe uses it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.command import ROOT, Moot, RunOnDisk, check_clean, moot_in

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    with moot_in(tmp_path_factory.mktemp("real")) as moot:
        moot.env["HOME"] = os.environ["HOME"]  # where the model has been converted already
        yield moot


def test_the_embedded_model_debates(moot: Moot) -> None:
    process = moot(
        "run", str(ROOT / "recipes" / "arithmetic-smollm2.yaml"), "--limit", "2", "--json", "run.runs_dir=here"
    )
    assert process.wait(400.0) == 0, process.stderr
    check_clean(process.stderr)
    outcome = process.outcome()
    assert outcome["debates"] == outcome["closed"] == 4
    run = RunOnDisk(moot.folder / outcome["run"])
    debates = run.debates("debate").values()
    assert len(debates) == 4
    for debate in debates:
        assert debate.verdict is not None and debate.verdict.stop_reason == "rounds"
        assert len(debate.utterances) == 6
        for node in debate.utterances:
            reply = node.reply
            assert reply.token_ids and len(reply.token_ids) == len(reply.logprobs) == reply.usage.completion_tokens
            assert max(reply.logprobs) <= 0.0
    assert process.all_gone()
