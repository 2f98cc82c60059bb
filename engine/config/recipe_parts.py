"""What the parts of a recipe must say of each other: each check is one sentence where it fails."""

from __future__ import annotations

from actors.catalogue import BACKENDS
from actors.limits.prices import prices_date
from engine.config.colocation import check_colocation
from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from engine.config.refusals import suggest
from protocols.errors import ConfigError
from trainers.tuning.sft_settings import check_gpus


def check_recipe_parts(recipe: Recipe, where: str) -> None:
    """Raises: ConfigError: two parts contradict each other, or one names what is not there."""
    checks = (
        _check_names, _check_rules, _check_training, check_colocation, _check_budget, _check_structured, _check_batches,
        _check_finetune,
    )  # fmt: skip
    for check in checks:
        check(recipe, where)


def _check_names(recipe: Recipe, where: str) -> None:
    """What the parts say about each other."""
    if not recipe.name or set(recipe.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."):
        raise ConfigError(f"{where}: name={recipe.name!r} names a folder: use letters, digits, '-', '_' and '.'")
    for name, agent in recipe.agents.items():
        if name in ("", ".", "..") or set("@#/\\") & set(name) or "".join(name.split()) != name:
            raise ConfigError(f"{where}: agents.{name}: a name must not hold spaces, '@', '#' or slashes, nor be dots")
        if agent.model not in recipe.models:
            raise ConfigError(f"{where}: agents.{name}.model={agent.model!r}: {suggest(agent.model, recipe.models)}")
    for role, names in recipe.cast.items():
        for name in names:
            if name not in recipe.agents:
                raise ConfigError(f"{where}: cast.{role} names {name!r}: {suggest(name, recipe.agents)}")
    try:
        find_protocol(recipe.protocol)(recipe.settings, recipe.players, recipe.prompts)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err
    for name in recipe.train.agents:
        if name not in recipe.agents:
            raise ConfigError(f"{where}: train.agents names {name!r}: {suggest(name, recipe.agents)}")


def _check_rules(recipe: Recipe, where: str) -> None:
    """Rules are given to roles that there are, and to everybody who learns."""
    roles = find_protocol(recipe.protocol).ROLES
    for role in recipe.train.rules:
        if role not in roles:
            raise ConfigError(f"{where}: train.rules names the role {role!r}: {suggest(role, roles)}")
    for name in recipe.train.agents:
        if not recipe.train.rules_of(name, recipe.cast):
            raise ConfigError(
                f"{where}: train.agents names {name!r}, which plays no role of train.rules "
                f"({', '.join(recipe.train.rules)}), so it would learn nothing; give its role a rule or leave it out"
            )
    try:
        recipe.train.check_learners(recipe.learners)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err


def _check_training(recipe: Recipe, where: str) -> None:
    """How adapters are trained must be possible where they are trained."""
    try:
        check_gpus(recipe.sft.method, recipe.train.gpus_per_lane)
    except ConfigError as err:
        raise ConfigError(f"{where}: {err}") from err


def _check_budget(recipe: Recipe, where: str) -> None:
    """A budget in money needs the price of every model that is paid for, and a bound on what it may say."""
    for name in recipe.models_in_use:
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
    for name in sorted(recipe.speakers):
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


def _check_batches(recipe: Recipe, where: str) -> None:
    """What waits for hours must be waited for, and has no use for what makes single asks quick."""
    for name in recipe.models_in_use:
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


def _check_finetune(recipe: Recipe, where: str) -> None:
    """An agent is trained in one place, and what that costs is known where money has a limit."""
    for name in recipe.hosted:
        model = recipe.agents[name].model
        at, settings = f"{where}: models.{model}.finetune", recipe.models[model].finetune
        if recipe.train.base_model:
            raise ConfigError(
                f"{at}: its service trains {name}, while train.base_model={recipe.train.base_model!r} would train it "
                "here; leave out one of the two"
            )
        if recipe.loop.preferences:
            raise ConfigError(
                f"{at}: its service trains {name}, and preferences are learned here, on top of an adapter; set "
                "loop.preferences=false, or leave finetune out"
            )
        price = recipe.price_of(model)
        known = settings is not None and settings.epochs and price is not None and price.training is not None
        if recipe.run.budget.usd and not known:
            raise ConfigError(
                f"{at}: run.budget.usd={recipe.run.budget.usd:g} needs to know the most that a training may cost; set "
                f"finetune.epochs, and training in models.{model}.price, in US dollars per million tokens"
            )
        if recipe.run.budget.usd and recipe.loop.staleness:
            raise ConfigError(
                f"{at}: with loop.staleness={recipe.loop.staleness} its service trains {name} while debates go on, and "
                f"what both spend cannot be held to run.budget.usd={recipe.run.budget.usd:g}; set loop.staleness=0, or "
                "leave the budget out"
            )
