"""What the integration tests share with the trainers': a model small enough to be trained in seconds."""

from __future__ import annotations

from tests.trainers.conftest import tiny_model

__all__ = ["tiny_model"]
