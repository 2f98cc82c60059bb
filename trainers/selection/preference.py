"""Which answers are preferred to which: the trees of a debate as rows. Pure: no model, no disk, no Ray.

Source: Zhou et al. 2025 (Debate, Reflect, and Distill), arXiv:2506.03541, sec. 3.3, and its released code. Gold labels
are its setting; by consensus the same rows follow from a debate that never saw gold (``label``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import msgspec

from protocols.errors import ConfigError
from protocols.graph import Debate, Utterance
from protocols.machine import derive_seed
from protocols.message import Message, user
from protocols.prompt import PromptSet
from protocols.task import render_question
from protocols.tree import Root, preference_tree, question_prompt, tracks
from trainers.selection.context_pack import Block, CountTokens, Limits, Note, pack_blocks
from trainers.selection.preference_row import Preference
from trainers.selection.retold import teacher_examples
from trainers.selection.rule import RuleOptions, right
from trainers.selection.select import Selection
from trainers.selection.wording import ending, worded

Pairing = Literal["same_round", "transition"]
Pair = tuple[Utterance, Utterance]  # chosen, rejected
_NOTES: dict[str, Literal["reflection", "feedback"]] = {"reflect": "reflection", "critique": "feedback"}  # by phase
_SHOWING = {"debate", "shown_answer", "shown_reflection", "shown_feedback"}


class TreeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a debate's rounds become pairs.

    ``same_round``: every right answer over every wrong one of its round, as in the released code. ``transition``, as
    the paper tells it: those that turned right over those that turned wrong or stayed so, from round 1 on. ``root`` is
    what both answer: from round 1 on the question with what was said of the round before, or the question alone.
    """

    pairing: Pairing = "same_round"
    root: Literal["debate", "question"] = "debate"
    reflection: bool = True  # shown in a debate's prompt, as is feedback; without them the paper's ablations
    feedback: bool = True
    limits: Limits = Limits()


class Prompter:
    """Prompts of a debate's rounds, written again with what fits.

    Args:
        prompts: the set that the debate was held with.
        count: the student's tokens of a text.
    Raises: ConfigError: the set shows no blocks of answers; ``reflect``'s do.
    """

    def __init__(self, prompts: PromptSet, count: CountTokens) -> None:
        if not shows_blocks(prompts):
            raise ConfigError(
                f"prompt set {prompts.name!r} shows no blocks of answers, so later rounds' prompts cannot be packed; "
                "use one of the protocol reflect, or root: question"
            )
        self._prompts, self._count = prompts, count

    def __call__(self, debate: Debate, root: Root, settings: TreeSettings) -> list[tuple[Message, ...]]:
        """The prompts of a root, each with other answers of the round before; one where all fit."""
        blocks = _blocks(debate, root.round - 1, settings)
        random.Random(derive_seed(debate.seed, "pack", root.round)).shuffle(blocks)
        *head, asked = root.prompt
        return [
            (*head, user(self._written(debate, context), asked.images))
            for context in pack_blocks(blocks, settings.limits, render=self._shown, count=self._count)
        ]

    def _written(self, debate: Debate, context: Sequence[str]) -> str:
        return self._prompts.fill("debate", question=render_question(debate.task), blocks="\n".join(context))

    def _shown(self, number: int, block: Block) -> str:
        label, told = str(number), 0
        texts = [self._prompts.fill("shown_answer", label=label, reply=block.reply)]
        for note in block.notes:
            if note.kind == "reflection":
                texts.append(self._prompts.fill("shown_reflection", label=label, reply=note.text))
            else:
                told += 1
                texts.append(self._prompts.fill("shown_feedback", label=label, number=str(told), reply=note.text))
        return "\n".join(texts)


def shows_blocks(prompts: PromptSet) -> bool:
    """Whether the set shows a round's answers as blocks, so that a prompt can be written with some of them."""
    return prompts.parts >= _SHOWING


def preference_rows(
    debate: Debate,
    agent: str,
    *,
    options: RuleOptions,
    settings: TreeSettings,
    prompter: Prompter | None = None,
) -> list[Preference]:
    """One agent's preferences of a debate, tree by tree: pairs under the same prompt follow each other.

    The answers are all agents', the learner's own among them, worded as supervised rows word them (``options.form``).
    A task that is held out gives none, nor does a round without a right or a wrong answer. An answer that could not be
    read is wrong; one that was never graded is neither.

    Args:
        options: ``label``, ``min_support`` and ``form``; the others have no part in pairs.
        prompter: writes the prompts of later rounds; without one they are as they were asked, whatever their length.
    """
    if debate.task.held_out:
        return []
    rows = []
    for root in _roots(debate, agent, settings):
        pairs = [
            (chosen, rejected)
            for chosen, rejected in _pairs(debate, root, options, settings.pairing)
            if worded(chosen, options.form) != worded(rejected, options.form)
        ]
        prompts = [root.prompt]
        if pairs and prompter is not None and root.round > 0 and settings.root == "debate":
            prompts = prompter(debate, root, settings)
        rows += [
            _row(debate, agent, pair, prompt, options, settings.pairing, f":{number}" if len(prompts) > 1 else "")
            for number, prompt in enumerate(prompts)
            for pair in pairs
        ]
    return rows


def select_preferences(
    selection: Selection, debate: Debate, settings: TreeSettings, prompter: Prompter | None = None
) -> dict[str, list[Preference]]:
    """The preferences that a debate gives, by who learns from them; those without a row are left out.

    Who: ``selection.students``. The rest as in ``preference_rows``.
    """
    chosen = {
        agent: preference_rows(debate, agent, options=selection, settings=settings, prompter=prompter)
        for agent in selection.students(debate.cast)
    }
    return {agent: rows for agent, rows in chosen.items() if rows}


class Amplification(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows debates give where plain distillation has the teachers' right openings alone."""

    distilled: int = 0  # those openings
    supervised: int = 0  # right answers of the teachers, of all rounds
    pairs: int = 0
    preferences: int = 0  # rows: a pair is one under each of its prompts

    @property
    def factor(self) -> float:
        """Rows of both sets for each of plain distillation; 0 where that has none."""
        return (self.supervised + self.preferences) / self.distilled if self.distilled else 0.0

    def __add__(self, other: Amplification) -> Amplification:
        return Amplification(**{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__})


def amplification_of(
    debate: Debate, agent: str, options: RuleOptions, preferences: Iterable[Preference]
) -> Amplification:
    """Of one debate and one student; the sum is that of a run."""
    taught = [] if debate.task.held_out else teacher_examples(debate, agent, options)
    openings = {node.id for node in debate.turns(round=0)}
    rows = list(preferences)
    return Amplification(
        distilled=sum(row.node_ids[0] in openings for row in taught),
        supervised=len(taught),
        pairs=len({row.node_ids for row in rows}),
        preferences=len(rows),
    )


def _roots(debate: Debate, agent: str, settings: TreeSettings) -> list[Root]:
    """What was answered, with the answers: by the prompt they share, or by their round under the question alone."""
    if settings.root == "debate":
        return preference_tree(debate)
    prompt, rounds = question_prompt(debate, agent), sorted({node.round for node in debate.turns()})
    return [Root(round=number, prompt=prompt, children=tuple(debate.turns(round=number))) for number in rounds]


def _pairs(debate: Debate, root: Root, options: RuleOptions, pairing: Pairing) -> Iterator[Pair]:
    marks = [(node, right(debate, node, options)) for node in root.children]
    if pairing == "transition":
        before = _before(debate)
        marks = [(node, mark) for node, mark in marks if node.id in before]
        # who was right already has not turned, so nothing is learned from its staying so
        marks = [(node, mark) for node, mark in marks if not (mark and right(debate, before[node.id], options))]
    for chosen in (node for node, mark in marks if mark is True):
        for rejected in (node for node, mark in marks if mark is False):
            yield chosen, rejected


def _before(debate: Debate) -> dict[str, Utterance]:
    """Node -> the answer of its seat in the round before."""
    return {
        later.id: earlier
        for track in tracks(debate).values()
        for earlier, later in pairwise(track)
        if earlier.round == later.round - 1
    }


def _blocks(debate: Debate, number: int, settings: TreeSettings) -> list[Block]:
    """Each answer of a round with what was said about it, as the switches want it."""
    wanted = {"reflection": settings.reflection, "feedback": settings.feedback}
    about: dict[str, list[Note]] = {}
    for node in debate.utterances:
        kind = _NOTES.get(node.phase)
        if kind is not None and node.round == number and wanted[kind]:
            about.setdefault(_seat(node).rpartition("-")[2], []).append(Note(kind, node.reply.text))
    return [
        Block(node.reply.text, tuple(sorted(about.get(_seat(node), ()), key=lambda note: note.kind == "feedback")))
        for node in debate.turns(round=number)
    ]


def _seat(node: Utterance) -> str:
    """Where a node's speaker sits; feedback is from one seat to another: "0-3"."""
    return node.id.partition("~")[0].rpartition(".")[2]


def _row(
    debate: Debate,
    agent: str,
    pair: Pair,
    prompt: tuple[Message, ...],
    options: RuleOptions,
    rule: str,
    number: str,
) -> Preference:
    chosen, rejected = pair
    return Preference(
        id=f"{debate.id}:{chosen.id}>{rejected.id}:{rule}{number}",
        agent=agent,
        rule=rule,
        debate_id=debate.id,
        node_ids=(chosen.id, rejected.id),
        prompt=prompt,
        chosen=worded(chosen, options.form),
        rejected=worded(rejected, options.form),
        finish_reasons=(ending(chosen, options.form), ending(rejected, options.form)),
    )
