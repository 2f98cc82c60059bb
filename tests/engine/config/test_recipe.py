"""Recipes: what is wrong is said in one sentence, before anything starts; what is right has an identity."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from engine.config.recipe import Recipe
from engine.config.recipe_file import apply_override, build_recipe, load_recipe
from engine.config.recipe_yaml import RecipeDumper, RecipeLoader
from engine.config.sections import typed
from protocols.errors import ConfigError

Data = dict[str, Any]

GOOD: Data = {
    "name": "try-it",
    "seed": 1,
    "tasks": {"source": "arithmetic", "level": "add30", "train": 4, "test": 4},
    "models": {"simulated": {"backend": "scripted", "skill": 0.6}},
    "agents": {"ada": {"model": "simulated"}, "bo": {"model": "simulated", "temperature": 0.5, "persona": "Be brief."}},
    "protocol": {"name": "society", "rounds": 2},
    "cast": {"generator": ["ada", "bo"]},
}


def built(*overrides: str) -> Recipe:
    data = copy.deepcopy(GOOD)
    for override in overrides:
        apply_override(data, override)
    return build_recipe(data, where="r.yaml")


def test_a_good_recipe_is_read_whole() -> None:
    recipe = built()
    assert recipe.agents["bo"].sampling.temperature == 0.5
    assert [player.persona for player in recipe.players["generator"]] == ["", "Be brief."]
    assert recipe.learners == ("ada", "bo")
    assert recipe.run.num_arenas == 1
    assert recipe.models["simulated"].place.num_cpus == 0.0  # it holds no model in memory
    assert built("train.agents=[bo]").learners == ("bo",)


BROKEN: list[tuple[str, str]] = [
    ("colour=red", "colour='red' is not known; there is: agents, cast,"),
    ("tasksource=1", "tasksource=1 is not known; did you mean 'tasks'?"),
    ("name=7", "name=7 must be text; put it in quotes"),
    ("name=a/b", "name='a/b' names a folder: use letters"),
    ("name=", "name is empty; it must be text"),
    ("seed=1.5", "seed=1.5 must be a whole number"),
    ("seed=one", "seed='one' must be a whole number"),
    ("tasks=5", "tasks=5 must be a mapping of keys to values: tasks: {source: file, path: FILE}"),
    ("tasks={}", "tasks.source is missing; there is: arithmetic, file, hub"),
    ("rounds=3", "rounds=3 is not known; did you mean protocol.rounds?"),
    ("train.epochs=3", "train.epochs=3 is not known; did you mean sft.epochs?"),
    ("sft.lr=1e-4", "sft.lr=0.0001 is not known; did you mean 'learning_rate'?"),
    ("models.simulated={skill: 1}", "models.simulated.backend is missing; there is: anthropic,"),
    ("models.simulated.backend=ollama", "(Ollama, llama.cpp, vLLM) is backend: openai, with its base_url"),
    ("agents.ada.max_tokens=many", "agents.ada.max_tokens='many' must be a whole number"),
    ("agents.ada.temperature='0.7'", "agents.ada.temperature='0.7' must be a number; write 0.7 without quotes"),
    ("protocol=society", "protocol='society' must be a mapping of keys to values: protocol: {name: society}"),
    ("cast=[ada, bo]", "must be a mapping of keys to values: cast: {generator: [ada, bo]}"),
    ("tasks.source=arithmetics", "tasks.source='arithmetics' is not known; did you mean 'arithmetic'?"),
    ("tasks.source=[arithmetic]", "tasks.source=['arithmetic'] is not known; did you mean 'arithmetic'?"),
    ("tasks.level=add21", "tasks.level='add21' is not known; use one of: add20, add3,"),
    ("tasks.trian=5", "tasks.trian=5 is not known; did you mean 'train'?"),
    ("tasks.train=-1", "tasks.train=-1 must not be below 0"),
    ("tasks={source: file}", "tasks.path is missing"),
    ("models={}", "models is empty: the models, by name"),
    ("models={1: {backend: scripted}}", "models.1: a name must be text; put it in quotes"),
    ("models.simulated.backend=vlm", "models.simulated.backend='vlm' is not known; did you mean 'vllm'?"),
    (
        "models.simulated.backend={}",
        "models.simulated.backend={} is not known; there is: anthropic, azure, human",
    ),
    ("models.simulated.skil=1", "models.simulated.skil=1 is not known; did you mean 'skill'?"),
    ("models.simulated.skill=2", "models.simulated.skill=2 must be between 0 and 1"),
    ("models.simulated.skill='1e-1'", "skill='1e-1' must be a number; write 1e-1 without quotes"),
    ("models.simulated.limits.max_tries=0", "models.simulated.limits.max_tries=0 must be a number from 1 to 1,000"),
    ("models.simulated.limits.tries=2", "models.simulated.limits.tries=2 is not known; did you mean 'max_tries'?"),
    ("models.simulated.num_cpus=-1", "models.simulated.num_cpus=-1 must be a number from 0 up"),
    ("models.simulated.num_gpus=1.5", "models.simulated.num_gpus=1.5 must be a share of one GPU, or a whole number"),
    ("models.simulated.replicas=0", "models.simulated.replicas=0 must be a number from 1 to 1,000"),
    ("models.simulated.replica=2", "models.simulated.replica=2 is not known; did you mean 'replicas'?"),
    (
        "models.simulated={backend: vllm, num_gpus: 2}",
        "models.simulated.num_gpus=2 and tensor_parallel=1: an engine uses as many GPUs as it is split over",
    ),
    ("models.simulated.num_gpus=two", "models.simulated.num_gpus='two' must be a number"),
    ("agents.ada=simulated", "agents.ada='simulated' must be a mapping of keys to values: agents.ada: {model: NAME}"),
    ("agents.ada={}", "agents.ada.model is missing: name one of the models"),
    ("agents.ada.model=simulate", "agents.ada.model='simulate': did you mean 'simulated'?"),
    ("agents.ada.temperature=20", "agents.ada.temperature=20 must be a number from 0 to 10"),
    ("agents.ada.temprature=1", "agents.ada.temprature=1 is not known; did you mean 'temperature'?"),
    ("agents={no: {model: simulated}}", "agents.False: a name must be text; put it in quotes"),
    ("agents={a b: {model: simulated}}", "agents.a b: a name must not hold spaces"),
    ("agents={..: {model: simulated}}", "agents...: a name must not hold spaces, '@', '#' or slashes, nor be dots"),
    ("protocol.name=societies", "protocol.name='societies' is not known; did you mean 'society'?"),
    ("protocol.name=[society]", "protocol.name=['society'] is not known; did you mean 'society'?"),
    ("protocol.rounds=0", "protocol.rounds=0 must be a number from 1 to 1,000"),
    ("protocol.rounds=two", "protocol.rounds='two' must be a whole number"),
    ("protocol.prompts=society.klingon", "protocol.prompts: no prompt set 'society.klingon'; there are"),
    ("protocol.prompts=none.toml", "cannot read none.toml: No such file or directory; give the path from the recipe's"),
    ("cast={}", "cast is empty: role -> agents"),
    ("cast.generator=ada", "cast.generator='ada' must be a list, for instance [ada]"),
    ("cast.generator=[ada, bob]", "cast.generator names 'bob': did you mean 'bo'?"),
    ("cast.jury=[ada]", "cast: society has no role 'jury'; its roles:"),
    ("cast.critic=[ada]", "cast.critic has 1 agents and cast.generator 2"),
    ("train.rule=generators", "train.rule='generators' is not known; use one of:"),
    ("train.rules={generator: critics}", "train.rules.generator='critics' is not known; use one of:"),
    ("train.rules={generator: [generator, critics]}", "train.rules.generator='critics' is not known; use one of:"),
    ("train.rules={jury: critic}", "train.rules names the role 'jury': there is: critic, generator, summariser"),
    ("train={rule: critic, rules: {generator: critic}}", "train.rule='critic' and rules both say what is learned"),
    ("train={rules: {critic: critic}, agents: [ada]}", "train.agents names 'ada', which plays no role of train.rules"),
    ("train.rule=majority", "the rule 'majority' makes one model of what all agents said, but ada, bo would learn"),
    ("train={rule: chain, label: gold}", "train.label='gold' has no part in rule='chain'; leave label out"),
    ("train.loss=first", "train.loss='first' is not known; use one of: all, last"),
    ("train.mix.corrected=1.5", "train.mix.corrected=1.5 must be from 0 to 1"),
    ("train.min_support=0", "train.min_support=0 must be at least 1"),
    ("train.agents=[cy]", "train.agents names 'cy': there is: ada, bo"),
    ("train=", "train is empty; it must be a mapping"),
    ("sft.rank=0", "sft.rank=0 must be at least 1"),
    ("sft.schedule=cosin", "sft.schedule='cosin' is not known; use one of: constant, cosine, linear"),
    ("loop.iterations=0", "loop.iterations=0 must be a number from 1 to 10,000"),
    ("loop.staleness=-1", "loop.staleness=-1 must be a number from 0 to 4"),
    ("loop.staleness=5", "loop.staleness=5 must be a number from 0 to 4"),
    ("loop.staleness=true", "loop.staleness=true must be a whole number"),
    ("loop.init_from=scratch", "loop.init_from='scratch' is not known; use one of: base, previous"),
    ("models.simulated.cache=yes", "models.simulated.cache=true must be a mapping"),
    ("models.simulated.cache.paths=x", "models.simulated.cache.paths='x' is not known; did you mean 'path'?"),
    ("models.simulated.cache.max_mb=-1", "models.simulated.cache.max_mb=-1 must not be below 0"),
    ("models.simulated={backend: human, cache: {}}", "models.simulated.cache: backend 'human' has no model"),
    ("agents.ada.structured=5", "agents.ada.structured=5 must be true or false"),
    ("agents.ada.structured=true", "agents.ada.structured=true, but prompt set 'society.number.en' has no schema"),
    ("run.num_arenas=0", "run.num_arenas=0 must be a number from 1 to 1,000"),
    ("run.num_arenas=100000", "run.num_arenas=100000 must be a number from 1 to 1,000"),
    ("run.max_open=1000001", "run.max_open=1000001 must be a number from 1 to 1,000,000"),
    ("run.mirror_every_s=0", "run.mirror_every_s=0 must be a number above 0, to 86,400"),
    ("run.mirror_every_s=1e300", "run.mirror_every_s=1e+300 must be a number above 0, to 86,400"),
    ("run.drain_s=-1", "run.drain_s=-1 must be a number from 0 up"),
    ("train.num_lanes=0", "train.num_lanes=0 must be a number from 1 to 1,000"),
    ("train.cpus_per_lane=-1", "train.cpus_per_lane=-1 must be a number from 0 up"),
    ("models.simulated.replicas=100000000000000000", "replicas=100000000000000000 must be a number from 1 to 1,000"),
    ("models.simulated.max_restarts=-1", "models.simulated.max_restarts=-1 must be a number from 0 to 1,000"),
    ("models.simulated.limits.max_concurrency=-1", "limits.max_concurrency=-1 must be a number from 0 to 1,000,000"),
    ("models.simulated.limits.backoff_s=-1", "models.simulated.limits.backoff_s=-1 must be a number from 0 up"),
    ("models.simulated.limits.timeout_s=0", "models.simulated.limits.timeout_s=0 must be a number above 0"),
    ("protocol.deadline_s=0", "protocol.deadline_s=0 must be a number above 0"),
    *(
        (f"{key}={value}", f"{key}={value.strip('.')} must be a finite number above 0")
        for key in ("models.simulated.limits.timeout_s", "protocol.deadline_s", "sft.learning_rate")
        for value in (".inf", ".nan", "inf", "nan")
    ),
    ("seed=1e3", "seed=1000.0 must be a whole number; write 1000"),
    ("sft.rank='1e1'", "sft.rank='1e1' must be a whole number; write 10 without quotes"),
    ("agents.ada.temperature=nan", "agents.ada.temperature=nan must be a number from 0 to 10"),
    ("agents.ada.persona=5", "agents.ada.persona=5 must be text; put it in quotes"),
    ("agents.ada.model=[x]", "agents.ada.model=['x'] must be text, not a list"),
    ("description=2020-01-01", "description=2020-01-01 must be text; put it in quotes"),
    ("cast.generator=[ada, 5]", "cast.generator[1]=5 must be text; put it in quotes"),
    ("cast.generator={ada: 1}", "cast.generator={'ada': 1} must be a list, not a mapping of keys to values"),
    ("train.rules={generator: [critic, 5]}", "train.rules.generator[1]=5 must be text; put it in quotes"),
    ("protocol.stop=oracle", "protocol.stop='oracle' must be a list of: oracle, unanimity"),
    ("loop.iterations=", "loop.iterations is empty; it must be a whole number"),
    ("run.sync=", "run.sync is empty; use one of: full, normal"),
    ("run.colocate=5", "run.colocate=5 is not known; use one of: release, sleep"),
    ("run.budget=5", "run.budget=5 must be a mapping of keys to values; its keys: usd, tokens"),
    ("run.budget.dollars=5", "run.budget.dollars=5 is not known; there is: tokens, usd"),
    ("models.simulated.faults={timeout: x}", "models.simulated.faults.timeout='x' must be a number"),
    ("models.simulated.faults={timeuot: 1}", "models.simulated.faults: 'timeuot' is not known; use one of: auth"),
    ("tasks={source: file, path: x, details: {1: x}}", "tasks.details: names must be text"),
    ("run.mirror_every_s=.nan", "run.mirror_every_s=nan must be a number above 0, to 86,400"),
    ("models.simulated.skill_per_adapter=.inf", "models.simulated.skill_per_adapter=inf must be a finite number"),
    ("models.simulated.skill_per_adapter=inf", "skill_per_adapter='inf' must be a number, a finite one"),
    ("run.max_journal_mb=-5", "run.max_journal_mb=-5 must not be below 0"),
]


@pytest.mark.parametrize(("override", "said"), BROKEN, ids=[override for override, _ in BROKEN])
def test_what_is_wrong_is_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(override)
    assert str(error.value).startswith("r.yaml: ") and said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["name", "tasks", "models", "agents", "protocol", "cast"])
def test_what_is_missing_is_named(key: str) -> None:
    data = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(ConfigError, match=f"^r.yaml: {key} is missing: "):
        build_recipe(data, where="r.yaml")


class Owner(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    pets: int = 0

    def __post_init__(self) -> None:
        if self.pets < 0:
            raise ValueError(f"pets={self.pets} is too few")


class House(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a user's own protocol may ask for."""

    owners: dict[str, Owner] = {}
    rooms: list[Owner] = []
    door: tuple[int, str] = (1, "red")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"owners": {"ada": {}, "bo": 5}}, "house.owners.bo=5 must be a mapping of keys to values; its keys: pets"),
        ({"owners": {"ada": {}, "bo": {"pets": "two"}}}, "house.owners.bo.pets='two' must be a whole number"),
        ({"owners": {"ada": {}, "bo": {"pets": -1}}}, "house.owners.pets=-1 is too few"),  # nobody says whose
        ({"owners": {"ada": {}, "bo": {"cats": 1}}}, "house.owners.cats is not known; there is: pets"),
        ({"rooms": [{}, {"pets": -1}]}, "house.rooms[1].pets=-1 is too few"),
        ({"rooms": [{}, {"cats": 1}]}, "house.rooms[1].cats=1 is not known; there is: pets"),
        ({"door": [1]}, "house.door=[1]: Expected `array` of length 2, got 1"),
        (None, "house is empty; it must be a mapping of keys to values"),
        ([], "house=[] must be a mapping of keys to values, not a list"),
    ],
)
def test_values_deep_inside_are_told_by_their_keys(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        typed(value, House, "r.yaml", "house")
    assert str(error.value) == f"r.yaml: {said}"


FILES: list[tuple[bytes, str]] = [
    (b"name: [a", "recipe {path}, line 1: is not valid YAML: expected ',' or ']'"),
    (b"name: a\n\tseed: 1\n", "recipe {path}, line 2: is not valid YAML: found character"),
    (b"name: \xff\xfe", "recipe {path}: is not valid YAML: it is no UTF-8 text; save it as UTF-8"),
    (b"name: \x00", "recipe {path}: is not valid YAML: unacceptable character #x0000"),
    (b"seed: 2026-13-45", "recipe {path}: is not valid YAML: month must be in 1..12 (put text in quotes)"),
    (b"seed: " + b"9" * 5000, "recipe {path}: is not valid YAML: a number has too many digits"),
    (b"[" * 100_000, "recipe {path}: is not valid YAML: it is nested too deeply"),
    (b"", "recipe {path}: must be a mapping of name, seed,"),
    (b"- a\n- b\n", "recipe {path}: must be a mapping of name, seed,"),
    (b"name: !!python/object/apply:os.system [true]", "recipe {path}, line 1: is not valid YAML: could not determine"),
]


@pytest.mark.parametrize(("content", "said"), FILES)
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert str(error.value).startswith(said.format(path=path))
    assert "\n" not in str(error.value)


def test_a_missing_file_says_where_recipes_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: No such file or directory; `moot list` names the recipes"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loop.iterations=0", "override: loop.iterations=0 must be a number from 1 to"),
        ("models.simulated={backend: scripted, skill: 2}", "override: models.simulated.skill=2 must be between"),
        ("cast.generator=[ada, bob]", "override: cast.generator names 'bob': did you mean 'bo'?"),
        ("tasks.trian=5", "override: tasks.trian=5 is not known; did you mean 'train'?"),
        ("protocol.round=5", "override: protocol.round=5 is not known; did you mean 'rounds'?"),
        ("agents.bo.persona=hi", "{path}: agents.bo.temperature=20 must be a number from 0 to 10"),
        ("agents.bo.temp=1", "override: agents.bo.temp=1 is not known"),
    ],
)
def test_what_an_override_has_set_is_told_of_it_and_all_else_of_the_file(
    tmp_path: Path, override: str, said: str
) -> None:
    path = tmp_path / "r.yaml"
    broken = override.startswith("agents.bo")
    agents = GOOD["agents"] | ({"bo": {"model": "simulated", "temperature": 20}} if broken else {})
    path.write_text(yaml.safe_dump(GOOD | {"agents": agents}), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_recipe(path, [override])
    assert str(error.value).startswith(said.format(path=path))


def test_overrides_are_read_as_yaml() -> None:
    data: Data = {"run": {"num_arenas": 1}}
    for override in ("run.num_arenas=2", "loop.evaluate=false", "cast.generator=[a, b]", "name=x=y", "sft.rank= 8"):
        apply_override(data, override)
    assert data == {
        "run": {"num_arenas": 2},
        "loop": {"evaluate": False},
        "cast": {"generator": ["a", "b"]},
        "name": "x=y",
        "sft": {"rank": 8},
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=" + "9" * 5000, "the value is not valid YAML: a number has too many digits"),
        ("protocol.rounds=" + "[" * 3000, "the value is not valid YAML: it is nested too deeply"),
        ("seed=0x" + "f" * 5000, "seed=(20000 bits) must be a number of at most 64 bits"),
        ("loop.iterations=2024-01-01", "loop.iterations=2024-01-01 must be a whole number"),
        ("seed=99999999999999999999", "seed=99999999999999999999 must be a number of at most 64 bits"),
        ("protocol.rounds=-9223372036854775809", "protocol.rounds=-9223372036854775809 must be a number of at most"),
        ("cast.generator=[ada, 9223372036854775808]", "cast.generator=9223372036854775808 must be a number of at most"),
    ],
)
def test_what_is_too_long_or_too_large_is_one_short_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(override)
    assert said in str(error.value) and len(str(error.value)) < 250


@given(st.floats(allow_nan=False) | st.from_regex(r"[-+]?[0-9.]{1,3}[eE][-+]?[0-9]{1,2}", fullmatch=True))
def test_numbers_are_read_in_any_spelling_and_text_like_them_stays_text(value: float | str) -> None:
    written = yaml.dump({"key": value}, Dumper=RecipeDumper)
    assert yaml.load(written, RecipeLoader) == {"key": value}  # noqa: S506  # a SafeLoader
    data: Data = {}
    apply_override(data, "sft.learning_rate=1e-4")
    assert data == {"sft": {"learning_rate": 1e-4}}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "must look like key=value, for instance loop.iterations=2"),
        ("=2", "must look like key=value"),
        ("name=[a", "the value is not valid YAML"),
        ("seed=2026-13-45", "the value is not valid YAML: month must be in 1..12"),
        ("name.first=a", "'name' holds a plain value, nothing can be set inside it"),
    ],
)
def test_overrides_that_make_no_sense_are_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(override)
    assert str(error.value).startswith(f"override {override!r}") and said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "override",
    ["run.num_arenas=4", "run.sync=normal", "run.runs_dir=there", "description=hi", "models.simulated.cache={}"],
)
def test_how_the_work_is_spread_is_no_part_of_the_identity(override: str) -> None:
    assert built(override).fingerprint == built().fingerprint


@pytest.mark.parametrize(
    "override",
    ["seed=2", "name=other", "protocol.rounds=3", "agents.ada.temperature=0.5", "models.simulated.skill=0.7",
     "tasks.train=5", "cast.generator=[bo, ada]", "sft.rank=8", "agents.ada.persona=Hm.", "loop.init_from=previous"],
)  # fmt: skip
def test_what_may_change_a_result_changes_the_identity(override: str) -> None:
    assert built(override).fingerprint != built().fingerprint


HELD: Data = GOOD | {
    "models": {
        "plain": {"backend": "transformers"},
        "own": {"backend": "openai", "model": "m", "response_format": {"type": "json_object"}},
        "held": {"backend": "vllm"},
        "played": {"backend": "scripted"},
    },
    "agents": {"ada": {"model": "held"}, "bo": {"model": "plain"}},
    "protocol": {"name": "mad"},
    "cast": {"affirmative": ["bo"], "negative": ["bo"], "moderator": ["ada"]},
}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("plain", "but models.plain cannot hold a reply to a schema (transformers)"),
        ("own", "but models.own says itself what form replies take"),
        ("held", ""),
        ("played", ""),
    ],
)
def test_a_structured_agent_needs_a_model_that_can_hold_it_to_a_schema(model: str, said: str) -> None:
    data = HELD | {"agents": {"ada": {"model": model, "structured": True}, "bo": {"model": "plain"}}}
    if not said:
        (moderator,) = build_recipe(data, where="r").players["moderator"]
        assert moderator.sampling.structured
        return
    with pytest.raises(ConfigError) as error:
        build_recipe(data, where="r.yaml")
    assert f"r.yaml: agents.ada.structured=true, {said}" in str(error.value)
    build_recipe(data | {"cast": HELD["cast"] | {"moderator": ["bo"]}}, where="r")  # who is not cast asks for nothing


def test_the_order_of_keys_is_no_part_of_the_identity() -> None:
    assert build_recipe(dict(reversed(GOOD.items())), where="r").fingerprint == built().fingerprint


def test_a_prompt_file_is_part_of_the_identity(tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[3] / "protocols" / "prompts" / "society.number.en.toml"
    text = shipped.read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    read: Callable[[], Recipe] = lambda: load_recipe(tmp_path / "r.yaml", ["protocol.prompts=mine.toml"])  # noqa: E731
    first = read().fingerprint
    assert first == read().fingerprint
    (tmp_path / "mine.toml").write_text(text.replace("${question}", "Look: ${question}"), encoding="utf-8")
    assert read().fingerprint != first


def test_task_files_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    data = GOOD | {"tasks": {"source": "file", "path": "mine.jsonl"}}
    recipe = build_recipe(data, where="r", folder=tmp_path)
    assert getattr(recipe.tasks, "path") == str(tmp_path / "mine.jsonl")  # noqa: B009
    assert recipe.source["tasks"]["path"] == "mine.jsonl"  # as it was written


def test_a_key_of_the_wrong_case_is_named_with_its_file() -> None:
    with pytest.raises(ConfigError, match=r"r.yaml: Seed=1 is not known; did you mean 'seed'\?"):
        built("Seed=1")


def test_the_fingerprint_knows_what_task_files_hold(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.jsonl"
    recipe = tmp_path / "recipe.yaml"
    text = (Path(__file__).parents[3] / "recipes" / "scripted.yaml").read_text()
    recipe.write_text(re.sub(r"tasks: \{.*\}", "tasks: {source: file, path: tasks.jsonl}", text))
    tasks.write_text('{"question": "1 + 1", "answer": 2}\n')
    before = load_recipe(recipe).fingerprint
    tasks.write_text('{"question": "1 + 1", "answer": 3}\n')
    assert load_recipe(recipe).fingerprint != before
