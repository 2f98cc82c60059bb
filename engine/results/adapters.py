"""The adapters of a run, for people: what there is and where it comes from; merged, exported, pushed to the hub."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import msgspec

from actors.models.backend import EMBEDDED
from engine.learning.model_card import model_card
from engine.learning.versions import base_folder, find, find_weights, registry_of, whole_model
from engine.record.stage_names import BEFORE_PREFERENCES
from engine.results.evaluate import SINGLE_AGENT, Evaluation
from engine.results.findings import describe
from protocols.errors import ConfigError
from trainers.jobs.hosted import read_hosted
from trainers.record.registry import CONFIG_NAME, WEIGHTS_NAME, AdapterRecord, Registry, weights_hash
from trainers.selection.preference import Pairing
from trainers.tuning.sft_settings import RESULT_NAME

HUB_NAMES = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}  # bases that recipes name by a word of ours
LINEAGE_NAME = "lineage.json"
TOKEN_ENV = "HF_TOKEN"

Outcome = dict[str, Any]


def list_adapters(run: Path) -> Outcome:
    """All adapters of a run, oldest first. Raises: ConfigError: not a run, or it has none."""
    return {"run": str(run), "adapters": [_told(record) for record in registry_of(run).list()]}


def show_adapter(run: Path, name: str) -> Outcome:
    """One adapter and what it comes from, its files checked.

    Args:
        name: an adapter's, or an agent's for its newest.
    Raises: ConfigError: not a run. TrainerError: no such adapter, or its files are not those that were registered.
    """
    registry, record = find(run, name)
    return {
        "run": str(run),
        **_told(record),
        "base_model": record.base_model,
        "base_hash": record.base_hash,
        "data_hash": record.data_hash,
        "recipe_hash": record.recipe_hash,
        "checksum": record.checksum,
        "folder": str(registry.folder_of(record)),
        **({"hosted": _hosted(registry, record)} if record.model else {}),
        "lineage": [item.name for item in registry.lineage(record.name)] + [record.base_model],
    }


def merge(run: Path, name: str, output: Path, *, base: Path | None = None, dtype: str = "auto") -> Outcome:
    """Write adapter and base as one model, in a folder that transformers and vLLM load by itself.

    Args:
        base: the base's folder; default: what the run trained.
    Raises: ConfigError: no such base, the output is there already, or it is no adapter. TrainerError: see
        ``show_adapter``; another base.
    """
    registry, record = find_weights(run, name)
    if record.whole:
        raise whole_model(registry, record, "there is nothing to merge it with")
    base = base or base_folder(record)
    registry.get(record.name, base_hash=weights_hash(base), base_model=str(base))
    with _whole_folder(output) as draft:
        from trainers.jobs.worker import quiet
        from trainers.tuning.merge import merge_adapter

        quiet()
        error = merge_adapter(base, registry.folder_of(record), draft, dtype=dtype)
        _describe(run, registry, record, draft, merged=True)
    return {"run": str(run), "adapter": record.name, "output": str(output), "max_log_prob_error": float(f"{error:.3g}")}


def export(run: Path, name: str, output: Path, *, base_id: str = "") -> Outcome:
    """Write an adapter's folder, or a whole model's, for others: with a model card and its lineage.

    Args:
        base_id: the base's name on the hub.
    Raises: ConfigError: the output is there already. TrainerError: see ``show_adapter``.
    """
    registry, record = find_weights(run, name)
    with _whole_folder(output) as draft:
        _export(run, registry, record, draft, base_id)
    return {"run": str(run), "adapter": record.name, "output": str(output)}


def push(run: Path, name: str, repository: str, *, base_id: str = "", public: bool = False) -> Outcome:
    """Export an adapter into a repository of the Hugging Face hub, in one commit; the repository is made if need be.

    The token is that of the environment's HF_TOKEN, the hub that of HF_ENDPOINT if that is set.

    Raises: ConfigError: no token, no such repository, or the hub refuses. TrainerError: see ``show_adapter``.
    """
    from httpx2 import HTTPError  # of huggingface_hub's client

    from actors.services.api_key import read_key

    registry, record = find_weights(run, name)
    key = read_key(TOKEN_ENV, "")
    with tempfile.TemporaryDirectory(prefix="moot-push-") as work:
        draft = Path(work)
        _export(run, registry, record, draft, base_id)
        try:
            url, commit = _commit(draft, repository, record, key.header(), public=public)
        except (HTTPError, OSError, ValueError, RuntimeError) as err:
            said = key.redact(" ".join(str(err).split())) or type(err).__name__
            raise ConfigError(
                f"{record.name} cannot be pushed to {repository!r}: {said}; check the name, as ORGANISATION/NAME, and "
                f"that {TOKEN_ENV} may write there"
            ) from None  # the cause's text may hold the key
    return {"run": str(run), "adapter": record.name, "repository": repository, "url": url, "commit": commit}


def _commit(folder: Path, repository: str, record: AdapterRecord, token: str, *, public: bool) -> tuple[str, str]:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    url = api.create_repo(repository, private=not public, exist_ok=True)
    files = [CommitOperationAdd(file.name, str(file)) for file in sorted(folder.iterdir())]
    commit = api.create_commit(url.repo_id, files, commit_message=f"{record.name}, by moot")
    return str(url), commit.oid


def _export(run: Path, registry: Registry, record: AdapterRecord, folder: Path, base_id: str) -> None:
    source = registry.folder_of(record)
    if record.whole:
        for file in source.iterdir():
            if file.name != RESULT_NAME:
                shutil.copyfile(file, folder / file.name)
        _describe(run, registry, record, folder, merged=False, base_id=base_id)
        return
    shutil.copyfile(source / WEIGHTS_NAME, folder / WEIGHTS_NAME)
    config = json.loads((source / CONFIG_NAME).read_bytes())
    config["base_model_name_or_path"] = _hub_name(record, base_id) or Path(record.base_model).name  # not our folder
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    _describe(run, registry, record, folder, merged=False, base_id=base_id)


def _describe(
    run: Path, registry: Registry, record: AdapterRecord, folder: Path, *, merged: bool, base_id: str = ""
) -> None:
    """The card, and the lineage for programs."""
    lineage = [_public(item) for item in registry.lineage(record.name)]
    card = model_card(lineage, base_id=_hub_name(record, base_id), merged=merged, results=_results(run, record))
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / LINEAGE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(lineage), indent=2) + b"\n")


def _public(record: AdapterRecord) -> AdapterRecord:
    """Without the folders of this machine."""
    base = HUB_NAMES.get(record.base_model) or Path(record.base_model).name
    return msgspec.structs.replace(record, path="", base_model=base)


def _hub_name(record: AdapterRecord, given: str) -> str:
    """The base's name on the hub; "" for a folder, which others do not have."""
    known = given or HUB_NAMES.get(record.base_model, record.base_model)
    return "" if Path(known).is_absolute() or Path(known).exists() or known.count("/") > 1 else known


def _results(run: Path, record: AdapterRecord) -> dict[str, str]:
    """What the run's agents reached with this version, of the measures that are about this one."""
    stage = f"eval-{record.metrics.get('iteration', -1):.0f}"
    between = run / "results" / f"{stage}{BEFORE_PREFERENCES}.json"
    file = between if record.rule not in get_args(Pairing) and between.exists() else run / "results" / f"{stage}.json"
    if not file.is_file():
        return {}
    found = msgspec.json.decode(file.read_bytes(), type=Evaluation)
    figures = [found.figure(name) for name in (f"{record.agent} alone", SINGLE_AGENT)]
    return {f"{figure.name}, {figure.num_graded} tasks": describe(figure) for figure in figures if figure}


def _hosted(registry: Registry, record: AdapterRecord) -> Outcome:
    result = read_hosted(registry.folder_of(record))
    return msgspec.to_builtins(result.hosted) if result else {}


def _told(record: AdapterRecord) -> Outcome:
    return {
        "name": record.name,
        "agent": record.agent,
        "version": record.version,
        "parent": record.parent,
        "rule": record.rule,
        "rows": record.rows,
        "metrics": record.metrics,
        **({"model": record.model} if record.model else {}),
        **({"whole": True} if record.whole else {}),
        "created": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(record.created_at)) + " UTC",
    }


def told(outcome: Outcome) -> Outcome:
    """The same for people: an adapter a line."""
    if not isinstance(outcome.get("adapters"), list):
        return outcome
    return outcome | {"adapters": [_line(record) for record in outcome["adapters"]]}


def _line(record: Outcome) -> str:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items())
    model = f"  as {record['model']}" if "model" in record else "  a whole model" if "whole" in record else ""
    return (
        f"{record['name']}  from {record['parent'] or 'the base'}  {record['rows']} rows by {record['rule']}  {figures}"
        f"{model}"
    )


@contextmanager
def _whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside ``output`` that gets its name when all went well, and is gone when not."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"-o {output}: is there already; choose another")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield draft
            draft.chmod(0o755)
            draft.rename(output)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as err:
        raise ConfigError(f"-o {output}: cannot be written: {err.strerror or err}") from err
