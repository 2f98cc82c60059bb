"""A fork takes over the debates that would be held again word for word, and a resumed run is the one it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from engine.config.recipe import Recipe
from engine.data.tasks import load_split
from engine.debates.changes import check_same, own_recipe, taken_up
from engine.debates.stage import recorded
from engine.fork import take_over
from engine.record.attempts import Attempts
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import EventEntry, Journal, read_journal
from protocols.errors import ConfigError
from protocols.machine import Opened, Replied, derive_seed
from tests.engine.config.test_recipe import built
from tests.engine.helpers import reply
from tests.engine.record.test_attempts import closed_of, put_on_record

TRAIN = "tasks.train=4"


def make(path: Path, kind: str, recipe: Recipe) -> RunFolder:
    manifest = Manifest(
        id=path.name, kind=kind, name="r", fingerprint=recipe.fingerprint, num_arenas=recipe.run.num_arenas,
        recipe=recipe.source, recipe_path=str(path / "r.yaml"), files=recipe.files,
    )  # fmt: skip
    folder = RunFolder.create(path, manifest)
    folder.write_recipe(recipe.source)
    folder.release()
    return folder


@pytest.fixture
def old(tmp_path: Path) -> RunFolder:
    """Four tasks of the loop's first stage: ended well, set aside, ended well at the second attempt, and open."""
    recipe = built(TRAIN)
    folder = make(tmp_path / "old", "loop", recipe)
    well, aside, twice, going = load_split(recipe.tasks).train
    put_on_record(
        folder, "debate-1",
        closed_of(well, "debate-1", seed=recipe.seed), closed_of(aside, "debate-1", aside=True, seed=recipe.seed),
        closed_of(twice, "debate-1", aside=True, seed=recipe.seed), closed_of(twice, "debate-1~2", seed=recipe.seed),
    )  # fmt: skip
    Attempts(folder.path).again([f"debate-1/{twice.id}"])
    name = f"debate-1/{going.id}"
    (path,) = folder.journals("debate-1")
    journal = Journal(path, fingerprint=recipe.fingerprint)
    opened = Opened(debate_id=name, task=going, seed=derive_seed(recipe.seed, name))
    journal.commit([EventEntry(name, 0, 1.0, opened), EventEntry(name, 1, 2.0, Replied(reply(f"{name}#0.answer.0")))])
    journal.close()
    return folder


def fork_of(old: RunFolder, *overrides: str, kind: str = "loop") -> tuple[RunFolder, str]:
    recipe = built(TRAIN, *overrides)
    new = make(old.path.parent / "new", kind, recipe)
    return new, take_over(old, new, recipe, load_split(recipe.tasks))


def taken(folder: RunFolder, stage: str = "debate-1") -> dict[str, int]:
    found = [item for path in folder.journals(stage) if path.exists() for item in read_journal(path)]
    return {item.debate_id: len(item.events) for item in found}


@pytest.mark.parametrize("num_arenas", [1, 3])
def test_what_training_alone_would_change_leaves_the_debates(old: RunFolder, num_arenas: int) -> None:
    new, said = fork_of(old, "sft.rank=4", "train.min_support=2", "loop.iterations=3", f"run.num_arenas={num_arenas}")
    well, aside, twice, going = load_split(built(TRAIN).tasks).train
    assert said == f"2 closed debates of {old.path} are taken over, and 1 open ones"
    assert taken(new) == {f"debate-1/{well.id}": 1, f"debate-1~2/{twice.id}": 1, f"debate-1/{going.id}": 2}
    assert {item.debate.id for item in recorded(new, "debate-1")} == {f"debate-1/{well.id}", f"debate-1~2/{twice.id}"}
    assert Attempts(new.path).id("debate-1", aside.id) == f"debate-1/{aside.id}"  # another try
    assert len(taken(old)) == 5 and taken(new, "eval-0") == {}
    for path in filter(Path.exists, new.journals("debate-1")):
        Journal(path, fingerprint=new.manifest.fingerprint).close()  # the new run's own


def test_more_tasks_leave_the_debates_of_those_that_are_the_same(old: RunFolder) -> None:
    new, said = fork_of(old, "tasks.train=9")
    assert said.startswith("2 closed debates") and len(taken(new)) == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("protocol.rounds=3", "protocol.rounds: 2 -> 3 changes every debate"),
        ("agents.ada.temperature=0.1", "agents.ada.temperature: not set -> 0.1 changes every debate"),
        ("models.simulated.skill=0.9", "models.simulated.skill: 0.6 -> 0.9 changes every debate"),
        ("seed=9", "seed: 1 -> 9 changes every debate"),
    ],
)
def test_what_changes_every_debate_leaves_none(old: RunFolder, override: str, said: str) -> None:
    new, told = fork_of(old, override)
    assert told == f"nothing of {old.path} is taken over: {said}" and taken(new) == {}


@pytest.mark.parametrize(("before", "after", "taken_over"), [(1, 1, 1), (1, 0, 0), (0, 1, 0), (1, 2, 1)])
def test_ahead_of_trainings_the_second_debates_are_by_untrained_agents_too(
    old: RunFolder, before: int, after: int, taken_over: int
) -> None:
    old.manifest.recipe["loop"] = {"staleness": before}
    task, *_ = load_split(built(TRAIN).tasks).train
    put_on_record(old, "debate-2", closed_of(task, "debate-2", seed=built(TRAIN).seed))
    new, _ = fork_of(old, f"loop.staleness={after}", "loop.iterations=3")
    assert (len(taken(new)), len(taken(new, "debate-2"))) == (3, taken_over)


def test_other_prompts_leave_no_debate(old: RunFolder) -> None:
    old.manifest.files["prompt_text"] = "another"
    assert "the text of the prompts has changed" in fork_of(old)[1]


def test_the_debates_of_tuned_agents_are_held_again(old: RunFolder) -> None:
    old.manifest.kind, old.manifest.adapters_from = "eval", "somewhere"
    assert fork_of(old, kind="eval")[1].startswith("0 closed debates")


def edit(folder: RunFolder, *keys: str) -> None:
    folder.write_recipe(built(TRAIN, *keys).source)


def test_a_recipe_that_was_edited_is_refused_with_what_differs(old: RunFolder) -> None:
    edit(old, "protocol.rounds=3", "sft.rank=4", "run.max_open=3")
    with pytest.raises(ConfigError) as error:
        taken_up(old, [])
    said = str(error.value)
    assert '(protocol.rounds: 2 -> 3; sft: not set -> {"rank":4})' in said  # run.max_open may differ
    assert f"`moot fork {old.path} --run-dir NEW`" in said and "\n" not in said
    assert own_recipe(old)["protocol"]["rounds"] == 3  # which a fork begins with


def test_what_may_differ_is_taken_up(old: RunFolder) -> None:
    edit(old, "run.max_open=3", "models.simulated.limits.max_tries=2")
    source = taken_up(old, ["tokens=7"])
    assert source["run"] == {"max_open": 3, "budget": {"tokens": 7}}
    assert source["models"]["simulated"]["limits"] == {"max_tries": 2}
    assert "run" not in old.manifest.recipe
    (old.path / "recipe.yaml").unlink()
    assert taken_up(old, []) == old.manifest.recipe
    (old.path / "recipe.yaml").write_text(yaml.safe_dump([1]))
    with pytest.raises(ConfigError, match="must be a mapping"):
        taken_up(old, [])


def test_prompts_and_files_that_changed_are_named(old: RunFolder) -> None:
    recipe = built(TRAIN)
    check_same(old, recipe)
    old.manifest.fingerprint = "other"
    old.manifest.files["prompt_text"] = "another"
    with pytest.raises(ConfigError, match="the text of its prompts changed since the run was started"):
        check_same(old, recipe)
    old.manifest.files = {}
    with pytest.raises(ConfigError, match="a file that it names, or a prompt set of moot's, changed"):
        check_same(old, recipe)
