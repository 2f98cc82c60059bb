"""A debate about pictures on a local vision model, from the command line: who looks is shown them on every turn.

Its engine is in a process of its own, as on GPUs; other tests have theirs in the host.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.integration.command import ROOT, Moot, RunOnDisk, check_clean, moot_in
from tests.tiny_vision_model import IMAGE_TOKENS, make_tiny_vision_model, picture

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    with moot_in(tmp_path_factory.mktemp("vision")) as moot:
        yield moot


def pictured(folder: Path) -> Path:
    """The dialectic recipe with two questions about pictures and a model made on the spot."""
    rows = []
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (folder / f"{name}.png").write_bytes(picture(*colour))
        rows.append({"id": name, "question": "Which colour?", "answer": name, "image": f"{name}.png"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = yaml.safe_load((ROOT / "recipes" / "dialectic.yaml").read_text())
    recipe["tasks"] = {"source": "file", "path": "rows.jsonl", "id": "id", "images": "image", "only": "train"}
    recipe["tasks"] |= {"answer_format": "text"}
    recipe["models"]["smollm2"] |= {"model": str(make_tiny_vision_model(folder / "tiny-vision")), "max_adapters": 0}
    recipe["models"]["smollm2"] |= {"max_model_len": 4096, "kv_cache_mb": 64, "in_process": False}
    recipe["protocol"] |= {"images": "attach", "prompts": "dialectic.bracket.en"}
    path = folder / "pictured.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_debaters_and_condenser_see_the_picture_on_every_turn(moot: Moot) -> None:
    process = moot("run", str(pictured(moot.folder)), "--json", "run.runs_dir=here")
    assert process.wait() == 0, process.stderr
    check_clean(process.stderr)
    outcome = process.outcome()
    assert outcome["debates"] == outcome["closed"] == 2
    debates = RunOnDisk(moot.folder / outcome["run"]).debates("debate").values()
    first = {}
    for debate in debates:
        assert debate.verdict is not None and debate.failures == []
        for node in debate.utterances:
            looks = node.role in ("debater", "condenser")
            assert node.reply.usage.image_tokens == (IMAGE_TOKENS if looks else 0), node.id
        first[debate.task.id] = debate.utterance("0.answer.0").reply.logprobs
    assert first["red"] != first["blue"]
    assert process.all_gone()
