"""A real vLLM engine on a vision model made on the spot: run by ``test_vllm_engine.py`` in a process of its own.

    export PYTHONPATH=.; env $(python tests/actors/vllm_live_images.py) pytest tests/actors/vllm_live_images.py

That the picture is seen is shown by numbers: the log-probabilities of a reply's tokens are those that transformers
computes from the same picture, and far from those that it computes from another.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from actors.local.vllm_engine import VLLMBackend, VLLMSettings, required_env
from actors.models.backend import AdapterRef
from actors.models.images import ImageFolder
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, TextPart, assistant, system, user
from tests.tiny_vision_model import IMAGE_TOKENS, make_tiny_vision_model, picture

TOLERANCE = 5e-4  # nats a token, in float32; another picture moves a reply by more than 0.1
RED, GREEN, BLUE = (picture(*colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("default")]

Score = Callable[..., torch.Tensor]


def part(data: bytes) -> ImagePart:
    return ImagePart(sha256=hashlib.sha256(data).hexdigest())


def ask(*messages: Message, **sampling: Any) -> Ask:
    drawn = Sampling(**({"max_tokens": 12, "temperature": 0.0} | sampling))
    return Ask(id="d#0", debate_id="d", agent="ada", role="debater", messages=messages, sampling=drawn)


def settings(folder: Path) -> VLLMSettings:
    return VLLMSettings(
        model=str(folder),
        dtype="float32",
        kv_cache_mb=64,
        max_model_len=1024,
        max_images=150,
        max_adapters=1,
        max_rank=8,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision_model(tmp_path_factory.mktemp("model") / "tiny-vision")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of images of a run."""
    folder = tmp_path_factory.mktemp("media")
    for data in (RED, GREEN, BLUE, RED[:-30]):
        (folder / part(data).sha256).write_bytes(data)
    return folder


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def backend(model: Path, media: Path) -> AsyncIterator[VLLMBackend]:
    backend = VLLMBackend(settings(model))
    backend.read_image = ImageFolder([media]).read
    info = await backend.start()
    assert (info.takes_images, info.context_tokens) == (True, 1024)
    yield backend
    await backend.close()


@pytest.fixture(scope="module")
def score(model: Path, media: Path) -> Score:
    """Log-probabilities [T] of a reply's tokens by transformers; ``adapter``: a folder, beside the model."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    seeing: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)

    def content(message: Message) -> list[dict[str, Any]]:
        return [
            {"type": "text", "text": one.text}
            if isinstance(one, TextPart)
            else {"type": "image", "image": Image.open(io.BytesIO((media / one.sha256).read_bytes()))}
            for one in message.parts
        ]

    def of(asked: Ask, reply: Reply, adapter: str = "") -> torch.Tensor:
        chat = [{"role": message.role, "content": content(message)} for message in asked.messages]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        prompt_tokens = inputs["input_ids"].shape[1]
        said = torch.tensor([reply.token_ids])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], said], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        speaking = seeing
        if adapter:
            from peft import PeftModel

            speaking = PeftModel.from_pretrained(seeing, adapter)
        with torch.no_grad():
            logits = speaking(**inputs).logits
        if adapter:
            speaking.unload()
        logprobs: torch.Tensor = logits[0, prompt_tokens - 1 : -1].log_softmax(-1).gather(1, said[0, :, None])[:, 0]
        return logprobs

    return of


def apart(reply: Reply, logprobs: torch.Tensor) -> float:
    """Largest difference over the tokens, in nats."""
    return float((torch.tensor(reply.logprobs) - logprobs).abs().max())


async def test_a_picture_is_seen(backend: VLLMBackend, score: Score) -> None:
    red, blue = (ask(user("What is this?", [part(data)])) for data in (RED, BLUE))
    replies = await asyncio.gather(backend.generate(red, None), backend.generate(blue, None))
    for own, other, reply in zip((red, blue), (blue, red), replies, strict=True):
        assert apart(reply, score(own, reply)) < TOLERANCE
        assert apart(reply, score(other, reply)) > 0.1
        assert len(reply.token_ids) == len(reply.logprobs) == reply.usage.completion_tokens
        assert reply.usage.image_tokens == IMAGE_TOKENS < reply.usage.prompt_tokens


async def test_pictures_are_seen_in_reading_order_wherever_they_stand(backend: VLLMBackend, score: Score) -> None:
    between = Message("user", (TextPart("First "), part(RED), TextPart(" then "), part(BLUE), TextPart(". Which?")))
    swapped = Message("user", (TextPart("First "), part(BLUE), TextPart(" then "), part(RED), TextPart(". Which?")))
    chat = (system("Look."), user("This?", [part(GREEN)]), assistant("It is [green]."), between)
    other = (*chat[:-1], swapped)
    reply = await backend.generate(ask(*chat), None)
    assert apart(reply, score(ask(*chat), reply)) < TOLERANCE
    assert apart(reply, score(ask(*other), reply)) > 0.1
    assert reply.usage.image_tokens == 3 * IMAGE_TOKENS


async def test_text_alone_is_answered_beside_pictures(backend: VLLMBackend, score: Score) -> None:
    text, both = ask(user("What is two?")), ask(user("What is two?", [part(RED)]))
    for asked, reply in zip(
        (text, both), await asyncio.gather(*(backend.generate(one, None) for one in (text, both))), strict=True
    ):
        assert apart(reply, score(asked, reply)) < TOLERANCE
    assert (await backend.generate(text, None)).usage.image_tokens == 0


async def test_the_same_picture_is_known_again_in_the_next_turn_and_another_is_not(backend: VLLMBackend) -> None:
    story = "It was said that it is red, and another says green. " * 3
    first = await backend.generate(ask(user(story, [part(RED)])), None)
    again = await backend.generate(ask(user(story + "So?", [part(RED)])), None)
    other = await backend.generate(ask(user(story, [part(BLUE)])), None)
    assert again.usage.cached_tokens >= 32 < first.usage.prompt_tokens
    assert other.usage.cached_tokens == 0


async def test_an_adapter_of_the_language_model_speaks_about_what_is_seen(
    backend: VLLMBackend, model: Path, score: Score, tmp_path: Path
) -> None:
    adapter = AdapterRef(name="ada@r1-1", agent="ada", path=str(tmp_path / "ada"))
    _train_nothing(model, adapter.path, r".*text_model.*\.(q|k|v|o|gate|up|down)_proj")
    red = ask(user("What is this?", [part(RED)]))
    tuned, base = await asyncio.gather(backend.generate(red, adapter), backend.generate(red, None))
    assert apart(tuned, score(red, tuned, adapter.path)) < TOLERANCE
    assert apart(base, score(red, base)) < TOLERANCE
    assert apart(tuned, score(red, tuned)) > 0.1


async def test_an_adapter_that_learned_to_see_is_refused(backend: VLLMBackend, model: Path, tmp_path: Path) -> None:
    """vLLM would load it and leave those weights out."""
    adapter = AdapterRef(name="bo@r1-1", agent="bo", path=str(tmp_path / "bo"))
    _train_nothing(model, adapter.path, "all-linear")
    with pytest.raises(AgentError, match=r"has learned to see, as in .*connector.* language model alone"):
        await backend.load_adapter(adapter)


async def test_a_text_that_says_what_stands_for_a_picture_is_not_one(backend: VLLMBackend, score: Score) -> None:
    said = ask(Message("user", (TextPart("<image> was said of "), part(RED), TextPart("<image>"))))
    meant = ask(Message("user", (TextPart("[image] was said of "), part(RED), TextPart("[image]"))))
    reply = await backend.generate(said, None)
    assert apart(reply, score(meant, reply)) < TOLERANCE


async def test_a_prompt_whose_pictures_do_not_fit_is_refused_and_they_are_seen_afterwards(
    backend: VLLMBackend, score: Score
) -> None:
    """The pictures have been made ready by then; what was refused must not be taken for sent."""
    yellow = part(RED[:-30])
    with pytest.raises(ReplyError, match=f"{yellow.sha256} cannot be decoded") as caught:
        await backend.generate(ask(user("What?", [yellow])), None)
    assert caught.value.kind == "malformed"
    many = [part(GREEN)] * 150
    with pytest.raises(ReplyError, match=r"has 1\d\d\d prompt tokens and max_tokens=12") as caught:
        await backend.generate(ask(user("What?", many)), None)
    assert caught.value.kind == "context_too_long"
    with pytest.raises(ReplyError, match=r"At most 150 image") as caught:
        await backend.generate(ask(user("What?", [part(GREEN)] * 151)), None)
    assert caught.value.kind == "malformed"
    with pytest.raises(ReplyError, match="max_tokens=1020") as caught:
        await backend.generate(ask(user("What?", [part(BLUE)]), max_tokens=1020), None)
    assert caught.value.kind == "context_too_long"
    fits = ask(user("What?", [part(GREEN), part(BLUE)]))
    reply = await backend.generate(fits, None)
    assert apart(reply, score(fits, reply)) < TOLERANCE


async def test_a_picture_that_is_not_there_is_named(backend: VLLMBackend) -> None:
    with pytest.raises(ReplyError, match=r"f{64} is not in") as caught:
        await backend.generate(ask(user("What?", [ImagePart(sha256="f" * 64)])), None)
    assert caught.value.kind == "malformed"


def _train_nothing(model: Path, folder: str, modules: str) -> None:
    """A random adapter, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    base: Any = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=modules, init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)


if __name__ == "__main__":
    print(*(f"{name}={value}" for name, value in required_env(VLLMSettings()).items()))
