"""Imports run one way: engine -> actors -> protocols, engine -> trainers -> protocols; and protocols stays pure.

Inside a package they run down its rooms, and nowhere do files import each other in a circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "protocols": {"protocols"},
    "actors": {"actors", "protocols"},
    "trainers": {"trainers", "protocols"},
    "engine": {"engine", "actors", "trainers", "protocols"},
}
# A package's rooms from the ground up: each may import those before it, and those that share its floor not at all. What
# lies in the package itself stands on all of them.
ROOMS = {
    "engine": (("data",), ("config",), ("record",), ("live",), ("debates",), ("learning",), ("results",)),
    "actors": (("post",), ("limits",), ("models",), ("services", "local")),
    "trainers": (("selection",), ("record",), ("tuning",), ("jobs",)),
}
NOT_SHIPPED = {"tests", "benchmarks", "examples", "scripts"}
PURE = {"protocols"}
# What a pure package needs of the standard library and beyond; a list of what is forbidden would never be complete.
PURE_MAY_IMPORT = {
    "__future__", "abc", "array", "ast", "bisect", "collections", "contextlib", "copy", "dataclasses", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "html", "importlib.resources", "itertools", "json", "math",
    "operator", "random", "re", "statistics", "string", "struct", "textwrap", "tomllib", "types", "typing",
    "unicodedata", "msgspec", "networkx",
}  # fmt: skip
# Import what a recipe names, a protocol of the user's own; and a name of the package itself when it is first used.
LOADS_OTHERS = {"engine/config/named_protocol.py", "protocols/__init__.py"}
PURE_MAY_TAKE_FROM_RANDOM = {"Random"}  # seeded; the module's own functions share one hidden state
NOT_PURE_BUILTINS = {"open", "print", "input", "eval", "exec", "__import__"}


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of all that is imported, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "."
            else:
                yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "importlib.import_module", "__import__"}:
            name = node.args[0] if node.args else None
            known = isinstance(name, ast.Constant) and isinstance(name.value, str)
            yield node.lineno, str(name.value) if known and isinstance(name, ast.Constant) else "."


def import_graph(sources: Mapping[str, str]) -> nx.DiGraph[str]:
    """Module -> the modules that it imports, of those in ``sources``: full name -> text."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module, source in sources.items():
        for _, name in imported_names(ast.parse(source)):
            for target in (name, name.rpartition(".")[0]):  # a module, or a name in one
                if target in sources:
                    graph.add_edge(module, target)
                    break
    return graph


def circles(graph: nx.DiGraph[str]) -> list[list[str]]:
    return [sorted(found) for found in nx.strongly_connected_components(graph) if len(found) > 1]


def _place(module: str) -> tuple[int, str]:
    """Floor and room of a module; what lies in no room is above them all."""
    package, *inside = module.split(".")
    room = inside[0] if len(inside) > 1 else ""
    floors = ROOMS.get(package, ())
    return next((number for number, rooms in enumerate(floors) if room in rooms), len(floors)), room


def climbing(graph: nx.DiGraph[str]) -> list[str]:
    """What imports from a room above its own, or beside it, in its package."""
    found = []
    for one, other in graph.edges:
        package = one.partition(".")[0]
        if package not in ROOMS or package != other.partition(".")[0]:
            continue
        (floor, room), (other_floor, other_room) = _place(one), _place(other)
        if room != other_room and other_floor >= floor:
            found.append(f"{one} -> {other}")
    return found


def _modules() -> dict[str, str]:
    files = [file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py")]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file.read_text() for file, name in names.items()}


def _called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def _is_one_of(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def problems(package: str, source: str) -> list[str]:
    """What one module of ``package`` does against the arrows, as "line: what"."""
    tree = ast.parse(source)
    found = []
    for line, name in imported_names(tree):
        top = name.partition(".")[0]
        if not top:
            found.append(f"{line}: an import whose target cannot be read here: relative or computed")
        elif (top in MAY_IMPORT or top in NOT_SHIPPED) and top not in MAY_IMPORT[package]:
            found.append(f"{line}: {package} imports {name}")
        elif package in PURE and top not in MAY_IMPORT and not _is_one_of(name, PURE_MAY_IMPORT):
            found.append(f"{line}: {package} is pure and imports {name}")
        elif package in PURE and top == "random" and name.partition(".")[2] not in {"", *PURE_MAY_TAKE_FROM_RANDOM}:
            found.append(f"{line}: {package} takes {name}, which draws from a hidden state")
    return found + (list(_impure_uses(package, tree)) if package in PURE else [])


def _impure_uses(package: str, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in NOT_PURE_BUILTINS:
            yield f"{node.lineno}: {package} is pure and calls {_called(node)}()"
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "random":
            yield from _hidden_state(package, node)


def _hidden_state(package: str, node: ast.Attribute) -> Iterator[str]:
    if node.attr not in PURE_MAY_TAKE_FROM_RANDOM:
        yield f"{node.lineno}: {package} uses random.{node.attr}, which draws from a hidden state"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_along_the_arrows(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package}/ holds no module: this test would pass whatever is there"
    found = [f"{file.relative_to(ROOT)}:{line}" for file in files for line in problems(package, file.read_text())]
    computed = [line for line in found if line.endswith(("relative or computed", "imports importlib.import_module"))]
    assert {line.partition(":")[0] for line in computed} <= LOADS_OTHERS
    assert [line for line in found if line not in computed] == []


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("protocols", "import actors", "protocols imports actors"),
        ("protocols", "def f():\n    from engine.run import Work", "2: protocols imports engine.run.Work"),
        ("protocols", "if TYPE_CHECKING:\n    import trainers.jobs", "2: protocols imports trainers.jobs"),
        ("actors", "from trainers import select", "actors imports trainers.select"),
        ("actors", "import protocols, engine.run as run", "actors imports engine.run"),
        (
            "trainers",
            "async def f():\n  try:\n    import actors.agent\n  finally: pass",
            "3: trainers imports actors.agent",
        ),
        ("engine", "from tests.fakes import Fake", "engine imports tests.fakes.Fake"),
        ("trainers", "importlib.import_module('actors.agent')", "trainers imports actors.agent"),
        ("engine", "import_module(name)", "cannot be read here"),
        ("engine", "from . import arena", "cannot be read here"),
        ("protocols", "import ray", "pure and imports ray"),
        ("protocols", "def f():\n    import torch.nn as nn", "pure and imports torch.nn"),
        ("protocols", "from transformers import AutoModel", "pure and imports transformers.AutoModel"),
        ("protocols", "import sqlite3", "pure and imports sqlite3"),
        ("protocols", "import asyncio", "pure and imports asyncio"),
        ("protocols", "import socket", "pure and imports socket"),
        ("protocols", "import requests", "pure and imports requests"),
        ("protocols", "from time import monotonic", "pure and imports time.monotonic"),
        ("protocols", "import datetime", "pure and imports datetime"),
        ("protocols", "from importlib import import_module", "pure and imports importlib.import_module"),
        ("protocols", "from random import choice", "hidden state"),
        ("protocols", "import random\nrandom.shuffle(x)", "2: protocols uses random.shuffle"),
        ("protocols", "open('x')", "calls open()"),
        ("protocols", "eval(reply)", "calls eval()"),
    ],
)
def test_an_import_against_the_arrows_is_seen(package: str, source: str, expected: str) -> None:
    (found,) = problems(package, source)
    assert expected in found


def test_what_is_allowed_is_not_reported() -> None:
    pure = (
        "import random\nfrom random import Random\nfrom importlib.resources import files\nimport networkx as nx\n"
        "from protocols.task import Task\nrandom.Random(7).shuffle([1])\n"
    )
    assert problems("protocols", pure) == []
    assert problems("engine", "import ray, time, actors.agent\nfrom trainers import select\nimport protocols") == []
    assert problems("actors", "import enginelike\nfrom protocols import Task") == []


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_its_floor(package: str) -> None:
    rooms = {file.parent.name for file in (ROOT / package).glob("*/__init__.py")}
    assert rooms == {room for floor in ROOMS[package] for room in floor}


def test_rooms_stand_on_each_other() -> None:
    graph = import_graph(_modules())
    assert graph.number_of_edges() > 100, "hardly an import was found: this test would pass whatever is there"
    assert climbing(graph) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for types alone count: what is tied by its types is not understood apart."""
    assert circles(import_graph(_modules())) == []


def test_a_circle_and_an_import_upwards_are_seen() -> None:
    graph = import_graph({
        "engine.data.tasks": "if TYPE_CHECKING:\n    from engine.debates.stage import Stage",
        "engine.debates.stage": "def f():\n    import engine.data.tasks",
        "engine.run": "from engine.debates import stage",
        "actors.local.vllm": "from actors.services import http",
        "actors.services.http": "from actors.models.backend import Backend",
        "actors.models.backend": "",
        "trainers.one": "from trainers.other import Training",
        "trainers.other": "from trainers.one import Settings",
    })  # fmt: skip
    assert sorted(circles(graph)) == [["engine.data.tasks", "engine.debates.stage"], ["trainers.one", "trainers.other"]]
    assert climbing(graph) == [
        "engine.data.tasks -> engine.debates.stage",
        "actors.local.vllm -> actors.services.http",
    ]
