"""The recipe: one YAML file that describes a whole run. Strict, typed, checked as a whole before anything starts."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from actors.agent import Limits
from actors.api_key import refuse_literal_keys
from actors.batch_book import BatchSettings
from actors.budget import Budget
from actors.catalogue import BACKENDS
from actors.prices import Price, find_price, prices_date
from actors.response_cache import CacheSettings
from engine.named_protocol import find_protocol
from engine.tasks import SOURCES, FileSource, HubSource, TaskSource
from protocols.catalogue import PROTOCOLS, prompts_of
from protocols.conversation import Player, ProtocolSettings
from protocols.errors import ConfigError
from protocols.message import Sampling
from protocols.prompt import PromptSet
from trainers.select import RULES
from trainers.sft import SFTSettings

T = TypeVar("T", bound=msgspec.Struct)


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model takes of the cluster, each of its hosts for itself."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0  # a whole number, or a share of one
    replicas: int = 1  # hosts with a copy each, between which debates are spread
    max_restarts: int = 3  # of a host that dies, before the run goes on without it, or stops

    def __post_init__(self) -> None:
        for name in ("num_cpus", "num_gpus"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name):g} must be a number from 0 up")
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"num_gpus={self.num_gpus:g} must be a share of one GPU, or a whole number")
        if self.replicas < 1 or self.max_restarts < 0:
            raise ValueError(
                f"replicas={self.replicas} must be at least 1, max_restarts={self.max_restarts} at least 0"
            )


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its backend, the backend's settings, the host's limits, and where it lives."""

    backend: str
    settings: msgspec.Struct
    limits: Limits = Limits()
    place: Place = Place()
    price: Price | None = None  # the user's own; see ``Recipe.price_of``
    cache: CacheSettings | None = None  # of its replies; None: every ask goes to the model

    @property
    def served(self) -> str:
        """The model's id with its provider; "" where it has none."""
        return str(getattr(self.settings, "model", ""))

    @property
    def provider(self) -> str:
        """Whose it is: the address of a service, else the backend."""
        return urlsplit(str(getattr(self.settings, "url", ""))).netloc or self.backend

    @property
    def batch(self) -> BatchSettings | None:
        """How its asks become batches; None where each is sent by itself."""
        found = getattr(self.settings, "batch", None)
        return found if isinstance(found, BatchSettings) else None

    @property
    def paid(self) -> bool:
        """Whether somebody is paid for its tokens: it is reached with a key, or has a price."""
        return self.price is not None or "api_key_env" in self.settings.__struct_fields__


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """Who plays: a model, how its replies are drawn, and who it is told to be."""

    model: str
    sampling: Sampling = Sampling()
    persona: str = ""


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the loop learns, and who."""

    agents: tuple[str, ...] = ()  # default: those who open
    base_model: str = ""  # folder; default: the model they speak through
    rule: str = "generator"
    min_support: int = 1  # votes the winning answer needs before anything is learned from a debate
    num_lanes: int = 1  # trainings side by side
    cpus_per_lane: float = 1.0
    gpus_per_lane: int = 0
    threads: int = 0  # OpenMP threads of a training process on CPU; 0: one a CPU of the lane
    checkpoint_every: int = 20  # steps

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule={self.rule!r} is not known; use one of: {', '.join(RULES)}")
        if self.min_support < 1 or self.num_lanes < 1:
            raise ValueError("min_support and num_lanes must be at least 1")


class LoopSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often debate and training follow each other. ``init_from``: train on from the last adapter, or afresh."""

    iterations: int = 1
    init_from: Literal["previous", "base"] = "base"
    evaluate: bool = True  # on the held-out tasks, before the first and after every iteration

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")


class RunSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the work is spread. Nothing here changes a result, so it may differ when a run is resumed."""

    num_arenas: int = 1
    max_open: int = 256  # debates in flight an arena
    sync: Literal["full", "normal"] = "full"  # the journal's: survive loss of power, or the death of processes
    max_journal_mb: int = 0  # an arena's journal refuses to grow beyond; 0: no limit
    runs_dir: str = "runs"
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        if self.num_arenas < 1 or self.max_open < 1:
            raise ValueError("num_arenas and max_open must be at least 1")
        if self.max_journal_mb < 0:
            raise ValueError(f"max_journal_mb={self.max_journal_mb} must not be below 0; 0 is no limit")


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """A checked recipe. ``source`` is the plain data it was read from, overrides applied."""

    name: str
    seed: int
    description: str
    tasks: TaskSource
    models: dict[str, Model]
    agents: dict[str, Agent]
    protocol: str
    settings: ProtocolSettings
    prompts: PromptSet
    cast: dict[str, tuple[str, ...]]
    train: TrainSettings
    sft: SFTSettings
    loop: LoopSettings
    run: RunSettings
    prices: dict[str, Price]
    source: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Identity of what is run: changes with anything that could change a result, prompts and task files too.

        A cache is left out: it decides who is asked, while the reply is one of the same model to the same words.
        """
        told = {key: value for key, value in self.source.items() if key not in ("run", "description", "prices")}
        told["models"] = {
            name: _without(value, "price", "cache", "replicas", "max_restarts")
            for name, value in self.source["models"].items()
        }
        told["prompt_text"] = self.prompts.digest
        if isinstance(self.tasks, FileSource | HubSource):
            told["task_files"] = self.tasks.digest()
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()[:16]

    def price_of(self, name: str) -> Price | None:
        """Of a model of the recipe: its own, else by ``prices``, else by the shipped list. None: free, or unknown."""
        model = self.models[name]
        price = model.price or (find_price(model.served, self.prices) if model.paid else None)
        return price.in_batches() if price and model.batch else price

    @property
    def providers(self) -> dict[str, str]:
        """Agent -> who answers for it, and is paid where anybody is: a service by its address, else the backend."""
        return {name: self.models[agent.model].provider for name, agent in self.agents.items()}

    @property
    def players(self) -> dict[str, tuple[Player, ...]]:
        """The cast as the protocol takes it."""
        return {
            role: tuple(
                Player(name=name, sampling=self.agents[name].sampling, persona=self.agents[name].persona)
                for name in names
            )
            for role, names in self.cast.items()
        }

    @property
    def learners(self) -> tuple[str, ...]:
        """The agents that training tunes."""
        roles = find_protocol(self.protocol).LEARNERS
        return self.train.agents or tuple(dict.fromkeys(name for role in roles for name in self.cast.get(role, ())))


_TOP = {
    "name": "a word for the run's folder",
    "seed": "a whole number",
    "description": "free text",
    "tasks": "where the questions come from",
    "models": "the models, by name",
    "agents": "who plays, by name",
    "protocol": "how they debate",
    "cast": "role -> agents",
    "train": "what is learned from debates",
    "sft": "how adapters are trained",
    "loop": "how often",
    "run": "how the work is spread",
    "prices": "what tokens cost, by model id",
}
_PLACE_KEYS = set(Place.__struct_fields__)
_MODEL_KEYS = {"backend", "limits", "price", "cache", *_PLACE_KEYS}
_AGENT_KEYS = {"model", "persona"}
_TASK_PATHS = ("path", "test_path", "reference_path", "image_folder")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Nothing is started.

    Args:
        overrides: ``key=value`` with a dotted key; the value is read as YAML, so ``loop.iterations=2`` is a number.
    Raises: ConfigError: one sentence that names the file, the key, the value and the fix.
    """
    data = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    return build_recipe(data, where=str(path), folder=path.parent)


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises: ConfigError: missing, not YAML, or not a mapping."""
    import yaml

    from engine.unique_keys import UniqueKeyLoader

    try:
        data = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # noqa: S506  # a SafeLoader
    except OSError as err:
        raise ConfigError(f"recipe {path}: {err.strerror}; `moot list` names the recipes that moot ships") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        mark = getattr(err, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(err, "problem", None) or str(err).partition("\n")[0]
        raise ConfigError(f"recipe {path}{place}: is not valid YAML: {problem}") from err
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {path}: must be a mapping of {', '.join(_TOP)}")
    return data


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key. Raises: ConfigError: not of the form key=value, or it runs through a plain value."""
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} must look like key=value, for instance loop.iterations=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from err
    *path, last = key.split(".")
    here = data
    for step in path:
        here = here.setdefault(step, {})
        if not isinstance(here, dict):
            raise ConfigError(f"override {override!r}: {step!r} holds a plain value, nothing can be set inside it")
    here[last] = value


def build_recipe(data: Mapping[str, Any], *, where: str, folder: Path = Path()) -> Recipe:
    """Check plain data as a whole. Raises: ConfigError: see ``load_recipe``."""
    _known_keys(data, _TOP, where, "")
    for key in ("name", "tasks", "models", "agents", "protocol", "cast"):
        if key not in data:
            raise ConfigError(f"{where}: {key} is missing: {_TOP[key]}")
    protocol, settings, prompts = _read_protocol(data["protocol"], where, folder)
    models = {
        name: _read_model(value, where, f"models.{name}") for name, value in _mapping(data, "models", where).items()
    }
    agents = {
        name: _read_agent(value, where, f"agents.{name}") for name, value in _mapping(data, "agents", where).items()
    }
    recipe = Recipe(
        name=_typed(data["name"], str, where, "name"),
        seed=_typed(data.get("seed", 0), int, where, "seed"),
        description=_typed(data.get("description", ""), str, where, "description"),
        tasks=_read_tasks(data["tasks"], where, folder),
        models=models,
        agents=agents,
        protocol=protocol,
        settings=settings,
        prompts=prompts,
        cast={
            role: _typed(names, tuple[str, ...], where, f"cast.{role}")
            for role, names in _mapping(data, "cast", where).items()
        },
        train=read_section(data.get("train", {}), TrainSettings, where, "train"),
        sft=read_section(data.get("sft", {}), SFTSettings, where, "sft"),
        loop=read_section(data.get("loop", {}), LoopSettings, where, "loop"),
        run=read_section(data.get("run", {}), RunSettings, where, "run"),
        prices={
            model: read_section(value, Price, where, f"prices.{model}")
            for model, value in _table(data.get("prices", {}), where, "prices").items()
        },
        source=dict(data),
    )
    _check_names(recipe, where)
    _check_budget(recipe, where)
    _check_structured(recipe, where)
    _check_batches(recipe, where)
    return recipe


def _check_budget(recipe: Recipe, where: str) -> None:
    """A budget in money needs the price of every model that is paid for, and a bound on what it may say."""
    for name in dict.fromkeys(recipe.agents[agent].model for names in recipe.cast.values() for agent in names):
        if recipe.run.budget.usd and recipe.models[name].paid and recipe.price_of(name) is None:
            raise ConfigError(
                f"{where}: run.budget.usd={recipe.run.budget.usd:g}, but the price of models.{name} "
                f"({recipe.models[name].served!r}) is not in the list of {prices_date()}; set models.{name}.price, "
                "for instance {input: 2.5, output: 10} in US dollars per million tokens (0 where it is free)"
            )
        settings = recipe.models[name].settings
        if recipe.run.budget and "max_tokens" in (
            *getattr(settings, "omit", ()),
            *(str(key).replace("max_completion_tokens", "max_tokens") for key in getattr(settings, "extra_body", ())),
        ):
            raise ConfigError(
                f"{where}: run.budget needs to know the most that models.{name} may say, which its omit or extra_body "
                "takes away: leave max_tokens out of them, and set agents.*.max_tokens"
            )


def _check_structured(recipe: Recipe, where: str) -> None:
    """A reply that is to be held to a schema needs a model that can, and a schema."""
    for name in sorted({name for names in recipe.cast.values() for name in names}):
        model = recipe.agents[name].model
        if not recipe.agents[name].sampling.structured:
            continue
        backend, settings = recipe.models[model].backend, recipe.models[model].settings
        if not BACKENDS[backend].holds_schema(settings):
            own = getattr(settings, "own_form", False)
            why = "says itself what form replies take" if own else f"cannot hold a reply to a schema ({backend})"
            raise ConfigError(
                f"{where}: agents.{name}.structured=true, but models.{model} {why}; take one of the two away, or give "
                f"{name} another model"
            )
        if not recipe.prompts.schemas:
            raise ConfigError(
                f"{where}: agents.{name}.structured=true, but prompt set {recipe.prompts.name!r} has no schema; add a "
                "[schema.PART] to it, or leave structured out"
            )


def _without(value: Any, *keys: str) -> Any:
    return {name: item for name, item in value.items() if name not in keys} if isinstance(value, dict) else value


def _check_batches(recipe: Recipe, where: str) -> None:
    """What waits for hours must be waited for, and has no use for what makes single asks quick."""
    for name in dict.fromkeys(recipe.agents[agent].model for names in recipe.cast.values() for agent in names):
        limits, batch = recipe.models[name].limits, recipe.models[name].batch
        if batch is None:
            continue
        if recipe.models[name].place.replicas > 1:
            raise ConfigError(
                f"{where}: models.{name}.replicas={recipe.models[name].place.replicas}: what is asked in batches has "
                "one ledger, so that nothing is bought twice; leave replicas out"
            )
        at = f"{where}: models.{name}.limits"
        for key in ("hedge_after_s", "requests_per_minute", "tokens_per_minute"):
            if getattr(limits, key):
                raise ConfigError(
                    f"{at}.{key}={getattr(limits, key):g} is for asks that are sent one by one, and models.{name} is "
                    "asked in batches; leave it out"
                )
        if limits.timeout_s < batch.max_wait_s:
            raise ConfigError(
                f"{at}.timeout_s={limits.timeout_s:g} ends a try before its batch may end; set it >= "
                f"models.{name}.batch.max_wait_s={batch.max_wait_s:g}, or leave it out"
            )
        if recipe.settings.deadline_s < limits.timeout_s:
            raise ConfigError(
                f"{where}: protocol.deadline_s={recipe.settings.deadline_s:g} ends a phase before a batch of "
                f"models.{name} may end (limits.timeout_s={limits.timeout_s:g}); set protocol.deadline_s >= "
                f"{limits.timeout_s:g}, or lower models.{name}.batch.max_wait_s"
            )


def _read_protocol(value: Any, where: str, folder: Path) -> tuple[str, ProtocolSettings, PromptSet]:
    section = dict(_table(value, where, "protocol"))
    name = section.pop("name", None)
    if not isinstance(name, str) or (name not in PROTOCOLS and ":" not in name):
        raise ConfigError(f"{where}: protocol.name={name!r} is not known; {_suggest(str(name), PROTOCOLS)}")
    try:
        machine = find_protocol(name)
    except ConfigError as err:
        raise ConfigError(f"{where}: protocol.name: {err}") from err
    settings = read_section(section, machine.SETTINGS, where, "protocol")
    text = None
    if settings.prompts.endswith(".toml"):
        file = folder / settings.prompts
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"{where}: protocol.prompts: cannot read {file}: {err}") from err
    try:
        return name, settings, prompts_of(machine, settings, text=text)
    except ConfigError as err:
        raise ConfigError(f"{where}: protocol.prompts: {err}") from err


def _read_tasks(value: Any, where: str, folder: Path) -> TaskSource:
    section = dict(_table(value, where, "tasks"))
    source = section.pop("source", None)
    if not isinstance(source, str) or source not in SOURCES:
        raise ConfigError(f"{where}: tasks.source={source!r} is not known; {_suggest(str(source), SOURCES)}")
    for key in _TASK_PATHS:  # as seen from the recipe, then from where moot is started
        if isinstance(path := section.get(key), str) and path and not Path(path).exists() and (folder / path).exists():
            section[key] = str(folder / path)
    return read_section(section, SOURCES[source], where, "tasks")


def _read_model(value: Any, where: str, at: str) -> Model:
    refuse_literal_keys(value, f"{where}: {at}")  # before any error can show it
    section = dict(_table(value, where, at))
    backend = section.get("backend")
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ConfigError(f"{where}: {at}.backend={backend!r} is not known; {_suggest(str(backend), BACKENDS)}")
    ours = {key: section.pop(key) for key in _MODEL_KEYS & section.keys()}
    settings = read_section(section, BACKENDS[backend].settings, where, at, also=_MODEL_KEYS)
    heavy = BACKENDS[backend].heavy
    taken = {key: ours[key] for key in _PLACE_KEYS & ours.keys()}
    place = read_section({"num_cpus": 1.0 if heavy else 0.0} | taken, Place, where, at)
    try:
        settings = BACKENDS[backend].on_gpus(settings, place.num_gpus)
    except ValueError as err:
        raise ConfigError(f"{where}: {at}: {err}") from err
    if "cache" in ours and not BACKENDS[backend].cacheable:
        raise ConfigError(f"{where}: {at}.cache: backend {backend!r} has no model whose replies are kept; leave it out")
    return Model(
        backend=backend,
        settings=settings,
        place=place,
        limits=_read_limits(ours.get("limits", {}), BACKENDS[backend].limits(settings), where, f"{at}.limits"),
        price=read_section(ours["price"], Price, where, f"{at}.price") if "price" in ours else None,
        cache=read_section(ours["cache"], CacheSettings, where, f"{at}.cache") if "cache" in ours else None,
    )


def _read_limits(value: Any, defaults: Mapping[str, float], where: str, at: str) -> Limits:
    return read_section({**defaults, **_table(value, where, at)}, Limits, where, at)


def _read_agent(value: Any, where: str, at: str) -> Agent:
    section = dict(_table(value, where, at))
    ours = {key: section.pop(key) for key in _AGENT_KEYS & section.keys()}
    if "model" not in ours:
        raise ConfigError(f"{where}: {at}.model is missing: name one of the models")
    return Agent(
        model=_typed(ours["model"], str, where, f"{at}.model"),
        persona=_typed(ours.get("persona", ""), str, where, f"{at}.persona"),
        sampling=read_section(section, Sampling, where, at, also=_AGENT_KEYS),
    )


def _check_names(recipe: Recipe, where: str) -> None:
    """What the parts say about each other."""
    if not recipe.name or set(recipe.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."):
        raise ConfigError(f"{where}: name={recipe.name!r} names a folder: use letters, digits, '-', '_' and '.'")
    for name, agent in recipe.agents.items():
        if name in ("", ".", "..") or set("@#/\\") & set(name) or "".join(name.split()) != name:
            raise ConfigError(f"{where}: agents.{name}: a name must not hold spaces, '@', '#' or slashes, nor be dots")
        if agent.model not in recipe.models:
            raise ConfigError(f"{where}: agents.{name}.model={agent.model!r}: {_suggest(agent.model, recipe.models)}")
    for role, names in recipe.cast.items():
        for name in names:
            if name not in recipe.agents:
                raise ConfigError(f"{where}: cast.{role} names {name!r}: {_suggest(name, recipe.agents)}")
    try:
        find_protocol(recipe.protocol)(recipe.settings, recipe.players, recipe.prompts)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err
    for name in recipe.train.agents:
        if name not in recipe.agents:
            raise ConfigError(f"{where}: train.agents names {name!r}: {_suggest(name, recipe.agents)}")


def read_section(value: Any, kind: type[T], where: str, at: str, *, also: set[str] | frozenset[str] = frozenset()) -> T:
    """One section as its struct. ``also``: keys that the section may hold beside the struct's.

    Raises: ConfigError: unknown key (with the nearest known one), wrong type, or a value its struct refuses.
    """
    section = _table(value, where, at)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    _known_keys(section, {*fields, *also}, where, at)
    for name, field in fields.items():
        if field.required and name not in section:
            raise ConfigError(f"{where}: {at}.{name} is missing")
    return _typed(section, kind, where, at)


K = TypeVar("K")


def _typed(value: Any, kind: type[K], where: str, at: str) -> K:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        text, _, inside = str(err).partition(" - at `$")
        deeper = inside.rstrip("`")
        text += _hint(_at(value, deeper)) + _allowed(kind, deeper)
        shown = "" if isinstance(value, dict) and not deeper else f"={_at(value, deeper)!r}"
        cause = err.__cause__
        raise ConfigError(f"{where}: {at}{deeper}{'' if cause else shown}: {text}") from err


def _allowed(kind: Any, path: str) -> str:
    """What a setting may be, where that is one of a few words."""
    name = path.strip(".").partition("[")[0].partition(".")[0]
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
    words = sorted(_words(fields.get(name)))
    return f"; use one of: {', '.join(words)}" if words else ""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _words(kind: Any) -> set[str]:
    """The words that a type is made of, however deep."""
    if get_origin(kind) is Literal:
        return {word for word in get_args(kind) if isinstance(word, str)}
    return set().union(*map(_words, get_args(kind)))


def _hint(value: Any) -> str:
    """YAML takes 1e-4 for text, as it misses the dot."""
    try:
        return f"; write {float(value):.1e} without quotes" if isinstance(value, str) and "e" in value.lower() else ""
    except ValueError:
        return ""


def _at(value: Any, path: str) -> Any:
    """The part of plain data that msgspec's path points at; the whole where it cannot be followed."""
    for step in path.strip(".").replace("[", ".").replace("]", "").split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
    return value


def _known_keys(section: Mapping[str, Any], known: Any, where: str, at: str) -> None:
    for key in section:
        if key not in known:
            place = f"{at}.{key}" if at else str(key)
            raise ConfigError(f"{where}: {place}={section[key]!r} is not known; {_suggest(str(key), known)}")


def _suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(sorted(known))}"


def _table(value: Any, where: str, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {at}={value!r} must be a mapping of keys to values")
    return value


def _mapping(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = _table(data[key], where, key)
    if not section:
        raise ConfigError(f"{where}: {key} is empty: {_TOP[key]}")
    for name in section:
        if not isinstance(name, str):  # YAML reads a bare `no` or `1` as something else
            raise ConfigError(f"{where}: {key}.{name}: a name must be text; put it in quotes")
    return section
