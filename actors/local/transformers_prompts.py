"""How an ask becomes what a model of transformers reads: token ids, and for one that sees the pictures beside them."""

from __future__ import annotations

from typing import Any

from actors.local.pictures import Pictures, unmarked
from actors.local.transformers_batch import Row
from actors.models.images import ReadImage
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, Part, TextPart


class Prompts:
    """One model's chat template. ``model``: a folder or a hub name; ``sees``: whether it has a processor of images.

    Raises: AgentError: it cannot be chatted with.
    """

    def __init__(self, name: str, model: str, sees: bool, read_image: ReadImage | None) -> None:
        from transformers import AutoProcessor, AutoTokenizer

        self._name, self._read_image = name, read_image
        self._template: Any = (AutoProcessor if sees else AutoTokenizer).from_pretrained(model)
        if sees and not hasattr(self._template, "image_processor"):
            raise AgentError(f"images=true, but model={model!r} has no processor of images; take the key away")
        self.tokenizer: Any = self._template.tokenizer if sees else self._template
        self._marker: str | None = getattr(self._template, "image_token", None) if sees else None
        self._sees = sees
        self._pictures = Pictures()
        if not self._template.chat_template:
            raise AgentError(f"model={model!r} has no chat template; use an instruction-tuned model")

    def fill(self, row: Row, ask: Ask) -> None:
        """Give the row its prompt. Raises: ReplyError (malformed): the model cannot be asked that."""
        pictured = any(message.images for message in ask.messages)
        if pictured and not self._sees:
            raise ReplyError(f"ask {ask.id} carries an image, but {self._name} reads only text", "malformed")
        chat = [
            {"role": one.role, "content": [self._part(part) for part in one.parts] if self._sees else one.text}
            for one in ask.messages
        ]
        try:
            inputs = dict(
                self._template.apply_chat_template(
                    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
                )
            )
        except Exception as err:  # the template is the model's own program and may raise anything
            raise ReplyError(f"the chat template of {self._name} refused ask {ask.id}: {err}", "malformed") from err
        row.prompt_ids = inputs["input_ids"][0].tolist()
        row.pictures = inputs if pictured else {}

    def _part(self, part: Part) -> dict[str, Any]:
        if isinstance(part, TextPart):
            return {"type": "text", "text": unmarked(part.text, self._marker)}
        return {"type": "image", "image": self._pictures.get(part, self._read_image)}
