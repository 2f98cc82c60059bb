"""A vision model of 150 thousand random weights, made on the spot: Idefics3, with tokenizer, processor and template.

Importable wherever ``tests`` is, Ray workers included. What it says means nothing, but every picture changes it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.message import ImagePart

NAME = "tiny-vision"
CONTEXT_TOKENS = 4096
IMAGE_TOKENS = 4  # of one image in a prompt; beside them stand two around it, and one that says that it is whole
END = "<|end|>"
_MARKERS = ("<image>", "<fake_token_around_image>", "<global-img>")
_CORPUS = (
    "What is shown in this picture? Say which colour it has, and give the answer in brackets.",
    "The answer is [red], said one of them; another says that it is green, and the judge says that they do not agree.",
    "system user assistant Question Answer debate round summary 0 1 2 3 4 5 6 7 8 9",
)
_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def make_tiny_vision_model(folder: Path, *, seed: int = 0, text: Mapping[str, Any] | None = None) -> Path:
    """Write the model and its processor into ``folder``, which is made; the same seed gives the same weights.

    ``text``: further settings of its language model.
    """
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
    )

    tokenizer = _tokenizer()
    image_processor = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 32}, max_image_size={"longest_edge": 32}
    )
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=_TEMPLATE)
    ends: dict[str, int] = {
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|start|>"),
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<pad>"),
    }
    config = Idefics3Config(
        image_token_id=processor.image_token_id,
        scale_factor=2,
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 32,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,  # of 32 each: vLLM's attention on CPU knows no smaller heads
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT_TOKENS,
            "initializer_range": 0.2,
            **ends,
            **(text or {}),
        },
        **ends,
    )
    torch.manual_seed(seed)
    model = Idefics3ForConditionalGeneration(config)
    with torch.no_grad():  # at the usual size random weights let little of a picture through
        for name, weights in model.named_parameters():
            if "norm" not in name and "embeddings" not in name and "text_model" not in name:
                weights.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(red: int, green: int, blue: int, *, width_px: int = 32, height_px: int = 32) -> bytes:
    """A PNG of one colour."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (red, green, blue)).save(out, "PNG")
    return out.getvalue()


def keep(data: bytes, media: Path) -> ImagePart:
    """Put an image where a run keeps its own."""
    sha256 = hashlib.sha256(data).hexdigest()
    (media / sha256).write_bytes(data)
    return ImagePart(sha256=sha256)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<|start|>", END, *_MARKERS, "<end_of_utterance>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|start|>",
        eos_token=END,
        pad_token="<pad>",
        model_max_length=CONTEXT_TOKENS,
    )
