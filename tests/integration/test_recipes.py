"""Every recipe on the embedded model, two tasks each on one engine, and the shape that its paper describes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from engine.config.recipe_file import load_recipe
from engine.data.tasks import load_split
from engine.debates.cluster import Cluster
from engine.debates.stage import run_stage
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from engine.run import limited, make_manifest
from protocols.catalogue import PROTOCOLS
from protocols.graph import Debate, Utterance

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
MODEL = ["models.smollm2.max_model_len=2048", "models.smollm2.max_adapters=0", "run.max_open=8"]
SAID = 24  # tokens a reply, at most: what is said changes no shape, but for pairs that are written to be read


def on_the_embedded_model(path: Path) -> bool:
    return "model: embedded" in path.read_text(encoding="utf-8")


RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if on_the_embedded_model(path))


@pytest.fixture(scope="module")
def engine(local_ray: Any) -> Iterator[Callable[[Recipe], Cluster]]:
    """One engine for all recipes: each sees it as its own."""
    shared = asyncio.run(Cluster.start(load_recipe(ROOT / "recipes" / "society.yaml", MODEL)))
    yield lambda recipe: Cluster(recipe, shared.hosts, ours=False)
    asyncio.run(shared.stop())


def incoming(debate: Debate, node: Utterance, kind: str) -> set[str]:
    return {edge.source for edge in debate.edges if edge.target == node.id and edge.kind == kind}


def check_society(debate: Debate, recipe: Recipe) -> None:
    """Everyone opens alone; in later rounds each is shown the others, or one summary of them."""
    for node in debate.turns():
        shown = incoming(debate, node, "saw") | incoming(debate, node, "summary")
        if node.round == 0:
            assert shown == set()
            continue
        others = {turn.id for turn in debate.turns(round=node.round - 1)} - {f"{node.round - 1}.answer.{node.id[-1]}"}
        if recipe.settings.summarize:  # type: ignore[attr-defined]
            assert shown == {f"{node.round}.summarise.{node.id[-1]}"}
            assert incoming(debate, debate.utterance(next(iter(shown))), "saw") == others
        else:
            assert shown == others


def shown(debate: Debate, node: Utterance) -> set[str]:
    """The nodes whose texts a turn was given, whatever for; a second try was given no more than the first."""
    return {e.source for e in debate.edges if e.target == node.id and e.kind != "memory"}


def first_tries(debate: Debate, step: str) -> list[Utterance]:
    return [node for node in debate.utterances if node.phase == step and "~" not in node.id]


def check_mad(debate: Debate, recipe: Recipe) -> None:
    """Affirmative first; each hears the other's last words alone, the moderator both; a judge where no one has won."""
    heard = {"affirmative": ("negative", 1), "negative": ("affirmative", 0)}
    for node in first_tries(debate, "argue"):
        other, before = heard[node.role]
        opens = node.round == 0 and node.role == "affirmative"
        base = {f"{turn.round}.base.0" for turn in first_tries(debate, "base")}
        assert shown(debate, node) == (base if opens else {f"{node.round - before}.argue.{other}"})
    rounds = {node.round for node in first_tries(debate, "argue")}
    assert [node.round for node in first_tries(debate, "moderate")] == sorted(rounds)
    for node in first_tries(debate, "moderate"):
        assert shown(debate, node) == {f"{node.round}.argue.affirmative", f"{node.round}.argue.negative"}
    judged = first_tries(debate, "judge")
    assert [node.id[-1] for node in judged] in ([], ["0", "1"])
    if judged:  # it is shown the openings
        assert shown(debate, judged[0]) == {"0.argue.affirmative", "0.argue.negative"}
        assert debate.verdict is not None and debate.verdict.stop_reason == "rounds"


def check_dialectic(debate: Debate, recipe: Recipe) -> None:
    """Debaters see the latest of the others and their own; the judge every answer; at the end a summary and a chain."""
    for node in first_tries(debate, "answer"):
        members = [turn.id[-1] for turn in first_tries(debate, "answer") if turn.round == 0]
        expected = {
            f"{node.round if other < node.id[-1] else node.round - 1}.answer.{other}"
            for other in members
            if node.round and other != node.id[-1]
        }
        assert shown(debate, node) - {f"{node.round - 1}.answer.{node.id[-1]}"} == expected
    last = max(node.round for node in first_tries(debate, "answer"))
    final = {node.id for node in first_tries(debate, "answer") if node.round == last}
    (summary,), (chain,) = first_tries(debate, "summarise"), first_tries(debate, "condense")
    assert shown(debate, summary) == final
    assert shown(debate, chain) == {node.id for node in first_tries(debate, "answer")}
    for node in first_tries(debate, "judge"):
        assert shown(debate, node) == {turn.id for turn in first_tries(debate, "answer") if turn.round == node.round}


def check_reflect(debate: Debate, recipe: Recipe) -> None:
    """The right criticise each of the wrong, the wrong reflect; then all are shown everything of the round before."""
    assert debate.verdict is not None and debate.verdict.oracle
    last = max(node.round for node in debate.utterances)
    for number in range(last + 1):
        answers = {node.id.split(".")[2].partition("~")[0]: node for node in debate.turns(round=number)}
        right = {seat for seat, node in answers.items() if node.correct}
        wrong = set(answers) - right
        critiques = {node.id.split(".")[2] for node in first_tries(debate, "critique") if node.round == number}
        reflections = {node.id.split(".")[2] for node in first_tries(debate, "reflect") if node.round == number}
        if number < last:
            assert critiques == {f"{judge}-{judged}" for judge in right for judged in wrong}
            assert reflections == wrong
        before = [node for node in debate.utterances if node.round == number - 1]
        heard = {node.id for node in before if node.answers or node.phase in ("critique", "reflect")}
        assert all(shown(debate, node) == heard for node in answers.values())


def check_baseline(debate: Debate, recipe: Recipe) -> None:
    """Samples know nothing of each other; a reflection goes on with one chat."""
    assert all(shown(debate, node) == set() for node in debate.turns())
    chats = [edge for edge in debate.edges if edge.kind == "memory" and "~" not in edge.target]
    method = recipe.settings.method  # type: ignore[attr-defined]
    counts = {"single": (1, 0), "self_consistency": (5, 0), "self_reflect": (3, 2)}
    assert (len(list(debate.turns())), len(chats)) == counts[method]


def check_persuasion(debate: Debate, recipe: Recipe) -> None:
    """Both argue at once, having read the rounds before; the judge reads all of it, in both orders."""
    for node in first_tries(debate, "argue"):
        assert shown(debate, node) == {turn.id for turn in first_tries(debate, "argue") if turn.round < node.round}
    assert len(first_tries(debate, "judge")) == 2
    for node in first_tries(debate, "judge"):
        assert shown(debate, node) == {turn.id for turn in first_tries(debate, "argue")}


def check_rewrite(debate: Debate, recipe: Recipe) -> None:
    """One rewriting; every pair that came of it is judged, and the kept ones scored."""
    tries = [node for node in debate.utterances if node.phase == "rewrite"]
    assert tries
    assert debate.verdict is not None and debate.verdict.aggregator == "self_filter"
    assert len(first_tries(debate, "judge")) == debate.verdict.votes
    for node in first_tries(debate, "judge") + first_tries(debate, "score"):
        assert shown(debate, node) <= {tries[-1].id}


SHAPES: dict[str, Callable[[Debate, Recipe], None]] = {
    "society": check_society,
    "mad": check_mad,
    "dialectic": check_dialectic,
    "reflect": check_reflect,
    "baseline": check_baseline,
    "persuasion": check_persuasion,
    "rewrite": check_rewrite,
}


def test_every_protocol_has_a_recipe_and_a_shape() -> None:
    assert {load_recipe(path).protocol for path in RECIPES} == set(PROTOCOLS) == set(SHAPES)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_and_its_graph_has_the_shape_of_its_paper(
    path: Path, engine: Callable[[Recipe], Cluster], tmp_path: Path
) -> None:
    assert "arXiv" in path.read_text(encoding="utf-8") or "github.com" in path.read_text(encoding="utf-8")
    recipe = load_recipe(path, MODEL)
    if recipe.protocol != "rewrite":
        recipe = load_recipe(path, [*MODEL, *(f"agents.{name}.max_tokens={SAID}" for name in recipe.agents)])
    tasks = limited(load_split(recipe.tasks), 2).train
    folder = RunFolder.create(tmp_path / "run", make_manifest("run", "run", recipe, path, 2))
    result = asyncio.run(run_stage(engine(recipe), folder, "debate", tasks, progress=Progress()))
    folder.release()
    assert len(result.debates) == len(tasks) == 2
    bound = find_protocol(recipe.protocol).max_asks(recipe.settings, recipe.cast)
    for debate in result.debates:
        assert debate.verdict is not None and debate.verdict.stop_reason != "no_replies", debate.failures
        assert debate.failures == []
        assert len([node for node in debate.utterances if "~" not in node.id]) <= bound
        for node in debate.utterances:
            reply = node.reply
            assert reply.token_ids and len(reply.token_ids) == len(reply.logprobs) == reply.usage.completion_tokens
            assert max(reply.logprobs) <= 0.0
        SHAPES[recipe.protocol](debate, recipe)
