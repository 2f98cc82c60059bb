"""Makes .venv from a lock, and the locks from pyproject.toml. Standard library only; ``scripts/install`` starts it.

    install.py              .venv from locks/cpu.lock, with moot itself in editable form
    install.py gpu          the same from locks/gpu.lock
    install.py lock [...]   both locks from pyproject.toml; further arguments go to ``uv pip compile``

uv does the work where it is to be had and MOOT_NO_UV is not set, else pip. Both get what the user told pip: index,
find-links, certificate.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
TOOLS = ROOT / ".venv-tools"  # pip and uv; nothing of moot's
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".moot-stamp"  # written last: it says that everything before it worked
UV = "uv>=0.9,<1"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class InstallError(Exception):
    """Says what could not be done and what to do about it."""


def say(text: str) -> None:
    print(f"moot: {text}", flush=True)


def run(*command: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command's result; its output is kept for the one who needs it."""
    words = [str(word) for word in command]
    return subprocess.run(
        words, cwd=ROOT, env=env, text=True, check=False, stdin=subprocess.DEVNULL, capture_output=True
    )


def must(what: str, *command: object, env: Mapping[str, str] | None = None) -> str:
    """The command's output. Raises: InstallError: it failed."""
    done = run(*command, env=env)
    if done.returncode:
        raise InstallError(f"{what} failed:\n{tail(done)}")
    return done.stdout


def tail(done: subprocess.CompletedProcess[str], num_lines: int = 30) -> str:
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-num_lines:])


# ---------------------------------------------------------------------------------------------------------------------
# What the user told pip, told to uv
# ---------------------------------------------------------------------------------------------------------------------


def parse_pip_config(text: str) -> dict[str, str]:
    """What ``pip config list`` prints, as pip reads it: [install] goes before [global], the environment before both."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in text.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.partition(".")
        if section in sections and value:
            sections[section][key] = str(ast.literal_eval(value))
    return sections["global"] | sections["install"] | sections[":env:"]


def uv_environment(pip: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with pip's settings in uv's words; what is set for uv already stays as it is."""

    def words(key: str, separator: str = " ") -> str:
        return separator.join(pip.get(key, "").split())

    proxy, timeout = words("proxy"), words("timeout") or words("default-timeout")
    wanted = {
        "UV_DEFAULT_INDEX": words("index-url"),
        "UV_INDEX": words("extra-index-url"),
        "UV_FIND_LINKS": words("find-links", ","),
        "UV_NO_INDEX": "1" if words("no-index").lower() in {"1", "true", "yes", "on"} else "",
        "UV_INSECURE_HOST": words("trusted-host"),
        "UV_HTTP_TIMEOUT": str(int(float(timeout))) if timeout else "",
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # as pip does: the lock's version, from whichever index has it
        "UV_SYSTEM_CERTS": "true",
        "SSL_CERT_FILE": pip.get("cert", ""),
        "HTTPS_PROXY": proxy,
        "HTTP_PROXY": proxy,
    }
    return {key: value for key, value in wanted.items() if value} | dict(environ)


# ---------------------------------------------------------------------------------------------------------------------
# Tools
# ---------------------------------------------------------------------------------------------------------------------


def make_venv(folder: Path, *options: str) -> None:
    base = getattr(sys, "_base_executable", sys.executable)  # a link to a link breaks when the first .venv goes
    done = run(base, "-m", "venv", *options, folder)
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"{base} cannot make {folder.name}; on Debian and Ubuntu: apt install python3.11-venv\n{tail(done)}"
        )


def find_pip() -> list[str]:
    """A pip outside .venv. Raises: InstallError: this Python can make none."""
    python = TOOLS / "bin" / "python"
    if not python.exists() or run(python, "-m", "pip", "--version").returncode:
        shutil.rmtree(TOOLS, ignore_errors=True)
        say("making .venv-tools for pip and uv")
        make_venv(TOOLS)
    return [str(python), "-m", "pip"]


def find_uv(pip: list[str]) -> str | None:
    """uv as it is in .venv-tools, as pip can get it, or as it is on this machine; None: not to be had."""
    if os.environ.get("MOOT_NO_UV"):
        return None
    own = TOOLS / "bin" / "uv"
    if not own.exists():
        run(*pip, "install", "--quiet", UV)
    return str(own) if own.exists() else shutil.which("uv")


def uv_env(pip: list[str]) -> dict[str, str]:
    return uv_environment(parse_pip_config(run(*pip, "config", "list").stdout), os.environ)


# ---------------------------------------------------------------------------------------------------------------------
# Install
# ---------------------------------------------------------------------------------------------------------------------


def stamp_of(kind: str) -> str:
    """Where .venv stands, and a hash of all that decides what is in it."""
    digest = hashlib.sha256(repr((kind, sys.version, platform.platform())).encode())
    for file in (ROOT / "locks" / f"{kind}.lock", ROOT / "pyproject.toml", Path(__file__)):
        digest.update(file.read_bytes())
    return f"{VENV}\n{digest.hexdigest()}\n"


def is_current(stamp: str) -> bool:
    return STAMP.is_file() and STAMP.read_text() == stamp and (VENV / "bin" / "moot").exists()


def prepare_venv() -> None:
    """An empty .venv, or the one that is there where it can be used; without a stamp in both cases."""
    if STAMP.is_file() and STAMP.read_text().splitlines()[:1] != [str(VENV)]:
        say("this folder was moved or copied: making .venv anew")
        shutil.rmtree(VENV)
    STAMP.unlink(missing_ok=True)
    if not PYTHON.exists():
        say(f"making .venv with Python {platform.python_version()}")
        make_venv(VENV, "--without-pip")
    elif run(PYTHON, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 11))").returncode:
        raise InstallError(f"{VENV} holds another Python than 3.11; remove that folder and start again")


def install_lock(kind: str, pip: list[str], uv: str | None) -> None:
    """Everything the lock names, as it stands there."""
    lock = f"locks/{kind}.lock"
    if uv:
        env = uv_env(pip)
        options = ["--quiet", "--no-deps"]
        if os.environ.get("PYTHONDONTWRITEBYTECODE"):  # else each process would compile torch, Ray and all by itself
            options.append("--compile-bytecode")
        command: list[object] = [uv, "pip", "install", "--python", PYTHON, *options, "-r", lock]
        other = ["--torch-backend", "cpu"]
    else:
        env = dict(os.environ)
        command = [*pip, "--python", PYTHON, "install", "--quiet", "--no-deps", "-r", lock]
        other = ["--extra-index-url", TORCH_CPU_INDEX]
    say(f"installing {lock} with {'uv' if uv else 'pip: this takes some minutes'}")
    done = run(*command, env=env)
    if done.returncode and kind == "cpu" and "torch" in done.stdout + done.stderr:
        say(f"no torch for CPUs on the configured indexes: looking on {TORCH_CPU_INDEX}")
        done = run(*command, *other, env=env)
    if done.returncode:
        raise InstallError(
            f"installing {lock} failed; check pip's configuration (pip config list) and the network:\n{tail(done)}"
        )


def install_project(pip: list[str], uv: str | None) -> None:
    say("installing moot itself, as a link to this folder")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "-e", ROOT]
    if uv:
        must("installing moot", uv, "pip", "install", "--python", PYTHON, *options, env=uv_env(pip))
    else:
        must("installing moot", *pip, "--python", PYTHON, "install", *options)


def install(kind: str) -> None:
    stamp = stamp_of(kind)
    if is_current(stamp):
        return
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise InstallError(
            f"the locks are for Linux on x86_64, this is {platform.system()} on {platform.machine()}; "
            "install what moot needs by its ranges instead: pip install -e '.[train,embedded,report,dev]'"
        )
    prepare_venv()
    pip = find_pip()
    uv = find_uv(pip)
    install_lock(kind, pip, uv)
    install_project(pip, uv)
    STAMP.write_text(stamp)
    say("ready: .venv/bin/moot")


# ---------------------------------------------------------------------------------------------------------------------
# Lock
# ---------------------------------------------------------------------------------------------------------------------


def lock(*arguments: str) -> None:
    """Both locks anew. Versions that still fit stay; ``--upgrade`` takes the newest."""
    pip = find_pip()
    uv = find_uv(pip)
    if uv is None:
        raise InstallError(f"locks are made by uv, which is not to be had here; try: pip install '{UV}'")
    for kind in ("cpu", "gpu"):
        say(f"resolving locks/{kind}.lock")
        must(
            f"resolving locks/{kind}.lock",
            *(
                uv,
                "pip",
                "compile",
                "--quiet",
                "--python-version",
                "3.11",
                "--python-platform",
                "x86_64-manylinux_2_28",
            ),
            *("--no-header", "--no-annotate", "--extra", kind, "--extra", "dev"),
            *("--overrides", f"locks/{kind}.overrides", "--constraints", f"locks/{kind}.constraints"),
            *("-o", f"locks/{kind}.lock", "pyproject.toml", "locks/embedded.in", *arguments),
            env=uv_env(pip),
        )


@contextmanager
def alone() -> Iterator[None]:
    """One installation at a time in this folder."""
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def main(arguments: list[str]) -> int:
    command, *rest = arguments or ["cpu"]
    try:
        with alone():
            if command == "lock":
                lock(*rest)
            elif command in {"cpu", "gpu"} and not rest:
                install(command)
            else:
                raise InstallError(f"{' '.join(arguments)!r} is not known; use: cpu, gpu, or lock")
    except InstallError as err:
        print(f"moot: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
