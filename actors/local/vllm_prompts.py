"""How an ask becomes what a vLLM engine takes: by the tokenizer's chat template, or for a model that sees by vLLM.

vLLM knows of every vision model how its template wants images and how many tokens stand for each, so the prompts of
those are made by vLLM and come with their true length. An image goes by its hash: vLLM makes it ready once, and the
prefix cache knows it again in the next turn.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any, Protocol

from actors.local.pictures import Pictures, unmarked
from actors.local.vllm_drive import EnginePrompt
from actors.models.images import ReadImage
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, Message, Part, TextPart


class Prompts(Protocol):
    """What one model is asked, made out of asks."""

    async def of(self, ask: Ask) -> EnginePrompt:
        """Raises: ReplyError (malformed): the model cannot be asked that."""
        ...


class TextPrompts:
    """For models that read. ``model``: a folder or a hub name. Raises: AgentError: it cannot be chatted with."""

    def __init__(self, name: str, model: str) -> None:
        from transformers import AutoTokenizer

        self._name, self._tokenizer = name, AutoTokenizer.from_pretrained(model)
        if not self._tokenizer.chat_template:
            raise AgentError(f"model={model!r} has no chat template; use an instruction-tuned model")

    async def of(self, ask: Ask) -> EnginePrompt:
        if any(message.images for message in ask.messages):
            raise ReplyError(f"ask {ask.id} carries an image, but {self._name} reads only text", "malformed")
        chat = [{"role": message.role, "content": message.text} for message in ask.messages]
        try:
            ids = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        except Exception as err:  # the template is the model's own program and may raise anything
            raise ReplyError(f"the chat template of {self._name} refused ask {ask.id}: {err}", "malformed") from err
        return {"prompt_token_ids": list(ids)}


class VisionPrompts:
    """For models that see. ``renderer``: of the engine. Raises: AgentError: the model takes no images."""

    def __init__(self, name: str, renderer: Any, read_image: ReadImage | None) -> None:
        if renderer.mm_processor is None or not renderer.mm_processor.info.allowed_mm_limits.get("image"):
            raise AgentError(f"images=true, but vLLM knows {name} as a model that sees nothing; take the key away")
        self._name, self._renderer, self._read_image = name, renderer, read_image
        self._marker = getattr(renderer.mm_processor.info.get_hf_processor(), "image_token", "")
        self._pictures = Pictures()

    async def of(self, ask: Ask) -> EnginePrompt:
        from vllm.renderers import ChatParams

        chat = await asyncio.to_thread(lambda: [self._message(message) for message in ask.messages])
        try:
            _, (prompt,) = await self._renderer.render_chat_async(
                [chat],
                ChatParams(chat_template_kwargs={"add_generation_prompt": True}),
                dataclasses.replace(self._renderer.default_chat_tok_params, max_total_tokens=None),  # we look ourselves
                skip_mm_cache=True,  # it counts on every prompt being sent, but one that is too long is not
            )
        except Exception as err:  # the model's template and processor are its own programs and may raise anything
            raise ReplyError(f"ask {ask.id} cannot be shown to {self._name}: {err}", "malformed") from err
        return dict(prompt)

    def _message(self, message: Message) -> dict[str, Any]:
        return {"role": message.role, "content": [self._part(part) for part in message.parts]}

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": unmarked(part.text, self._marker)}
        return {"type": "image_pil", "image_pil": self._pictures.get(part, self._read_image), "uuid": part.sha256}


def image_tokens(prompt: EnginePrompt) -> int:
    """How many of a prompt's tokens stand for its images."""
    return sum(place.get_num_embeds() for place in prompt.get("mm_placeholders", {}).get("image", ()))
