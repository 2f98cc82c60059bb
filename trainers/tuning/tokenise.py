"""From an example to token ids: the model's own chat template before, the sampled tokens behind. Loads no model."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import msgspec

from protocols.errors import TrainerError
from protocols.message import Message
from trainers.selection.example import EarlierReply, Example

_MARK = "moot-reply"  # stands for a reply when the template is asked what it puts behind one


class TokenRow(msgspec.Struct, frozen=True):
    """A row ready for training: ``completion_ids`` [C] carry loss, of ``prompt_ids`` [P] the spans ``earlier`` do.

    Arrays of 4 bytes a token, not tuples of 36: later epochs keep every row in memory.
    """

    prompt_ids: array[int]
    completion_ids: array[int]
    earlier: tuple[tuple[int, int], ...] = ()  # from, to (not included)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_learned(self) -> int:
        """Tokens that carry loss."""
        return len(self.completion_ids) + sum(end - start for start, end in self.earlier)

    @property
    def input_ids(self) -> list[int]:
        return [*self.prompt_ids, *self.completion_ids]

    @property
    def labels(self) -> list[int]:
        """[P + C]: -100 where there is no loss. Position t is the target at t; the model shifts."""
        labels = [-100] * len(self.prompt_ids)
        for start, end in self.earlier:
            labels[start:end] = self.prompt_ids[start:end]
        return labels + list(self.completion_ids)


class RowTokeniser:
    """Turns examples into token rows for one model.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.
        vocab_size: rows of the model's embedding; a sampled id at or above it comes from another model.
    Raises: TrainerError: the tokenizer has no chat template, or its end of turn cannot be told.
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int) -> None:
        if not tokenizer.chat_template:
            raise TrainerError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruction-tuned model, "
                "or add a chat_template to its tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self.end_of_turn = _end_of_turn(tokenizer)

    def __call__(self, example: Example) -> TokenRow:
        """Raises: TrainerError: the prompt holds images, or the tokens are not this model's."""
        if example.weight != 1.0:
            raise TrainerError(f"example {example.id!r} has weight={example.weight:g}; sft takes rows of weight 1 only")
        completion = example.token_ids or self._tokenise_text(example)
        if completion and max(completion) >= self._vocab_size:
            raise TrainerError(
                f"example {example.id!r} holds token {max(completion)}, but the model knows {self._vocab_size}; "
                "it was sampled by another model: train the model that spoke"
            )
        prompt = self.render(example.prompt)
        earlier = tuple(self._span(example, reply, prompt) for reply in example.earlier)
        return TokenRow(array("i", prompt), array("i", completion), earlier)

    def _span(self, example: Example, reply: EarlierReply, prompt_ids: list[int]) -> tuple[int, int]:
        """Where an earlier reply stands in the prompt: from what the model saw before it to its end of turn."""
        start = len(before := self.render(example.prompt[: reply.place]))
        stop = len(through := self.render(example.prompt[: reply.place + 1], replies=False))
        if prompt_ids[:stop] != through or through[:start] != before:
            raise TrainerError(
                f"the chat template of {self._tokenizer.name_or_path!r} writes an earlier reply otherwise than it was "
                f"given (example {example.id!r}), as templates do that take out thinking; set train.loss: last"
            )
        ends = [at for at in range(start, stop) if through[at] == self.end_of_turn]
        if not ends:
            return start, stop
        return start, ends[-1] + reply.ended

    def render(self, prompt: Sequence[Message], *, replies: bool = True) -> list[int]:
        """The conversation as the model sees it, right before it replies where it does."""
        if any(message.images for message in prompt):
            raise TrainerError("a prompt holds images, and sft trains on text alone; use a rule that leaves images out")
        chat = [{"role": message.role, "content": message.text} for message in prompt]
        ids: list[int] = self._tokenizer.apply_chat_template(
            chat, add_generation_prompt=replies, tokenize=True, return_dict=False
        )
        return ids

    def _tokenise_text(self, example: Example) -> tuple[int, ...]:
        ids = self._tokenizer(example.completion, add_special_tokens=False)["input_ids"]
        # A reply that hit its limit did not end its turn: teaching it to would teach to stop in mid-sentence.
        return (*ids, self.end_of_turn) if example.finish_reason != "length" else tuple(ids)


def _end_of_turn(tokenizer: Any) -> int:
    """The token that the template puts behind a reply; the tokenizer's end-of-sequence token where it puts none."""
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False)
    behind = tokenizer(text.rpartition(_MARK)[2], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    found = next((token for token in behind if token in special), tokenizer.eos_token_id)
    if found is None:
        raise TrainerError(
            f"the tokenizer of {tokenizer.name_or_path!r} names no end-of-turn token; set its eos_token, or train on "
            "replies that carry the token ids they were sampled as"
        )
    return int(found)
