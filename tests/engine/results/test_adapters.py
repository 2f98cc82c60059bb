"""Adapters through the command line: what is told of them, and that what is handed on works for others."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import yaml

from engine.loop import publish
from engine.record.folder import Manifest, RunFolder
from engine.results.evaluate import Evaluation, Figure
from protocols.errors import ConfigError
from tests.engine.command import done, moot, refused
from tests.engine.config.test_recipe import built
from tests.engine.fake_hub import fake_hub
from tests.trainers.conftest import make_tiny_model
from trainers.record.registry import Registry, weights_hash

ROOT = Path(__file__).resolve().parents[3]
TOKEN = "hub-token-of-a-test-0123456789"


def make_run(path: Path, base: Path, base_hash: str) -> tuple[RunFolder, Registry]:
    manifest = Manifest(
        id="r", kind="loop", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path="r.yaml", finished_at=1.0
    )
    folder = RunFolder.create(path, manifest)
    folder.release()
    return folder, Registry(path / "adapters")


def add(registry: Registry, name: str, path: Path, base: str, base_hash: str, **changes: Any) -> None:
    fields: dict[str, Any] = {
        "base_model": base,
        "base_hash": base_hash,
        "data_hash": "d" * 64,
        "rule": "generator",
        "rows": 3,
        "recipe_hash": "r" * 64,
        "created_at": 86400.0,
        "metrics": {"iteration": 1, "final_loss": 0.25},
    }
    registry.add(name, path, **(fields | changes))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two versions of ada, the second trained on from the first; the weights are words."""
    _, registry = make_run(tmp_path / "run", Path("embedded"), "b" * 64)
    for version in (1, 2):
        folder = tmp_path / "run" / "adapters" / "ada" / f"v{version}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(f"weights {version}")
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/home/user/model", "r": 4}))
    add(registry, "ada@r-v1", tmp_path / "run/adapters/ada/v1", "embedded", "b" * 64)
    changes = {"parent": "ada@r-v1", "rows": 5, "metrics": {"iteration": 2, "final_loss": 0.125}}
    add(registry, "ada@r-v2", tmp_path / "run/adapters/ada/v2", "embedded", "b" * 64, **changes)
    alone = Figure(name="ada alone", accuracy=0.5, low=0.25, high=0.75, num_graded=8)
    (tmp_path / "run" / "results").mkdir()
    (tmp_path / "run/results/eval-2.json").write_bytes(msgspec.json.encode(Evaluation(figures=(alone,))))
    return tmp_path / "run"


def test_what_there_is_and_where_it_comes_from(run: Path) -> None:
    listed = done("adapters", "list", run)["adapters"]
    assert [(item["name"], item["parent"], item["rows"]) for item in listed] == [
        ("ada@r-v1", None, 3),
        ("ada@r-v2", "ada@r-v1", 5),
    ]
    shown = done("adapters", "show", run, "ada")  # the newest
    assert shown["lineage"] == ["ada@r-v2", "ada@r-v1", "embedded"]
    assert (shown["data_hash"], shown["recipe_hash"], shown["created"]) == (
        "d" * 64,
        "r" * 64,
        "1970-01-02 00:00:00 UTC",
    )
    assert shown["metrics"] == {"iteration": 2, "final_loss": 0.125}
    lines = moot("adapters", "list", run).stdout.splitlines()
    assert lines[-1] == "  ada@r-v2  from ada@r-v1  5 rows by generator  iteration 2, final_loss 0.125"


def test_what_is_wrong_is_one_sentence_and_leaves_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "is not a run's folder" in refused("adapters", "list", tmp_path)
    assert (
        "there is no adapter 'bo' in" in (said := refused("adapters", "export", run, "bo", "-o", out))
        and "ada@r-v1" in said
    )
    assert "adapters/ada/v2/adapter_model" not in said
    (run / "adapters/ada/v1/adapter_model.safetensors").write_text("tampered")
    assert "is not the file that was registered; restore it" in refused(
        "adapters", "export", run, "ada@r-v1", "-o", out
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.safetensors").write_text("another base")
    said = refused("adapters", "merge", run, "ada", "-o", out, "--base", tmp_path / "other")
    assert f"'ada@r-v2' was trained on base 'embedded' (weights bbbbbbbbbbbb), not on '{tmp_path}/other'" in said
    assert "there are no weights in" in refused(
        "adapters", "merge", run, "ada", "-o", out, "--base", tmp_path / "nowhere"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").touch()
    assert "full: is there already" in refused("adapters", "export", run, "ada", "-o", tmp_path / "full")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "other", "full"}
    make_run(tmp_path / "bare", Path(), "")
    assert "bare has no adapters; train some with `moot train" in refused("adapters", "list", tmp_path / "bare")


def test_an_export_tells_its_lineage_and_no_folder_of_ours(run: Path, tmp_path: Path) -> None:
    done("adapters", "export", run, "ada", "-o", tmp_path / "out")
    files = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md", "lineage.json"}
    assert files["adapter_model.safetensors"] == "weights 2"
    assert json.loads(files["adapter_config.json"]) == {
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": 4,
    }
    assert [item["name"] for item in json.loads(files["lineage.json"])] == ["ada@r-v2", "ada@r-v1"]
    assert not [name for name, text in files.items() if str(tmp_path) in text]
    _, front, page = files["README.md"].split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["moot", "multi-agent-debate", "lora"],
    }
    assert "| `ada@r-v1` | the base | generator | 3 | `dddddddddddd` |" in page
    assert "| ada alone, 8 tasks | 50.0% [25.0, 75.0] |" in page


def test_a_base_that_is_a_folder_has_no_name_for_others(tmp_path: Path) -> None:
    _, registry = make_run(tmp_path / "run", tmp_path, "b" * 64)
    folder = tmp_path / "run/adapters/a|b<i>/v1"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").touch()
    (folder / "adapter_config.json").write_text("{}")
    add(registry, "a|b<i>@r-v1", folder, str(tmp_path / "secret/mine"), "b" * 64)
    done("adapters", "export", tmp_path / "run", "a|b<i>", "-o", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "base_model" not in card.split("---\n")[1] and "secret" not in card
    assert "<i>" not in card and "`a\\|b&lt;i>@r-v1`" in card
    assert "'" + str(tmp_path / "secret/mine") in refused(
        "adapters", "merge", tmp_path / "run", "a|b<i>", "-o", tmp_path / "m"
    )
    done("adapters", "export", tmp_path / "run", "a|b<i>", "-o", tmp_path / "named", "--base-id", "org/mine")
    assert json.loads((tmp_path / "named/adapter_config.json").read_bytes())["base_model_name_or_path"] == "org/mine"


def test_a_whole_model_is_told_and_handed_on_as_one(run: Path, tmp_path: Path) -> None:
    folder = run / "adapters/bo/v3"
    folder.mkdir(parents=True)
    files = {"model.safetensors": "all weights", "config.json": "{}", "tokenizer.json": "{}", "training.json": "{}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    add(Registry(run / "adapters"), "bo@r-v3", folder, "embedded", "b" * 64, whole=True)
    assert (
        done("adapters", "show", run, "bo")["whole"] is True
        and done("adapters", "list", run)["adapters"][-1]["whole"] is True
    )
    assert moot("adapters", "list", run).stdout.splitlines()[-1].endswith("final_loss 0.25  a whole model")
    said = refused("adapters", "merge", run, "bo", "-o", tmp_path / "merged")
    assert "'bo@r-v3' is a whole model, not an adapter: there is nothing to merge it with; a recipe speaks with" in said
    assert said.endswith(f"as models.NAME.model: {folder}")
    done("adapters", "export", run, "bo", "-o", tmp_path / "out")
    exported = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert exported.keys() == files.keys() - {"training.json"} | {"README.md", "lineage.json"}
    assert exported["model.safetensors"] == "all weights"
    _, front, page = exported["README.md"].split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["moot", "multi-agent-debate"],
    }
    record = Registry(run / "adapters").get("bo@r-v3")
    shared = r"agents that share a model cannot each have all of its weights, and bo shares models\.simulated with ada"
    with pytest.raises(ConfigError, match=shared):
        asyncio.run(publish(cast(Any, None), built(), record, Registry(run / "adapters")))
    assert "A model, all weights of which moot trained on what agent `bo` said" in page and "peft" not in page
    (folder / "model.safetensors").write_text("tampered")
    assert "bo/v3 is not the one that was registered" in refused(
        "adapters", "export", run, "bo", "-o", tmp_path / "again"
    )


def push(run: Path, url: str, token: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment once."""
    env = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": url, "HF_TOKEN": token}
    command = [sys.executable, "-m", "engine", "adapters", "push", str(run), "ada", "org/ada", "--json"]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_push_is_one_commit_with_the_card(run: Path) -> None:
    with fake_hub(TOKEN) as hub:
        finished = push(run, hub.url, TOKEN)
    assert finished.returncode == 0, finished.stderr
    assert (
        hub.created[0]["name"] == "ada"
        and hub.created[0]["organization"] == "org"
        and hub.created[0]["visibility"] == "private"
    )
    assert hub.commits == ["ada@r-v2, by moot"]
    assert hub.files.keys() == {"adapter_config.json", "adapter_model.safetensors", "README.md", "lineage.json"}
    assert hub.files["adapter_model.safetensors"] == b"weights 2"
    outcome = json.loads(finished.stdout)
    assert (outcome["repository"], outcome["commit"]) == ("org/ada", "c" * 40)


def test_a_push_that_is_refused_says_why_and_not_the_token(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub("another") as hub:
        finished = push(run, hub.url, TOKEN)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert "ada@r-v2 cannot be pushed to 'org/ada'" in line and "401" in line and "HF_TOKEN may write there" in line
    assert TOKEN not in finished.stderr + finished.stdout
    gone = push(run, hub.url, TOKEN)  # nobody listens there any more
    assert gone.returncode == 2 and "cannot be pushed" in gone.stderr and "Traceback" not in gone.stderr
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "HF_TOKEN is not set" in refused("adapters", "push", run, "ada", "org/ada")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with one real adapter of random weights, and its base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("trained")
    base = make_tiny_model(folder / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    _, registry = make_run(folder / "run", base, "")
    adapted.save_pretrained(folder / "run/adapters/ada/v1")
    add(registry, "ada@r-v1", folder / "run/adapters/ada/v1", str(base), weights_hash(base))
    return folder / "run", base


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_merged_exported_and_trained_speak_alike(trained: tuple[Path, Path], tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run, base = trained
    outcome = done("adapters", "merge", run, "ada", "-o", tmp_path / "merged")
    done("adapters", "export", run, "ada", "-o", tmp_path / "exported")

    def load(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path)

    chat = [{"role": "user", "content": "6 * 7?"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    models = {
        "base": load(base),
        "trained": PeftModel.from_pretrained(load(base), str(run / "adapters/ada/v1")),
        "exported": PeftModel.from_pretrained(load(base), str(tmp_path / "exported")),
        "merged": load(tmp_path / "merged"),
    }
    with torch.no_grad():
        logits = {name: model.eval()(**ids).logits for name, model in models.items()}
    assert torch.equal(logits["exported"], logits["trained"])
    assert torch.allclose(logits["merged"], logits["trained"], atol=1e-4)
    assert not torch.allclose(logits["merged"], logits["base"], atol=1e-2)  # the adapter does something
    assert outcome["max_log_prob_error"] < 1e-4
    card = (tmp_path / "merged/README.md").read_text()
    assert "library_name: transformers" in card and {file.suffix for file in (tmp_path / "merged").iterdir()} >= {
        ".safetensors",
        ".json",
        ".jinja",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_coarse_merge_says_what_it_costs(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, _ = trained
    outcome = done("adapters", "merge", run, "ada", "-o", tmp_path / "merged", "--dtype", "bfloat16")
    assert 1e-4 < outcome["max_log_prob_error"] < 0.5
    assert json.loads((tmp_path / "merged/config.json").read_bytes())["dtype"] == "bfloat16"
