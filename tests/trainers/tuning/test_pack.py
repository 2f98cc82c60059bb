"""A pack holds what it was given, once; trees stay whole where they can, and nothing is ever cut."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.tuning.pack import Pack, TokenPair, forest_size, lay_out, pack_pairs

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6)  # few tokens, so that prefixes meet


def pair(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int], *, tree: str = "d") -> TokenPair:
    return TokenPair(tree, array("i", prompt), array("i", chosen), array("i", rejected))


PAIRS = st.lists(st.builds(pair, TOKENS, TOKENS, TOKENS, tree=st.sampled_from("abc")), max_size=12)


def test_a_tree_by_hand() -> None:
    """Two pairs under the prompt 1 2, which share their chosen reply 3 4; and one under the prompt 1 2 3."""
    pairs = [pair([1, 2], [3, 4], [5]), pair([1, 2], [3, 4], [3, 6]), pair([1, 2, 3], [7], [4])]
    pack = lay_out(enumerate(pairs))
    assert pack.input_ids.tolist() == [1, 2, 3, 4, 6, 7, 5]
    assert pack.position_ids.tolist() == [0, 1, 2, 3, 3, 3, 2]
    assert pack.parents.tolist() == [-1, 0, 1, 2, 2, 2, 1]
    assert pack.ends.tolist() == [7, 7, 6, 4, 5, 6, 7]
    assert [(branch.last, branch.length) for branch in pack.branches] == [(3, 2), (6, 1), (4, 2), (5, 1), (3, 1)]
    assert [(pair.chosen, pair.rejected, pair.index) for pair in pack.pairs] == [(0, 1, 0), (0, 2, 1), (3, 4, 2)]
    assert pack.completion(pack.branches[2]) == [2, 4]
    assert pack.sequence(pack.branches[2]) == [1, 2, 3, 6]
    assert (pack.num_tokens, pack.num_expanded) == (7, (4 + 3) + (4 + 4) + (4 + 4))


def test_a_tree_above_the_budget_is_split_and_a_pair_above_it_refused() -> None:
    pairs = [
        pair([1, 1, 1, 1], [2], [3]),
        pair([9] * 9, [2], [3]),  # 11 tokens by itself
        pair([4, 4, 4, 4], [2], [3]),
        pair([1, 1, 1, 1], [5], [3]),
        pair([6], [2], [3], tree="other"),
    ]
    packing = pack_pairs(pairs, token_budget=10)
    assert packing.refused == (1,)
    # 7 tokens under the first prompt, with 3 of another tree beside them; 6 under the other.
    assert [sorted(pair.index for pair in pack.pairs) for pack in packing.packs] == [[0, 3, 4], [2]]
    assert [pack.num_tokens for pack in packing.packs] == [10, 6]
    assert packing.token_ratio == (10 + 10 + 10 + 4) / 16


def test_trees_share_what_they_begin_with() -> None:
    packing = pack_pairs([pair([1, 2], [3], [4]), pair([1, 2, 5], [3], [4], tree="e")], token_budget=100)
    (pack,) = packing.packs
    assert pack.num_tokens == 4 + 3
    assert pack_pairs([], token_budget=1).token_ratio == 1.0


def test_a_pair_without_a_prompt_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="pair 0 of tree 'd' has no prompt"):
        pack_pairs([pair([], [1], [2])], token_budget=10)


def attends(pack: Pack, at: int) -> list[int]:
    return [other for other in range(at + 1) if at < pack.ends[other]]


@given(PAIRS)
def test_unpacked_is_what_was_packed_and_a_token_sees_just_what_came_before_it(pairs: list[TokenPair]) -> None:
    pack = lay_out(enumerate(pairs))
    assert [pair.index for pair in pack.pairs] == list(range(len(pairs)))
    for packed, given_pair in zip(pack.pairs, pairs, strict=True):
        branches = (pack.branches[packed.chosen], pack.branches[packed.rejected])
        assert tuple(tuple(pack.sequence(branch)) for branch in branches) == given_pair.sequences
        lengths = (len(given_pair.chosen_ids), len(given_pair.rejected_ids))
        assert tuple(branch.length for branch in branches) == lengths
    for branch in pack.branches:
        seen = attends(pack, branch.last)
        assert [pack.input_ids[at] for at in seen] == pack.sequence(branch)
        assert [pack.position_ids[at] for at in seen] == list(range(len(seen)))
        assert pack.completion(branch) == seen[len(seen) - branch.length :]
    sequences = {ids for given_pair in pairs for ids in given_pair.sequences}
    prefixes = {ids[:end] for ids in sequences for end in range(1, len(ids) + 1)}
    assert pack.num_tokens == forest_size(sequences) == len(prefixes)
    assert len(pack.branches) == len(set(pack.branches))


@given(PAIRS, st.integers(1, 40))
def test_every_pair_is_in_one_pack_within_the_budget(pairs: list[TokenPair], budget: int) -> None:
    packing = pack_pairs(pairs, token_budget=budget)
    places = sorted([*packing.refused, *(pair.index for pack in packing.packs for pair in pack.pairs)])
    assert places == list(range(len(pairs)))
    assert all(0 < pack.num_tokens <= budget for pack in packing.packs)
    assert all(forest_size(pairs[index].sequences) > budget for index in packing.refused)
    assert packing == pack_pairs(pairs, token_budget=budget)
    for name in "abc":
        tree = [index for index, item in enumerate(pairs) if item.tree == name and index not in packing.refused]
        packs = [pack for pack in packing.packs if {pair.index for pair in pack.pairs} & set(tree)]
        if tree and forest_size(ids for index in tree for ids in pairs[index].sequences) <= budget:
            assert len(packs) == 1
