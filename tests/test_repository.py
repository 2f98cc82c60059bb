"""The repository as a whole: nothing secret or machine-bound in it, ranges and locks agree, imports stay light."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "ray", "vllm", "transformers", "networkx", "matplotlib", "datasets", "numpy", "pandas", "trl", "peft"}
SHARED_FOLDERS = {"/", "/data", "/home", "/mnt", "/opt", "/srv", "/tmp", "/usr", "/var"}  # may be named
SECRETS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a GitHub token": r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_[A-Za-z0-9_]{30,}",
    "a Hugging Face token": r"\bhf_[A-Za-z]{30,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a Google key": r"\bAIza[0-9A-Za-z_-]{35}",
    "a Slack token": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'{}<>$*]+:[^\s/@\"'{}<>$*]+@",
}
HOMES = r"/roo[t]\b|/Users/\w+|/home/(?!ada\b|runner\b|ubuntu\b|user\b)\w+"


def _machine_paths(root: Path) -> dict[str, str]:
    """Patterns for the folders of whoever runs this, and for what lies beside the repository there."""
    here = [re.escape(str(folder)) for folder in (root, root.parent) if str(folder) not in SHARED_FOLDERS]
    within = {path.name for path in root.iterdir()}
    beside = {path.name for path in root.parent.iterdir() if len(path.name) > 2} - within  # "../x" may mean any x
    names = "|".join(sorted(map(re.escape, beside))) or r"(?!)"
    return {
        "a path of one machine": rf"(?<![\w.~$}}/-])(?:{'|'.join([HOMES, *here])})(?![\w-])",
        "a path out of the repository": rf"\.\./(?:{names})(?![\w-])",
    }


FORBIDDEN = SECRETS | _machine_paths(ROOT)


def tracked_files() -> list[Path]:
    """What a commit of this folder would hold; outside git (an unpacked archive), every file that is no leftover."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=60,
    )
    if listed.returncode == 0 and listed.stdout:
        found = [ROOT / os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        ours = (path for path in ROOT.rglob("*") if not _is_leftover(path.relative_to(ROOT)))
        found = [path for path in ours if path.is_file()]
    return [path for path in found if path.is_file()]


def _is_leftover(path: Path) -> bool:
    names = {".git", ".venv", ".venv-tools", "build", "dist", "runs", "__pycache__"}
    return any(part in names or part.endswith((".egg-info", "_cache", ".hypothesis")) for part in path.parts)


def findings(text: str, forbidden: Mapping[str, str] = FORBIDDEN) -> list[str]:
    """What ``text`` holds that no file of a public repository may hold, as "line: what"."""
    return [
        f"{number}: {what}"
        for number, line in enumerate(text.splitlines(), 1)
        for what, pattern in forbidden.items()
        if re.search(pattern, line)
    ]


def read_lock(kind: str) -> dict[str, Version]:
    lines = (ROOT / "locks" / f"{kind}.lock").read_text().splitlines()
    pins = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, _, version in pins}


def requirements(kind: str) -> list[Requirement]:
    """moot's own ranges for a machine of this kind, developers' tools included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    wanted, found = [*project["dependencies"], *extras[kind], *extras["dev"]], []
    while wanted:
        requirement = Requirement(wanted.pop())
        if requirement.name == project["name"]:
            wanted += [line for extra in requirement.extras for line in extras[extra]]
        else:
            found.append(requirement)
    return found


def run_python(code: str) -> Any:
    """What ``code`` prints as JSON in a fresh interpreter."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def heavy_after(statement: str) -> set[str]:
    return HEAVY & set(run_python(f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"))


def test_no_file_holds_a_secret_or_a_path_of_one_machine() -> None:
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for file in files:
        if file.suffix not in {".png", ".gif", ".gz", ".parquet", ".safetensors", ".pdf"}:
            name = file.relative_to(ROOT)
            found += [f"{name}:{finding}" for finding in findings(file.read_text("utf-8", errors="replace"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "key = AKIA" + "A1B2C3D4" * 2,
        "HF_TOKEN=hf_" + "aBcDe" * 7,
        "OPENAI_API_KEY=sk-" + "aB3" * 10,
        "index-url = https://ada:" + "secret@pypi.example/simple",
        "see /" + "root/.cache",
        "cd /home/" + "someone/moot",
        "/Users/" + "someone/moot",
    ],
)
def test_a_secret_or_a_home_folder_is_seen(text: str) -> None:
    assert findings(text)


def test_the_folder_of_this_machine_is_seen(tmp_path: Path) -> None:
    root = tmp_path / "place" / "moot"
    for folder in (root / "docs", root.parent / "notes", root.parent / "docs", root.parent / "x"):
        folder.mkdir(parents=True)
    forbidden = _machine_paths(root)
    assert findings(f"open('{root}/data')", forbidden) == ["1: a path of one machine"]
    assert findings(f"ok\nsee {root.parent}", forbidden) == ["2: a path of one machine"]
    assert findings("read `../notes/plan.md`", forbidden) == ["1: a path out of the repository"]
    assert findings(f"../docs/index.md ../notes-2 ../x {root.parent}s", forbidden) == []


@pytest.mark.parametrize(
    "text",
    [
        "tests/root", "https://example.org/root", "task-network://", "/mnt/moot", "$HOME/root",
        "https://example.org:8000/v1@2", "sk-learn", "/home/ada/.cache", "/workers", "/rooted",
    ],
)  # fmt: skip
def test_what_is_harmless_is_not_reported(text: str) -> None:
    assert findings(text) == []


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_locks_hold_what_the_ranges_ask_for(kind: str) -> None:
    lock = read_lock(kind)
    missing = [
        str(requirement)
        for requirement in requirements(kind)
        if not (pin := lock.get(canonicalize_name(requirement.name))) or pin not in requirement.specifier
    ]
    assert missing == []


def test_every_range_is_closed_at_both_ends() -> None:
    for requirement in requirements("cpu") + requirements("gpu"):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {">=", "<"}), f"{requirement}: which versions have the tests run with?"


@pytest.mark.parametrize("package", ["protocols", "actors", "trainers", "engine"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    assert heavy_after(f"import {package}") == set()


@pytest.mark.skipif(not (ROOT / "engine" / "cli.py").exists(), reason="no command line yet")
def test_the_command_line_loads_nothing_heavy() -> None:
    assert heavy_after("import engine.cli") == set()


def test_a_heavy_import_would_be_seen() -> None:
    assert heavy_after("import networkx") >= {"networkx"}
