"""Drawing replies from a causal language model, many rows at once: one forward pass a token, a draw of each row's own.

Pure computation on torch tensors: knows nothing of asks, chats, adapters, threads. Shapes: B rows, T tokens, V words of
the vocabulary. A row's tokens depend on its prompt, its settings and its seed; who shares its batch moves its logits by
rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocols.errors import ReplyError
from protocols.message import FinishReason, Sampling

if TYPE_CHECKING:
    from torch import Generator, Tensor

NUCLEUS_FIRST_LOOK = 256  # most probable words looked at before all are sorted, which costs 20 times more
AT_ONCE = 64  # rows whose next tokens a GPU picks together; a CPU's caches hold the few copies of one vocabulary


@dataclass(eq=False)
class Row:
    """One reply in the making. ``dropped`` may be set from any thread: the row leaves before its next token.

    ``pictures``: what a vision model's processor made of the whole prompt, ids included; empty where there is no image.
    ``token_ids`` and ``logprobs`` are both [T]; logprobs in nats, the model's own: before temperature and top_p.
    """

    prompt_ids: list[int]
    sampling: Sampling
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    error: ReplyError | None = None
    dropped: bool = False
    chance: Generator | None = None
    pictures: dict[str, Any] = field(default_factory=dict)
    image_tokens: int = 0  # of the prompt's

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None or self.dropped

    def draw(self) -> float:
        """The row's next number, uniform from 0 up to 1."""
        import torch

        if self.chance is None:
            self.chance = torch.Generator()
            if self.sampling.seed is None:
                self.chance.seed()
            else:
                self.chance.manual_seed(self.sampling.seed)
        return float(torch.rand((), generator=self.chance, dtype=torch.float64).item())


def pick(
    logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[Callable[[], float]]
) -> list[tuple[int, float] | None]:
    """The next token of every row and its log-probability, in nats, under the model itself.

    Args:
        logits: [B, V], on a device that computes in float64.
        draws: give a number from 0 up to 1; not called at temperature 0.
    Returns: by row; None: its logits hold NaN, as those of a training that diverged do.
    """
    picked: list[tuple[int, float] | None] = []
    at_once = AT_ONCE if logits.is_cuda else 1
    for at in range(0, len(logits), at_once):
        here = slice(at, at + at_once)
        picked += _pick(logits[here], samplings[here], draws[here])
    return picked


def _pick(
    logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[Callable[[], float]]
) -> list[tuple[int, float] | None]:
    import torch

    logits = logits.double()
    logprobs = logits.log_softmax(-1)
    tokens = logits.argmax(-1, keepdim=True)
    drawing = [number for number, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawing:
        figures = [(samplings[number].temperature, samplings[number].top_p, draws[number]()) for number in drawing]
        columns = torch.tensor(figures, dtype=torch.float64, device=logits.device)
        temperature, top_p, uniform = (columns[:, at, None] for at in range(3))
        rows = torch.tensor(drawing, device=logits.device)
        drawn = logits[rows]
        probs = ((drawn - drawn.amax(-1, keepdim=True)) / temperature).softmax(-1)
        tokens[rows] = _drawn(nucleus(probs, top_p), uniform)
    chosen, broken = logprobs.gather(-1, tokens)[:, 0].tolist(), logprobs.isnan().any(-1).tolist()
    return [
        None if bad else (token, logprob)
        for token, logprob, bad in zip(tokens[:, 0].tolist(), chosen, broken, strict=True)
    ]


def _drawn(probs: Tensor, uniform: Tensor) -> Tensor:
    """Inverts the distribution along the vocabulary: rounding moves a draw only at the boundary of two words."""
    import torch

    cumulative = probs.cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).clamp(max=probs.shape[-1] - 1)


def nucleus(probs: Tensor, top_p: Tensor) -> Tensor:
    """The most probable words that together reach ``top_p``, the others at 0; not scaled up again.

    Args: probs: [B, V]. top_p: [B, 1]; all words stay where it is 1.
    Source: Holtzman et al. 2020, arXiv:1904.09751, sec. 3.1.
    """
    rows = (top_p[:, 0] < 1.0).nonzero()[:, 0]
    if not len(rows):
        return probs
    inside, probs, top_p = probs.clone(), probs[rows], top_p[rows]
    for count in (min(NUCLEUS_FIRST_LOOK, probs.shape[-1]), probs.shape[-1]):
        values, words = probs.topk(count)
        if (values.sum(-1, keepdim=True) >= top_p).all():
            break
    kept = values.where(values.cumsum(-1) - values < top_p, 0.0)
    inside[rows] = probs.new_zeros(probs.shape).scatter(-1, words, kept)
    return inside


def side_by_side(caches: Sequence[Any], width: int) -> Any:
    """One cache of many, each of one row: they end together, at ``width`` tokens, and what stands before is padding."""
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache

    joined = DynamicCache()
    for number, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        fitted = [
            [pad(states, (0, 0, width - states.shape[2], 0)) for states in (layer.keys, layer.values)]
            for layer in layers
        ]
        joined.update(*(torch.cat(states) for states in zip(*fitted, strict=True)), number)
    return joined


def joins(config: Any) -> bool:
    """Whether ``side_by_side`` is for this model: one that forgets what is far back keeps it in another way."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def _last(output: Any) -> Tensor:
    """[B, V] float32: what a pass says comes next, where it can be computed with in float64."""
    logits: Tensor = output.logits[:, -1].float()
    return logits if logits.device.type in {"cpu", "cuda"} else logits.cpu()


class Batch:
    """Rows that speak at once, each until it is done. Rows that are done leave; none joins.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        decode: token ids -> text, special tokens left out.
        ends: the tokens that end a turn.
    """

    def __init__(
        self, model: Any, rows: Sequence[Row], decode: Callable[[list[int]], str], ends: frozenset[int]
    ) -> None:
        import torch

        self.rows = list(rows)
        self._model, self._decode, self._ends = model, decode, ends
        self._cache: Any = None
        longest = max(len(row.prompt_ids) for row in rows)
        padding = [longest - len(row.prompt_ids) for row in rows]
        filler = next(iter(ends), 0)  # masked out: any word does
        ids = [[filler] * pad + row.prompt_ids for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        self._input_BT = torch.tensor(ids, device=model.device)
        self._mask_BT = torch.tensor(mask, device=model.device)
        self._position_BT = (self._mask_BT.cumsum(-1) - 1).clamp(min=0)

    def step(self) -> list[Row]:
        """Draw one token for every row.

        Returns: the rows that are done now and have left; the batch is over when ``rows`` is empty.
        """
        self._leave()  # those who were dropped since
        if not self.rows:
            return []
        spoke = self.rows
        picked = pick(self._forward(), [row.sampling for row in spoke], [row.draw for row in spoke])
        for row, found in zip(spoke, picked, strict=True):
            self._extend(row, found)
        self._leave()
        if self.rows:
            self._feed()
        return [row for row in spoke if row.done]

    def _forward(self) -> Tensor:
        """[B, V] float32: what comes next."""
        import torch

        if self._cache is None and any(row.pictures for row in self.rows):
            return self._look()
        with torch.inference_mode():
            output = self._model(
                input_ids=self._input_BT,
                attention_mask=self._mask_BT,
                position_ids=self._position_BT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        self._cache = output.past_key_values
        return _last(output)

    def _look(self) -> Tensor:
        """The same for prompts with pictures: each is read alone, as every model lays out several prompts' pictures in
        its own way, and what the model remembers of them is put side by side."""
        import torch

        read = [self._read(row) for row in self.rows]
        self._cache = side_by_side([cache for _, cache, _ in read], self._mask_BT.shape[1])
        self._position_BT = self._position_BT[:, -1:] + torch.tensor([[ahead] for *_, ahead in read]).to(self._mask_BT)
        return torch.cat([logits for logits, *_ in read])

    def _read(self, row: Row) -> tuple[Tensor, Any, int]:
        """One whole prompt: [1, V] what comes next, the cache, and how far positions run ahead of tokens: models that
        count a picture's rows and columns keep that to themselves."""
        import torch

        pictures, row.pictures = row.pictures, {}  # they take room, and are seen once
        inputs = pictures or {"input_ids": torch.tensor([row.prompt_ids])}
        with torch.inference_mode():
            moved = {name: value.to(self._model.device) for name, value in inputs.items()}
            output = self._model(**moved, use_cache=True, logits_to_keep=1)
        ahead = getattr(self._model.base_model, "rope_deltas", None) if pictures else None  # of the last picture
        return _last(output), output.past_key_values, 0 if ahead is None else int(ahead)

    def _extend(self, row: Row, found: tuple[int, float] | None) -> None:
        if found is None:
            what = "the model's logits are not numbers; its weights or its adapter are broken"
            row.error = ReplyError(what, "malformed")
            return
        token, logprob = found
        row.token_ids.append(token)
        row.logprobs.append(logprob)
        if token in self._ends:
            self._finish(row, "stop")
        elif any(stop in self._tail(row) for stop in row.sampling.stop):
            self._finish(row, "stop", row.sampling.stop)
        elif len(row.token_ids) >= row.sampling.max_tokens:
            self._finish(row, "length")

    def _tail(self, row: Row) -> str:
        """The end of the text, long enough for every stop string that the last token may have completed."""
        longest = max(len(stop.encode("utf-8", "replace")) for stop in row.sampling.stop)
        return self._decode(row.token_ids[-longest - 8 :])  # a token is a byte at least; some for half letters before

    def _finish(self, row: Row, reason: FinishReason, stops: Sequence[str] = ()) -> None:
        row.text, row.finish_reason = self._decode(row.token_ids), reason
        found = [at for at in (row.text.find(stop) for stop in stops) if at >= 0]
        row.text = row.text[: min(found)] if found else row.text

    def _leave(self) -> None:
        import torch

        staying = [number for number, row in enumerate(self.rows) if not row.done]
        if len(staying) == len(self.rows):
            return
        index = torch.tensor(staying, device=self._mask_BT.device, dtype=torch.long)
        self.rows = [self.rows[number] for number in staying]
        self._input_BT, self._mask_BT = self._input_BT[index], self._mask_BT[index]
        self._position_BT = self._position_BT[index]
        if self._cache is not None and staying:
            self._cache.batch_select_indices(index)

    def _feed(self) -> None:
        """The drawn tokens are what the next pass reads; all before them is in the cache."""
        import torch

        last = [[row.token_ids[-1]] for row in self.rows]
        self._input_BT = torch.tensor(last, device=self._mask_BT.device)
        self._mask_BT = torch.cat([self._mask_BT, torch.ones_like(self._input_BT)], dim=-1)
        self._position_BT = self._position_BT[:, -1:] + 1
