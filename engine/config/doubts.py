"""What may be meant, and looks like a slip: told by ``moot check``, refused by nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from actors.catalogue import BACKENDS
from actors.local.vllm_settings import runs_on_cpu
from engine.config.models import names_folder
from engine.config.named_protocol import find_protocol
from engine.config.protocol_docs import prompt_sets
from engine.config.recipe import Recipe
from engine.data.tasks import ArithmeticSource, Split
from protocols.prompt import prompt_names

_ASKED: Mapping[str, tuple[str, frozenset[str]]] = {
    "number": ("a number", frozenset({"number", "boxed", "math"})),
    "sum": ("a sum", frozenset({"number"})),
    "math": ("mathematics", frozenset({"math", "boxed", "number"})),
    "choice": ("a choice", frozenset({"choice"})),
    "text": ("words", frozenset({"text"})),
}
"""Second word of a shipped prompt set's name -> what it asks for, and the answer formats that read it."""


def doubts(recipe: Recipe, tasks: Split) -> list[str]:
    """Sentences, each with what would mend it."""
    return [*_unasked(recipe), *_ungraded(recipe, tasks), *_asked_for(recipe, tasks), *_models(recipe)]


def _unasked(recipe: Recipe) -> Iterator[str]:
    for name in sorted(recipe.agents.keys() - set(recipe.speakers)):
        yield f"agents.{name} plays no role of cast, so it is never asked"
    for name in sorted(recipe.models.keys() - {agent.model for agent in recipe.agents.values()}):
        yield f"models.{name} is no agent's, so it is not started"


def _ungraded(recipe: Recipe, tasks: Split) -> Iterator[str]:
    both = [*tasks.train, *tasks.test]
    if without := sum(not task.gold for task in both):
        field = getattr(recipe.tasks, "answer", "")
        yield (
            f"{without} of {len(both)} tasks have no answer (tasks.answer={field!r}): they are debated, and not graded"
        )


def _asked_for(recipe: Recipe, tasks: Split) -> Iterator[str]:
    """A prompt that asks for a number, say, where an answer in words is read."""
    name = recipe.settings.prompts
    wanted = _ASKED.get(_kind(name)) if name in prompt_names() else None
    if wanted is None or isinstance(recipe.tasks, ArithmeticSource):
        return
    asked, reads = wanted
    formats = {task.answer_format for task in (*tasks.train, *tasks.test) if task.gold}
    if not (other := formats - reads):
        return
    alike = prompt_sets(find_protocol(recipe.protocol))
    better = [found for found in alike if _kind(found) in _ASKED and other <= _ASKED[_kind(found)][1]]
    yield (
        f"answers are read as {', '.join(sorted(other))}, and protocol.prompts={name} asks for {asked}; set "
        f"protocol.prompts{f': {better[0]}' if better else ' to a .toml file of yours'}"
    )


def _kind(prompts: str) -> str:
    return prompts.split(".")[1] if prompts.count(".") > 1 else ""


def _models(recipe: Recipe) -> Iterator[str]:
    for name in sorted(recipe.models_in_use):
        model = recipe.models[name]
        folder = getattr(model.settings, "model", "")
        if not BACKENDS[model.backend].heavy:
            continue
        if "/" in folder and not names_folder(folder) and not Path(folder).is_dir():
            yield f"models.{name}.model={folder!r} is no folder here, so it is taken for a name on the Hugging Face hub"
        if model.backend == "vllm" and model.place.num_gpus and runs_on_cpu():
            yield (
                f"models.{name}.num_gpus={model.place.num_gpus:g}, and the vLLM that is installed here is the one for "
                "CPUs; where there is a GPU, `make install-gpu` has the other"
            )
        if model.backend == "vllm" and not model.place.num_gpus and not runs_on_cpu():
            yield (
                f"models.{name}.num_gpus is 0, so it is shown no GPU, and the vLLM that is installed here needs one; "
                f"set models.{name}.num_gpus: 1"
            )
