"""Vision models of plain transformers: asked at once they say what they say alone, and that is what they saw."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.local.transformers_batch import Batch, Row, joins
from actors.local.transformers_model import TransformersBackend, TransformersSettings
from actors.models.images import ImageFolder
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, TextPart, assistant, system, user
from tests.tiny_vision_model import IMAGE_TOKENS, keep, make_tiny_vision_model, picture
from tests.trainers.conftest import tiny_model

__all__ = ["tiny_model"]

pytestmark = pytest.mark.slow

COLOURS = {"red": picture(255, 0, 0), "green": picture(0, 255, 0, height_px=16), "blue": picture(0, 0, 255)}
SHOWN = (61, *[60] * 8, 62)  # how Qwen2-VL is shown a picture of 8 tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("media")


@pytest.fixture(scope="module")
def seen(media: Path) -> dict[str, ImagePart]:
    return {name: keep(data, media) for name, data in COLOURS.items()}


def ask(*messages: Message, max_tokens: int = 12) -> Ask:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    return Ask(id="d#0", debate_id="d", agent="ada", role="debater", messages=messages, sampling=sampling)


def asks_of(seen: dict[str, ImagePart]) -> list[Ask]:
    """Of other lengths, with one picture, none, three in places of their own, and the same ones the other way round."""
    first = Message("user", (TextPart("First "), seen["red"], TextPart(", then "), seen["blue"], TextPart(": which?")))
    swapped = Message(
        "user", (TextPart("First "), seen["blue"], TextPart(", then "), seen["red"], TextPart(": which?"))
    )
    before = (system("Look."), user("This?", [seen["green"]]), assistant("It is [green]."))
    return [
        ask(user("What is this?", [seen["red"]])),
        ask(user("What is two and two?")),
        ask(*before, first),
        ask(*before, swapped),
        ask(user("<image> And this, in as few words as you can, please?", [seen["blue"]])),
    ]


def answered(folder: Path, media: Path, *asks: Ask) -> tuple[list[Reply], dict[str, float]]:
    async def run() -> tuple[list[Reply], dict[str, float]]:
        backend = TransformersBackend(TransformersSettings(model=str(folder), dtype="float32", max_wait_ms=200.0))
        backend.read_image = ImageFolder([media]).read
        assert (await backend.start()).takes_images
        try:
            replies = await asyncio.gather(*(backend.generate(each, None) for each in asks))
            return list(replies), backend.metrics()
        finally:
            await backend.close()

    return asyncio.run(run())


def plain(folder: Path, media: Path, asked: Ask) -> tuple[dict[str, Any], Any]:
    """The inputs that the model's own processor makes of an ask, and the model."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def content(part: TextPart | ImagePart) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": part.text.replace("<image>", "[image]")}
        return {"type": "image", "image": Image.open(io.BytesIO((media / part.sha256).read_bytes()))}

    chat = [{"role": one.role, "content": [content(part) for part in one.parts]} for one in asked.messages]
    inputs = AutoProcessor.from_pretrained(folder).apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(inputs), AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def check(folder: Path, media: Path, asks: list[Ask], replies: list[Reply]) -> None:
    for asked, reply in zip(asks, replies, strict=True):
        inputs, model = plain(folder, media, asked)
        made = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        length = inputs["input_ids"].shape[1]
        assert list(reply.token_ids) == made.sequences[0, length:].tolist()
        own = [float(step[0].log_softmax(-1)[token]) for step, token in zip(made.logits, reply.token_ids, strict=True)]
        assert reply.logprobs == pytest.approx(own, abs=1e-4)
        shown = sum(len(message.images) for message in asked.messages)
        assert (reply.usage.prompt_tokens, reply.usage.image_tokens) == (length, IMAGE_TOKENS * shown)


def test_asks_with_and_without_pictures_share_a_batch_and_say_what_generate_says(
    model: Path, media: Path, seen: dict[str, ImagePart]
) -> None:
    asks = asks_of(seen)
    replies, figures = answered(model, media, *asks)
    check(model, media, asks, replies)
    assert len({reply.token_ids for reply in replies}) == len(asks)  # no two saw the same in the same order
    assert (figures["batches"], figures["passes"]) == (1, 12)


def test_a_model_that_forgets_looks_at_one_prompt_at_a_time(
    tmp_path: Path, media: Path, seen: dict[str, ImagePart]
) -> None:
    """Its cache holds the last 16 tokens alone, which cannot be put beside another's."""
    folder = make_tiny_vision_model(tmp_path, text={"model_type": "mistral", "sliding_window": 16})
    asks = asks_of(seen)
    replies, figures = answered(folder, media, *asks)
    check(folder, media, asks, replies)
    assert figures["batches"] == len(asks)


def test_a_text_model_joins_unless_it_forgets() -> None:
    from transformers import LlamaConfig, MistralConfig

    assert joins(LlamaConfig(num_hidden_layers=2))
    assert not joins(MistralConfig(num_hidden_layers=2, sliding_window=16))


def test_a_picture_that_is_not_there_is_named(model: Path, media: Path) -> None:
    with pytest.raises(ReplyError, match=r"f{64} is not in") as caught:
        answered(model, media, ask(user("What?", [ImagePart(sha256="f" * 64)])))
    assert caught.value.kind == "malformed"


def test_a_text_model_that_is_said_to_see_is_refused_at_the_start(tiny_model: Path) -> None:
    backend = TransformersBackend(TransformersSettings(model=str(tiny_model), images=True))
    with pytest.raises(AgentError, match="has no processor of images; take the key away"):
        asyncio.run(backend.start())


def test_positions_that_count_rows_and_columns_go_on_where_the_picture_ended() -> None:
    """Qwen2-VL: a picture of 4 x 8 patches takes 8 tokens and 4 positions, so positions run behind the tokens."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={"embed_dim": 32, "hidden_size": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2},
        image_token_id=60,
        vision_start_token_id=61,
        vision_end_token_id=62,
    )
    model: Any = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.3)
    picture = torch.randn(32, 3 * 2 * 4 * 4)  # [patches, channels x frames x height x width]
    rows, expected = [], []
    for ids in ([1, 2, *SHOWN, 9], [3, 4, 5, 6, 7, *SHOWN, 9], [8, 9, 10]):
        inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if 60 in ids:
            types = torch.tensor([[int(token == 60) for token in ids]])
            shape = torch.tensor([[1, 4, 8]])
            inputs |= {"mm_token_type_ids": types, "pixel_values": picture, "image_grid_thw": shape}
        seen = inputs if 60 in ids else {}
        rows.append(Row(ids, Sampling(max_tokens=8, temperature=0.0), pictures=seen))
        made = model.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected.append(made[0, len(ids) :].tolist())
    batch = Batch(model, rows, str, frozenset())
    while batch.rows:
        batch.step()
    assert [row.token_ids for row in rows] == expected
