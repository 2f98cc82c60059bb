"""Property tests here draw the same examples on every machine, and a slow machine fails none of them."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("protocols", parent=settings.default, derandomize=True)
settings.load_profile("protocols")
