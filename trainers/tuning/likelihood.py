"""How likely one agent finds what another said: replies scored under the base and its adapters.

Importing this module is cheap; torch and PEFT load with the first scoring.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trainers.selection.example import Example
from trainers.tuning.tokenise import RowTokeniser, TokenRow

if TYPE_CHECKING:
    import torch

BASE = "base"  # the reader without an adapter


class Likelihood(msgspec.Struct, frozen=True, kw_only=True):
    """The replies of ``speaker`` under ``reader``: means over all their tokens, in nats a token."""

    speaker: str
    reader: str
    nll: float  # -log p_reader of the token that was said
    kl: float  # KL(p_speaker || p_reader) over the whole vocabulary, behind the same text
    tokens: int


def score_replies(
    model: Any,
    tokenizer: Any,
    replies: Mapping[str, Sequence[Example]],
    adapters: Mapping[str, Path],
    *,
    batch_size: int = 4,
    max_length: int = 2048,
) -> list[Likelihood]:
    """Score every agent's replies under every adapter and under the base.

    A reply is scored behind the very chat it answered, as the tokens it was sampled as where the backend told them. The
    KL is taken over whole distributions at each place of the reply, not estimated from the tokens that were drawn; both
    distributions are those of temperature 1, whatever the reply was drawn with.

    Args:
        model: the base, a causal language model of transformers; given back as it came.
        replies: agent -> what it said.
        adapters: agent -> the folder of the adapter it spoke with; an agent that is not there spoke as the base.
        max_length: longer rows, prompt and reply together, are left out.
    Returns: a row for every speaker with a reply and every reader, ``BASE`` the last of these.
    Raises: TrainerError: a reply is not of this model.
    Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 4: likelihood of other agents' replies, KL between
        agents and from the base. They let a third model read (Gemma-2 2B); here the agents read each other.
    """
    tokenise = RowTokeniser(tokenizer, vocab_size=model.get_input_embeddings().num_embeddings)
    found: list[Likelihood] = []
    with _Readers(model, adapters) as readers:
        for speaker, examples in replies.items():
            rows = [row for row in map(tokenise, examples) if row.completion_ids and row.num_tokens <= max_length]
            if rows:
                found += _score(readers, speaker if speaker in adapters else BASE, speaker, rows, batch_size)
    return found


class _Readers:
    """The base with all adapters in it, one of which, or none, is on."""

    def __init__(self, model: Any, adapters: Mapping[str, Path]) -> None:
        self._model, self._adapters = model, adapters
        self._slots = {agent: f"slot{number}" for number, agent in enumerate(adapters)}  # names may hold dots
        self.names = (*adapters, BASE)

    def __enter__(self) -> _Readers:
        from peft import PeftModel

        self._training = self._model.training
        self._joined: Any = self._model
        for agent, folder in self._adapters.items():
            if self._joined is self._model:
                self._joined = PeftModel.from_pretrained(self._model, str(folder), adapter_name=self._slots[agent])
            else:
                self._joined.load_adapter(str(folder), adapter_name=self._slots[agent])
        self._joined.eval()
        return self

    def __exit__(self, *_: object) -> None:
        if self._adapters:
            self._joined.unload()
            vars(self._model).pop("peft_config", None)  # else the next adapter would be taken for one more
        self._model.train(self._training)

    @contextmanager
    def read_as(self, name: str) -> Iterator[Any]:
        """Yields: the model that speaks as ``name``."""
        if not self._adapters:
            yield self._joined
        elif name == BASE:
            with self._joined.disable_adapter():
                yield self._joined
        else:
            self._joined.set_adapter(self._slots[name])
            yield self._joined


def _score(
    readers: _Readers, own: str, speaker: str, rows: Sequence[TokenRow], batch_size: int
) -> Iterator[Likelihood]:
    import torch

    nll, kl = dict.fromkeys(readers.names, 0.0), dict.fromkeys(readers.names, 0.0)
    ordered = sorted(rows, key=lambda row: row.num_tokens)  # rows of a batch are padded to the longest
    for at in range(0, len(ordered), batch_size):
        batch = ordered[at : at + batch_size]
        said = torch.tensor([token for row in batch for token in row.completion_ids])
        spoken = _log_probs(readers, own, batch)
        for name in readers.names:
            read = spoken if name == own else _log_probs(readers, name, batch)
            nll[name] -= float(read.gather(1, said.to(read.device).unsqueeze(1)).sum())
            kl[name] += float((spoken.exp() * (spoken - read)).sum())
    tokens = sum(len(row.completion_ids) for row in rows)
    for name in readers.names:
        yield Likelihood(speaker=speaker, reader=name, nll=nll[name] / tokens, kl=kl[name] / tokens, tokens=tokens)


def _log_probs(readers: _Readers, name: str, batch: Sequence[TokenRow]) -> torch.Tensor:
    """[N, V] float32: the distributions that the N reply tokens of a batch are drawn from, row after row."""
    import torch

    length = max(row.num_tokens for row in batch)
    ids = torch.tensor([[*row.input_ids, *[0] * (length - row.num_tokens)] for row in batch])
    mask = torch.tensor([[1] * row.num_tokens + [0] * (length - row.num_tokens) for row in batch])
    with readers.read_as(name) as model, torch.no_grad():
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits
    places = [logits[at, len(row.prompt_ids) - 1 : row.num_tokens - 1] for at, row in enumerate(batch)]
    return torch.log_softmax(torch.cat(places).float(), dim=-1)
