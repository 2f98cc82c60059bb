"""Preference pairs packed into sequences that hold every shared prefix once. Pure: no torch, no tokenizer.

A pack is a forest of tokens laid out depth first. So the tokens under a token are the ones right behind it, and one
number a token says who attends to whom: token i sees token j where j <= i < ends[j].
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

import msgspec

Tokens = tuple[int, ...]


class TokenPair(msgspec.Struct, frozen=True):
    """A preference as token ids: a prompt of at least one, two completions. ``weight`` is the pair's in the loss."""

    tree: str  # pairs of one tree stay together
    prompt_ids: array[int]
    chosen_ids: array[int]
    rejected_ids: array[int]
    weight: float = 1.0

    @property
    def sequences(self) -> tuple[Tokens, Tokens]:
        """The prompt with the chosen completion behind it, and with the rejected one."""
        return (*self.prompt_ids, *self.chosen_ids), (*self.prompt_ids, *self.rejected_ids)

    @property
    def num_tokens(self) -> int:
        """Of both sequences, each with a prompt of its own."""
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


class Branch(msgspec.Struct, frozen=True):
    """A completion under its prompt: its last ``length`` tokens, the last of all being at ``last`` in the pack."""

    last: int
    length: int


class PackedPair(msgspec.Struct, frozen=True):
    """Two branches of a pack by their index, and which of the pairs that were packed it was."""

    chosen: int
    rejected: int
    weight: float
    index: int


class Pack(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence for the model. Its first four fields are all [T].

    A completion's token is scored at its parent: the first one at the prompt's last token, which all branches share.
    """

    input_ids: array[int]
    position_ids: array[int]  # as in the sequence that a token belongs to, not as in the pack
    parents: array[int]  # where the token before it lies; -1 for the first of a prompt
    ends: array[int]  # the tokens from here to there, this one included, are those that see this one
    branches: tuple[Branch, ...]
    pairs: tuple[PackedPair, ...]
    num_expanded: int  # tokens of the pairs one by one

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    def completion(self, branch: Branch) -> list[int]:
        """[C]: where the completion's tokens lie, in their order."""
        return self._path(branch.last, branch.length)

    def sequence(self, branch: Branch) -> list[int]:
        """[P + C]: the token ids of prompt and completion."""
        return [self.input_ids[at] for at in self._path(branch.last, self.position_ids[branch.last] + 1)]

    def _path(self, last: int, length: int) -> list[int]:
        path = []
        for _ in range(length):
            path.append(last)
            last = self.parents[last]
        return path[::-1]


class Packing(msgspec.Struct, frozen=True):
    """All packs of a training. ``refused``: indices of the pairs that are longer than a pack by themselves."""

    packs: tuple[Pack, ...]
    refused: tuple[int, ...]

    @property
    def token_ratio(self) -> float:
        """How many tokens the pairs have one by one, to each that the packs have; 1.0 where there is nothing."""
        total = sum(pack.num_tokens for pack in self.packs)
        return sum(pack.num_expanded for pack in self.packs) / total if total else 1.0


def pack_pairs(pairs: Sequence[TokenPair], *, token_budget: int) -> Packing:
    """Fill packs of at most ``token_budget`` tokens with whole trees; every pair is in one pack, or refused.

    Best fit, largest trees first. A tree above the budget is split between its pairs, where the fewest tokens come
    twice; no sequence is ever cut. Trees that happen to share a beginning, such as a system prompt, share it in a pack
    too.

    Raises: ValueError: a pair without a prompt, whose first token nothing could score.
    """
    trees: dict[str, list[int]] = {}
    refused, parts = list[int](), list[tuple[int, list[int]]]()
    for index, pair in enumerate(pairs):
        if not pair.prompt_ids:
            raise ValueError(f"pair {index} of tree {pair.tree!r} has no prompt; its first token cannot be scored")
        if forest_size(pair.sequences) > token_budget:
            refused.append(index)
        else:
            trees.setdefault(pair.tree, []).append(index)
    for tree in trees.values():
        parts += _split(pairs, tree, token_budget)
    packs = tuple(lay_out([(index, pairs[index]) for index in part]) for part in fill(parts, token_budget))
    return Packing(packs, tuple(refused))


def lay_out(pairs: Iterable[tuple[int, TokenPair]]) -> Pack:
    """One pack of these pairs, each with its index. Sorted sequences have their longest shared prefix next to them."""
    pairs = [*pairs]
    input_ids, position_ids, parents, ends = array("i"), array("i"), array("i"), array("i")
    lasts: dict[Tokens, int] = {}
    before: Tokens = ()
    path: list[int] = []  # where the tokens of ``before`` lie
    for ids in [*sorted({ids for _, pair in pairs for ids in pair.sequences}), ()]:
        shared = num_shared(before, ids)
        for at in path[shared:]:
            ends[at] = len(input_ids)
        del path[shared:]
        for depth, token in enumerate(ids[shared:], shared):
            parents.append(path[-1] if path else -1)
            path.append(len(input_ids))
            input_ids.append(token)
            position_ids.append(depth)
            ends.append(0)
        if ids:
            lasts[ids] = path[-1]
        before = ids
    branches: dict[Branch, int] = {}
    packed = []
    for index, pair in pairs:
        ids_of = zip(pair.sequences, (pair.chosen_ids, pair.rejected_ids), strict=True)
        chosen, rejected = (
            branches.setdefault(Branch(lasts[ids], len(completion)), len(branches)) for ids, completion in ids_of
        )
        packed.append(PackedPair(chosen, rejected, pair.weight, index))
    return Pack(
        input_ids=input_ids,
        position_ids=position_ids,
        parents=parents,
        ends=ends,
        branches=tuple(branches),
        pairs=tuple(packed),
        num_expanded=sum(pair.num_tokens for _, pair in pairs),
    )


def forest_size(sequences: Iterable[Tokens]) -> int:
    """Tokens that the sequences have with every shared prefix counted once."""
    forest: list[Tokens] = []
    return sum(_insert(forest, ids) for ids in sequences)


def num_shared(one: Tokens, other: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _insert(forest: list[Tokens], ids: Tokens) -> int:
    """Put a sequence into a sorted forest. Returns: how many tokens it adds."""
    at = bisect_left(forest, ids)
    shared = max((num_shared(ids, neighbour) for neighbour in forest[max(0, at - 1) : at + 1]), default=0)
    forest.insert(at, ids)
    return len(ids) - shared


def _split(pairs: Sequence[TokenPair], tree: Sequence[int], budget: int) -> list[tuple[int, list[int]]]:
    """A tree as parts within the budget, each with its size: one part if it fits. Neighbours share their prompt."""
    parts: list[tuple[int, list[int]]] = []
    part, forest, size = list[int](), list[Tokens](), 0
    for index in sorted(tree, key=lambda index: pairs[index].sequences):
        grown = forest.copy()
        added = sum(_insert(grown, ids) for ids in pairs[index].sequences)
        if size + added > budget:
            parts.append((size, part))
            part, grown, size = [], [], 0
            added = sum(_insert(grown, ids) for ids in pairs[index].sequences)
        part.append(index)
        forest, size = grown, size + added
    return [*parts, (size, part)]


def fill(parts: Iterable[tuple[int, list[int]]], budget: int) -> list[list[int]]:
    """Parts put together, each with its size, each where it leaves the least room; one above the budget is alone."""
    filled: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # sorted: the room that is left, and in which
    for size, part in sorted(parts, key=lambda item: -item[0]):
        at = bisect_left(rooms, (size, 0))
        if at < len(rooms):
            room, place = rooms.pop(at)
        else:
            room, place = budget, len(filled)
            filled.append([])
        filled[place] += part
        insort(rooms, (room - size, place))
    return filled
