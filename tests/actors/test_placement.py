"""What a host's actor makes of its spec: gates where they are needed, images for those who send them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from actors.agent import Limits
from actors.limits.budget import Budget
from actors.limits.shared_gate import Keeper
from actors.local.transformers_settings import TransformersSettings
from actors.models.images import ReadsImages
from actors.models.scripted import ScriptedSettings
from actors.placement import AgentActor, HostSpec, account_of, env_of
from actors.services.batch_book import BatchSettings
from actors.services.batched import BatchedBackend
from actors.services.openai_chat import OpenAISettings
from protocols.message import ImagePart
from tests.actors.remote import Remote

API = OpenAISettings(model="gpt-4o-mini")
BATCHED = OpenAISettings(model="gpt-4o-mini", batch=BatchSettings())


def spec(**fields: Any) -> HostSpec:
    return HostSpec(**{"name": "one", "backend": "scripted", "settings": ScriptedSettings(), **fields})


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fields", "gates"),
    [
        ({}, []),  # nothing is limited
        ({"budgeted": True}, ["budget"]),
        ({"limits": Limits(requests_per_minute=60.0)}, ["admission"]),
        ({"backend": "openai", "settings": API}, ["admission"]),
        ({"backend": "openai", "settings": BATCHED, "folder": "r", "budgeted": True}, ["budget"]),  # no admission
        (
            {"backend": "openai", "settings": API, "budgeted": True},
            ["budget", "admission"],
        ),  # in this order
    ],
)
async def test_gates_stand_where_there_is_a_limit(
    fields: dict[str, Any], gates: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    actor = AgentActor(spec(keeper=Remote(Keeper(Budget())), **fields))
    assert list((await actor.stats()).gates) == gates
    alone = AgentActor(spec(**fields))
    assert list((await alone.stats()).gates) == [gate for gate in gates if gate == "admission"]  # its own


@pytest.mark.asyncio
async def test_a_started_host_opens_its_account_and_can_be_halted() -> None:
    keeper = Keeper(Budget())
    actor = AgentActor(spec(keeper=Remote(keeper), limits=Limits(tokens_per_minute=600.0)))
    await actor.start()
    assert (await keeper.figures())["scripted:one"]["tokens_per_minute"] == 600.0
    await actor.halt("enough")
    assert (await actor.stats()).stopped == "enough"
    await actor.close()


def test_a_host_that_was_started_again_is_another_to_the_keeper_and_has_its_models_account() -> None:
    first, again = spec(name="m/0", model="m"), spec(name="m/0", model="m", incarnation=1)
    assert first.line != again.line
    assert account_of(first) == account_of(again) == account_of(spec(name="m/1", model="m"))


def test_hosts_of_one_model_share_an_account() -> None:
    first, second = (spec(name=name, backend="openai", settings=API) for name in ("a", "b"))
    assert account_of(first) == account_of(second) == "openai:gpt-4o-mini"
    assert account_of(spec(name="a")) != account_of(spec(name="b"))


def test_a_backend_that_sends_images_reads_them_from_the_runs_folders(tmp_path: Path) -> None:
    actor = AgentActor(spec(backend="openai", settings=API, media=(str(tmp_path),)))
    backend = actor._host._backend
    assert isinstance(backend, ReadsImages) and backend.read_image is not None
    data = b"an image"
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / digest).write_bytes(data)
    assert backend.read_image(ImagePart(sha256=digest)) == data


@pytest.mark.parametrize(
    ("name", "folder"), [("gpt", "gpt"), ("gpt-4.1", "gpt-4%2E1"), ("../../x", "%2E%2E%2F%2E%2E%2Fx"), ("..", "%2E%2E")]
)
def test_a_backend_that_keeps_files_has_a_folder_of_its_own_in_the_runs(tmp_path: Path, name: str, folder: str) -> None:
    backend = AgentActor(spec(name=name, backend="openai", settings=BATCHED, folder=str(tmp_path)))._host._backend
    assert isinstance(backend, BatchedBackend) and backend.folder == tmp_path / "models" / folder
    assert isinstance(backend, ReadsImages) and backend.read_image is not None


def test_a_model_that_is_given_no_gpu_is_shown_none() -> None:
    """Ray shows all of them to whoever asks for none."""
    local: dict[str, Any] = {"backend": "transformers", "settings": TransformersSettings()}
    hides = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"
    assert env_of(spec(**local))[hides] == "1"
    assert hides not in env_of(spec(**local, num_gpus=0.5))
    assert env_of(spec()) == {}  # nothing to start a process of its own kind for
