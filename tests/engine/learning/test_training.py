"""Training from a record: what is learned from, and every way in which it cannot begin, each with its sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.config.recipe import TrainSettings
from engine.learning.training import Training, _rows, train_recorded, word
from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal
from protocols.catalogue import build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, TrainerError
from protocols.graph import Debate, encode_debate
from protocols.machine import Opened
from protocols.society import SocietySettings
from protocols.task import Task
from tests.fakes import node_of, play
from tests.trainers.conftest import tiny_model
from trainers.record.registry import Registry, weights_hash
from trainers.tuning.sft_settings import SFTSettings

__all__ = ["tiny_model"]


def debate(name: str, answers: tuple[str, ...]) -> Debate:
    settings = SocietySettings(rounds=1)
    cast = {"generator": tuple(Player(name=agent) for agent in ("ada", "bo", "cy"))}
    machine = build_machine("society", settings, cast, load_protocol_prompts("society", settings))
    task = Task(id=name, question="1 + 1", gold=("2",))
    played = play(machine, task, lambda ask: rf"\boxed{{{answers[int(node_of(ask)[-1])]}}}", debate_id=f"debate/{name}")
    played.debate.cast = {role: tuple(player.name for player in players) for role, players in cast.items()}
    return played.debate


def folder_with(path: Path, debates: list[Debate], *, stage: str = "debate", **fields: Any) -> RunFolder:
    recipe = {"train": {"base_model": "nowhere"}}
    made: dict[str, Any] = {
        "kind": "run",
        "name": "r",
        "fingerprint": "f",
        "num_arenas": 1,
        "recipe": recipe,
        "recipe_path": "r.yaml",
    }
    folder = RunFolder.create(path, Manifest(id="r", **(made | {"finished_at": 1.0} | fields)))
    journal_file = folder.journals(stage)[0]
    journal_file.parent.mkdir(parents=True)
    journal = Journal(journal_file, fingerprint="f")
    for item in debates:
        opened = Opened(debate_id=item.id, task=item.task, seed=0)
        journal.commit([EventEntry(item.id, 0, 0.0, opened), CloseEntry(item.id, 1.0, encode_debate(item))])
    journal.close()
    folder.release()
    return folder


DEBATES = [debate("a", ("2", "2", "3")), debate("b", ("4", "4", "4")), debate("c", ("no", "no", "no"))]


def test_rows_come_from_debates_alone_and_each_agent_has_its_own(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DEBATES)
    rows = _rows(folder, TrainSettings())
    assert {agent: [len(found) for found in debates] for agent, debates in rows.items()} == {
        "ada": [1, 1],
        "bo": [1, 1],
        "cy": [1],
    }
    assert [example.debate_id for found in rows["cy"] for example in found] == ["debate/b"]
    assert list(_rows(folder, TrainSettings(min_support=3, agents=("bo",)))) == ["bo"]


def test_a_rule_that_makes_one_model_wants_one_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DEBATES)
    with pytest.raises(
        ConfigError, match=r"^train: the rule 'majority' makes one model .*; name the one in train.agents"
    ):
        _rows(folder, TrainSettings(rule="majority"))
    for agent in ("bo", "pupil"):  # who learns need not have debated
        (found,) = _rows(folder, TrainSettings(rule="majority", agents=(agent,))).values()
        assert [len(rows) for rows in found] == [2, 3] and found[0][0].agent == agent


def test_an_agent_that_is_always_wrong_has_no_training_and_the_others_have(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, [debate(name, ("2", "2", "3")) for name in "abc"])
    assert list(_rows(folder, TrainSettings())) == ["ada", "bo"]
    with pytest.raises(
        ConfigError, match=r"the rules 'generator', 'critic' find nothing to learn from in its 3 debates"
    ):
        _rows(folder, TrainSettings(rules={"generator": ("generator", "critic")}, min_support=3))


def test_held_out_tasks_teach_nobody_whatever_stage_they_were_debated_in(tmp_path: Path) -> None:
    held_out = msgspec.structs.replace(DEBATES[1].task, held_out=True)
    folder = folder_with(tmp_path, [DEBATES[0], msgspec.structs.replace(DEBATES[1], task=held_out)])
    assert {agent: len(debates) for agent, debates in _rows(folder, TrainSettings()).items()} == {"ada": 1, "bo": 1}


def test_evaluations_are_never_learned_from(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, DEBATES, stage="eval-0")
    with pytest.raises(ConfigError, match="finds nothing to learn from in its 0 debates"):
        _rows(folder, TrainSettings())


@pytest.mark.parametrize(
    ("overrides", "fields", "says"),
    [
        ([], {"finished_at": None}, "is not finished; finish it with `moot resume"),
        (["tasks.train=3"], {}, r"takes train\.\* and sft\.\* alone"),
        (["train.rul=generator"], {}, "did you mean 'rule'"),
        (["train.gpus_per_lane=2"], {}, "an adapter is trained on one GPU, and sft.method: full alone is spread"),
        (["train.min_support=4"], {}, "finds nothing to learn from in its 3 debates; lower train.min_support"),
        (["train.agents=[dee]"], {}, "for dee"),
        ([], {}, "train.base_model='nowhere': there is no such folder"),
        (["train.base_model=''"], {}, "train.base_model is empty"),
    ],
)
def test_what_cannot_begin_says_why_and_leaves_nothing(
    tmp_path: Path, overrides: list[str], fields: dict[str, Any], says: str
) -> None:
    folder_with(tmp_path, DEBATES, **fields)
    with pytest.raises(ConfigError, match=says):
        train_recorded(tmp_path, overrides, progress=Progress())
    assert not (tmp_path / "train").exists()
    with pytest.raises(ConfigError, match=says):  # the folder was let go of
        train_recorded(tmp_path, overrides, progress=Progress())


@pytest.mark.parametrize(
    ("gpus", "ranks", "cpus_each"),
    [(0, 1, 8.0), (1, 1, 8.0), (4, 4, 2.0)],
)
def test_a_lane_of_several_gpus_is_as_many_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, ranks: int, cpus_each: float
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("engine.learning.training.fit_lanes", lambda jobs, **arguments: asked.update(arguments))
    monkeypatch.setattr("engine.learning.training.machines_of_cluster", list)
    training = Training(
        run_id="r",
        settings=TrainSettings(cpus_per_lane=8.0, gpus_per_lane=gpus),
        how=SFTSettings(method="full"),
        base="base",
        workplace=tmp_path,
        jobs=[],
        rules={},
    )
    assert training.fit(None) == ""
    place = asked["place"]
    assert (place.ranks, place.cpus, place.use_gpu) == (ranks, cpus_each, gpus > 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")
def test_a_whole_model_is_trained_registered_and_loaded_by_others(
    tmp_path: Path, tiny_model: Path, local_ray: Any
) -> None:
    from transformers import AutoModelForCausalLM

    folder = folder_with(tmp_path / "run", DEBATES)
    how = ["sft.method=full", "sft.learning_rate=1e-3", "train.agents=[ada]", f"train.base_model={tiny_model}"]
    outcome = train_recorded(folder.path, how, progress=Progress())
    assert (outcome["adapters"], outcome["rows"], outcome["warnings"]) == (["ada@r-v1"], {"ada": 2}, [])
    AutoModelForCausalLM.from_pretrained(outcome["models"]["ada"])
    registry = Registry(folder.path / "adapters")
    record = registry.get("ada@r-v1", base_hash=weights_hash(tiny_model))
    assert (record.whole, record.parent, record.rows, record.rule) == (True, None, 2, "generator")
    assert str(registry.folder_of(record)) == outcome["models"]["ada"]
    assert record.checksum == weights_hash(registry.folder_of(record)) != record.base_hash
    Path(outcome["models"]["ada"], "model.safetensors").write_text("tampered")
    with pytest.raises(TrainerError, match=r"the model in .*/ada/v1 is not the one that was registered"):
        registry.latest("ada")


def test_agents_of_an_import_get_names_that_adapters_can_bear() -> None:
    assert word("Affirmative side") == "Affirmative-side"
    assert word("a@b/c#d") == "a-b-c-d"
    assert word("") == "agent"
