"""A recipe names the place of a key; a key in a recipe is refused and not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.services.api_key import NO_KEY, ApiKey, read_key, refuse_literal_keys
from engine.check import check_recipe
from engine.config.recipe_file import build_recipe
from protocols.errors import ConfigError
from tests.actors.fake_api import KEY
from tests.engine.config.test_recipe import GOOD

HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "section",
    [
        {"api_key_env": KEY},
        {"api_key_env": HEX},
        {"api_key_file": KEY},
        {"api_key": "anything"},
        {"apikey": "anything"},
        {"hub_token": "anything"},
        {"headers": {"Authorization": "Bearer abcdefgh"}},
        {"headers": {"api-key": HEX}},
        {"headers": {"x-other": f"Token {KEY}"}},
        {"extra_body": {"deep": [{"er": KEY}]}},
        {"model": "AIza" + "B" * 30},
        KEY,
    ],
)
def test_a_key_in_a_recipe_is_refused_and_not_repeated(section: Any) -> None:
    with pytest.raises(ConfigError, match="never holds a key") as caught:
        refuse_literal_keys(section, "r.yaml: models.gpt")
    for secret in (KEY, HEX, "anything", "abcdefgh", "BBBB"):
        assert secret not in str(caught.value)
    if isinstance(section, dict):
        data = GOOD | {"models": {"simulated": {"backend": "openai", "model": "m"} | section}}
        with pytest.raises(ConfigError, match=r"r.yaml: models.simulated\.\S+: a recipe never holds a key"):
            build_recipe(data, where="r.yaml")


@pytest.mark.parametrize(
    "section",
    [
        {"api_key_env": "OPENAI_API_KEY", "model": "accounts/fireworks/models/llama-v3p1-405b-instruct"},
        {"api_key_env": "MY_KEY_2", "api_key_file": "~/keys/openai.txt", "max_tokens_field": "max_tokens"},
        {"model": "claude-3-5-sonnet-20241022", "base_url": "https://r.openai.azure.com", "revision": "a1" * 20},
        {
            "headers": {"HTTP-Referer": "https://example.org"},
            "limits": {"tokens_per_minute": 5},
            "model": "task-sketch",
        },
    ],
)
def test_what_is_no_key_is_let_through(section: dict[str, Any]) -> None:
    refuse_literal_keys(section, "r.yaml")


def test_a_key_is_read_from_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    (tmp_path / "key").write_text(f"\n{KEY}  \n")
    assert read_key("A_KEY", "").header("Bearer ") == f"Bearer {KEY}"
    assert read_key("A_KEY", str(tmp_path / "key")).header() == KEY  # the file comes first
    assert read_key("", "") is NO_KEY


def test_parts_of_a_key_are_taken_out_of_texts() -> None:
    key = ApiKey("plain-secret", "a test")
    assert key.redact("got plain-secret and sk-abc***4567, fine") == "got [key] and [key], fine"
    assert repr(key) == "ApiKey(from a test)"
    for cut in ("plain-secre", "plain-se"):  # a sentence that was cut in the middle of the key
        assert key.redact(f"refused: {cut}") == "refused: [key]"
    assert key.redact("plain-sample, Plain-secret") == "plain-sample, Plain-secret"


def test_a_models_words_lose_the_key_and_nothing_else() -> None:
    key = ApiKey("plain-secret-of-ours", "a test")
    said = "plain-secret-of-ours, sk-abcdefghijkl, plain-secret-of-ourselves"
    assert key.taken_out(said) == "[key], sk-abcdefghijkl, [key]elves"
    assert NO_KEY.taken_out("plain-secret") == NO_KEY.redact("plain-secret") == "plain-secret"


def test_a_word_that_a_server_of_ones_own_takes_for_a_key_is_left_in_what_is_said() -> None:
    for word in ("1", "none", "EMPTY"):
        key = ApiKey(word, "a test")
        assert (
            key.taken_out(f"The answer is {word}.") == key.redact(f"The answer is {word}.") == f"The answer is {word}."
        )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    examples = Path(__file__).parents[3] / "examples"
    (tmp_path / "my-tasks.jsonl").write_text((examples / "my-tasks.jsonl").read_text(encoding="utf-8"))
    path.write_text((examples / "api-openai.yaml").read_text(encoding="utf-8"))
    return path


def test_a_check_names_the_variable_that_is_missing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"models\.claude: the environment variable ANTHROPIC_API_KEY is not set"):
        check_recipe(recipe, [], None)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with pytest.raises(ConfigError, match=r"models\.gpt: the environment variable OPENAI_API_KEY is not set"):
        check_recipe(recipe, [], None)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert check_recipe(recipe, [], None)["agents"] == 3
    with pytest.raises(ConfigError, match=r"models\.gpt\.api_key: a recipe never holds a key"):
        check_recipe(recipe, [f"models.gpt.api_key={KEY}"], None)


def test_a_check_says_who_is_shown_images_and_cannot_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOOT_CACHE", str(tmp_path / "cache"))
    png = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000" + "1f15c4890000000d49444154789c6360606060000000"
        "050001a5f645400000000049454e44ae426082"
    )
    (tmp_path / "dot.png").write_bytes(png)
    rows = [f'{{"id": "t{n}", "question": "What is it? ({n})", "answer": "4", "image": "dot.png"}}' for n in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    path = tmp_path / "r.yaml"
    path.write_text(
        f"name: r\ntasks: {{source: file, path: {tmp_path}/rows.jsonl, id: id, images: image, only: train}}\n"
        "models: {gpt: {backend: openai, model: m, base_url: 'http://127.0.0.1:9/v1'}, sim: {backend: scripted}}\n"
        "agents: {ada: {model: gpt}, bo: {model: sim}}\n"
        "protocol: {name: society, rounds: 2}\ncast: {generator: [bo, ada]}\n"
    )
    told = r"ada is shown images.* models\.gpt reads only text; set models\.gpt\.images: true"
    with pytest.raises(ConfigError, match=told):
        check_recipe(path, [], None)
    assert check_recipe(path, ["models.gpt.images=true"], None)["train"] == 2
    assert check_recipe(path, ["cast.generator=[bo]"], None)["train"] == 2
