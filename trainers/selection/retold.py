"""Rules whose rows put what was said under another prompt, the one that a student will be asked by."""

from __future__ import annotations

from protocols.answer import same
from protocols.dialectic import bracketed, chain_of_debate
from protocols.formats.chats import chain_chat, pair_chats
from protocols.graph import Debate
from protocols.message import assistant
from protocols.tree import question_prompt
from trainers.selection.example import Example, as_retold
from trainers.selection.rule import RuleOptions, right
from trainers.selection.wording import worded

DEFAULTS = RuleOptions()


def teacher_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """The teachers' right answers of all rounds, each under the question alone as the student is asked it.

    An agent is not taught by itself, and one that teaches learns only where ``agents`` names it.

    Source: Zhou et al. 2025 (D&R), arXiv:2506.03541, sec. 3.3: ``label: gold`` is its setting. Its code asks under a
    prompt of its own and writes answers in one form (``form: sections``), which preferences then do not share; ours do.
    """
    teaching = {name for role in options.teachers for name in debate.cast.get(role, ())}
    prompt = question_prompt(debate, agent)
    if agent in teaching and agent not in options.agents:
        return []
    return [
        as_retold(debate, node, [*prompt, assistant(worded(node, options.form))], agent=agent, rule="teacher")
        for node in debate.turns()
        if node.role in options.teachers and node.agent != agent and right(debate, node, options)
    ]


def chain_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """The chain that the debate was condensed to, under the task alone with its images; for its condenser.

    A chain whose bracketed answer is not the verdict's is left out, as is one of a debate that used gold. Of
    ``options``, ``min_support`` counts the debaters whose last answer is the verdict's.

    Source: M2D-DKTL's released code, which trains its student on every chain; that chain and verdict must agree is
        ours, as is ``min_support``.
    """
    node, chat, verdict = chain_of_debate(debate), chain_chat(debate), debate.verdict
    if node is None or chat is None or node.agent != agent:
        return []
    if verdict is None or verdict.answer is None or verdict.oracle or verdict.support < options.min_support:
        return []
    concludes = bracketed(node.reply.text, debate.task, only=True)
    if not same(concludes, verdict.as_answer, tolerance=debate.task.tolerance):
        return []
    return [as_retold(debate, node, chat, agent=agent, rule="chain")]


def rewritten_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """The pairs that were kept of a rewritten item, with its images: instruction -> response; for its rewriter.

    The rounds of a dialogue (category ocr) are a row each, under those before it. An item whose gold answer the
    rewriter was told gives nothing. ``min_support`` is not asked for: every pair was judged by itself.

    Source: Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237, sec. 2.
    """
    nodes = [node for node in debate.utterances if node.role == "rewriter"]
    if not nodes or nodes[-1].agent != agent or debate.verdict is None or debate.verdict.oracle:
        return []
    turns = [chat[:end] for chat in pair_chats(debate) for end in range(2, len(chat) + 1, 2)]
    return [
        as_retold(debate, nodes[-1], turn, agent=agent, rule="rewritten", number=f":{number}")
        for number, turn in enumerate(turns)
    ]
