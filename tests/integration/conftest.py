"""What the integration tests share: the command line on a recipe, and a model small enough to be trained in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.command import Moot, moot_in
from tests.trainers.conftest import tiny_model

__all__ = ["tiny_model"]


@pytest.fixture(scope="module")
def moot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    """Moot in a folder where the module's ``RECIPE`` lies as ``recipe.yaml``."""
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    (folder / "recipe.yaml").write_text(request.module.RECIPE)
    with moot_in(folder) as moot:
        yield moot
