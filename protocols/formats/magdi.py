"""MAGDi's multi-agent interaction graphs: a JSON list of debates, and the 12-node graph a student is trained on.

Source: Chen et al. 2024 (MAGDi), arXiv:2402.01620, sec. 3; layout and node numbers as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, Literal

from protocols.errors import ConfigError
from protocols.formats.common import (
    Draft,
    expect,
    inexpressible,
    json_lines,
    json_list,
    keep_rest,
    parse_json,
    with_rest,
)
from protocols.formats.outputs import (
    agents_in,
    answers_by_round,
    close_by_vote,
    output_of,
    say_answer,
    task_of,
)
from protocols.graph import Debate, EdgeKind

FORM = "MAGDi's MAG"
GRAPH_AGENTS = ("claude", "gpt4", "bard")  # their order in the graph; other agents come as the cast has them
NUM_AGENTS, NUM_ROUNDS = 3, 4  # a graph has 12 nodes whether all of them were spoken or not
RIGHT, WRONG, ABSENT = 1, 0, 2  # labels of nodes

Edges = Literal["causal", "magdi_legacy"]


def read_magdi(source: str | list[Any], where: str) -> list[Debate]:
    """The debates of a file.

    Every answer of a round was shown to everybody in the next. The verdict, the vote of the last round, is ours.

    Raises: ConfigError: not such a file.
    """
    rows = expect(parse_json(source, where) if isinstance(source, str) else source, list, where)
    return [_debate(row, f"{where}, item {number}") for number, row in enumerate(rows, 1)]


def _debate(value: Any, where: str) -> Debate:
    row = expect(value, dict, where)
    names, rounds = agents_in(row, where)
    agents = sorted(names)  # the file's order says nothing: an agent that said nothing has no key
    draft = Draft("society", task_of(row, "magdi", where), {"generator": tuple(agents)})
    shown: list[tuple[str | None, EdgeKind]] = []
    for number in range(rounds):
        role = "critic" if number else "generator"
        said = [say_answer(draft, row, seat, number, shown, where, role=role) for seat in enumerate(agents)]
        if not any(said):
            raise ConfigError(f"{where}: no agent answered in round {number}")
        shown = [(node, "saw") for node in said]
    debate = close_by_vote(draft, "rounds", oracle=False)
    return keep_rest(debate, "magdi", row, _bare(debate))


def magdi_row(debate: Debate) -> dict[str, Any]:
    """One debate as a row. Raises: GraphError: not a debate of agents who each answer at most once a round."""
    return with_rest(debate, "magdi", _bare(debate))


def _bare(debate: Debate) -> dict[str, Any]:
    agents, rounds = answers_by_round(debate, FORM)
    gold = debate.task.gold
    row: dict[str, Any] = {"question": debate.task.question, "gold_answer": gold[0] if gold else ""}
    for number, answers in enumerate(rounds):
        row |= {f"{agent}_output_{number}": output_of(answers[agent]) for agent in agents if agent in answers}
    return row


def write_magdi(debates: Iterable[Debate]) -> Iterator[str]:
    """The file, piece by piece. Raises: GraphError: see ``magdi_row``."""
    return json_list(magdi_row(debate) for debate in debates)


def magdi_graph(debate: Debate, *, edges: Edges = "causal") -> dict[str, Any]:
    """A debate as the graph that MAGDi's student learns from; node number = 4 * agent + round.

    Args:
        edges: ``causal``: each agent's chain of rounds, and every answer to every other agent's next; 9 + 18 edges.
            ``magdi_legacy``: as the released code draws them, where half of the 18 lead back in time.
    Returns: ``agents`` [3], ``node_ids`` [12] (ours; None where nobody spoke), ``labels`` [12] (1 right, 0 wrong, 2
        absent), ``edge_index`` [2][27], ``pairs`` [P][2] (numbers of a right node and a wrong one that its margin loss
        sets apart, None where nobody was wrong; the scarcer side is repeated; [] where nobody was right, and the
        question then teaches nothing). Node features need a model and belong to training. A question's pairs stand
        with its own graph, where the released code hands graphs to pairs in turn, so that they do not match.
    Raises: GraphError: not three agents in at most four rounds, or answers that were never graded.
    """
    agents, rounds = answers_by_round(debate, "MAGDi's graph")
    if len(agents) != NUM_AGENTS or len(rounds) > NUM_ROUNDS:
        have = f"it has {len(agents)} agents in {len(rounds)} rounds"
        raise inexpressible(debate, "MAGDi's graph", f"{have}, not {NUM_AGENTS} in at most {NUM_ROUNDS}")
    agents = in_graph_order(agents)
    nodes = [answers.get(agent) for agent in agents for answers in (rounds + [{}] * NUM_ROUNDS)[:NUM_ROUNDS]]
    if any(node is not None and node.correct is None for node in nodes):
        raise inexpressible(debate, "MAGDi's graph", "its answers were never graded, as its task has no gold answer")
    pairs = grid_edges(NUM_AGENTS, NUM_ROUNDS, edges)
    labels = [ABSENT if node is None else RIGHT if node.correct else WRONG for node in nodes]
    return {
        "id": debate.task.id,
        "agents": agents,
        "node_ids": [node.id if node else None for node in nodes],
        "labels": labels,
        "edge_index": [[source for source, _ in pairs], [target for _, target in pairs]],
        "pairs": opposed(labels),
    }


def in_graph_order(agents: Iterable[str]) -> list[str]:
    """As the released code numbers them where they are its own; else as they come."""
    agents = list(agents)
    return sorted(agents, key=GRAPH_AGENTS.index) if set(agents) <= set(GRAPH_AGENTS) else agents


def opposed(labels: Sequence[int]) -> list[tuple[int, int | None]]:
    """Right nodes against wrong ones by number, the scarcer side repeated; none where nobody was right."""
    right = [number for number, label in enumerate(labels) if label == RIGHT]
    wrong: list[int | None] = [number for number, label in enumerate(labels) if label == WRONG]
    wrong = wrong or [None]
    count = max(len(right), len(wrong)) if right else 0
    return [(right[at % len(right)], wrong[at % len(wrong)]) for at in range(count)]


def grid_edges(num_agents: int, num_rounds: int, edges: Edges) -> list[tuple[int, int]]:
    """(source, target) by node number, which is num_rounds * agent + round: chains first, then between agents."""

    def at(agent: int, number: int) -> int:
        return num_rounds * agent + number

    steps = range(num_rounds - 1)
    chains = [(at(agent, r), at(agent, r + 1)) for agent in range(num_agents) for r in steps]
    cross = []
    for one, other in combinations(range(num_agents), 2):
        for r in steps:
            back = (at(one, r + 1), at(other, r)) if edges == "magdi_legacy" else (at(other, r), at(one, r + 1))
            cross += [(at(one, r), at(other, r + 1)), back]
    return chains + cross


def write_magdi_graph(debates: Iterable[Debate], *, edges: Edges = "causal") -> Iterator[str]:
    """JSON lines, one graph a debate. Raises: GraphError: see ``magdi_graph``."""
    return json_lines(magdi_graph(debate, edges=edges) for debate in debates)
