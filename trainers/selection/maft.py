"""Rules of multiagent finetuning: each agent learns from its own replies that came out right.

Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 2.2. The label is the debate's vote, so no gold is used;
``label: gold`` and ``min_support`` are ours, but that gold makes ``generator`` on one agent STaR's filter (Zelikman et
al. 2022, arXiv:2203.14465, sec. 3, without its rationalisation: no protocol here asks again with a hint).
"""

from __future__ import annotations

from protocols.graph import Debate
from protocols.tree import tracks
from trainers.selection.example import Example, as_spoken
from trainers.selection.rule import RuleOptions, right

DEFAULTS = RuleOptions()


def generator_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """The agent's own openings that are right: {(x, y_1) : y_1 = y^}.

    An agent that sits in several seats of the debate has several openings.
    """
    return [
        as_spoken(debate, node, agent=agent, rule="generator")
        for node in debate.turns(round=0, agent=agent)
        if right(debate, node, options)
    ]


def critic_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """The agent's own last replies that are right, each as the end of its seat's chat.

    ``corrected`` are those whose seat opened wrong (y_1 != y^, y_M = y^), ``maintained`` those whose seat opened right;
    ``trainers.selection.mix`` makes one set of both. A seat that did not speak to the end of the debate gives nothing,
    nor does one without an opening. With ``loss: all``, as in the released trainers, the seat's earlier replies are
    learned too, also where they were wrong and where its generator gave them; the default learns the last alone.
    """
    last_round = max((node.round for node in debate.turns()), default=0)
    found = []
    for opening, *later in tracks(debate).values():
        end = later[-1] if later else opening
        if end.agent != agent or opening.round != 0 or not 0 < end.round == last_round:
            continue
        if right(debate, end, options):
            found.append(
                as_spoken(
                    debate,
                    end,
                    agent=agent,
                    rule="critic",
                    whole_chat=options.loss == "all",
                    pool="maintained" if right(debate, opening, options) else "corrected",
                )
            )
    return found


def majority_examples(debate: Debate, agent: str, options: RuleOptions = DEFAULTS) -> list[Example]:
    """Everybody's openings that are right, for one model: the paper's baseline of majority finetuning."""
    return [
        as_spoken(debate, node, agent=agent, rule="majority")
        for node in debate.turns(round=0)
        if right(debate, node, options)
    ]
