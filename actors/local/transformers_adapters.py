"""The LoRA adapters beside one model of transformers: loaded through PEFT, one of them speaking at a time."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from actors.local.vllm_adapters import check_adapter
from actors.local.vllm_settings import RANKS, VLLMSettings
from actors.models.backend import AdapterRef
from protocols.errors import AgentError


class Adapters:
    """Versions by name. Belongs to the thread that runs the model.

    Args:
        model: of transformers; adapters are put inside it, and are off until one is activated.
        named: the model as the settings name it; path: its folder. An adapter's base must be one of the two.
        limit: adapters in use at once; twice as many may be loaded, while new versions take over from the last ones.
    """

    def __init__(self, model: Any, named: str, path: str, limit: int) -> None:
        self._model, self._path, self._limit = model, path, limit
        self._known = VLLMSettings(
            model=named, max_rank=RANKS[-1]
        )  # for the checks, which are those of vLLM's adapters
        self._peft: Any = None
        self._numbers: dict[str, str] = {}  # version -> its name inside PEFT, which takes no dots
        self._folders: dict[str, str] = {}  # a version's for as long as we live
        self._count = itertools.count(1)

    def __len__(self) -> int:
        return len(self._numbers)

    def load(self, adapter: AdapterRef) -> None:
        """Raises: AgentError: it does not fit, there is no room, or its name has meant another folder."""
        folder = str(Path(adapter.path).resolve())
        if self._folders.get(adapter.name, folder) != folder:
            raise AgentError(
                f"adapter {adapter.name!r} was loaded from {self._folders[adapter.name]} and cannot now mean {folder}; "
                "give new weights a new version name"
            )
        if adapter.name in self._numbers:
            return
        if len(self) >= 2 * self._limit:
            raise AgentError(
                f"adapter {adapter.name!r} cannot be served with max_adapters={self._limit} and {len(self)} loaded; "
                f"set max_adapters >= {len(self) // 2 + 1}"
            )
        check_adapter(adapter, self._known, self._path)
        self._put_in(adapter.name, folder)
        self._folders[adapter.name] = folder

    def _put_in(self, name: str, folder: str) -> None:
        number = f"n{next(self._count)}"
        try:
            if self._peft is None:
                from peft import PeftModel

                self._peft = PeftModel.from_pretrained(self._model, folder, adapter_name=number)
            else:
                self._peft.load_adapter(folder, adapter_name=number)
        except Exception as err:
            raise AgentError(f"PEFT could not load adapter {name!r} from {folder}: {err}") from err
        self._peft.eval()
        self._numbers[name] = number

    def unload(self, adapter: AdapterRef) -> None:
        """Free an adapter; one that is not there is free already."""
        if (number := self._numbers.pop(adapter.name, None)) is not None:
            self._peft.base_model.delete_adapter(number)

    def activate(self, adapter: AdapterRef | None) -> None:
        """From now on the model speaks through this adapter; None: as the base model."""
        if self._peft is None:
            return
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(self._numbers[adapter.name], inference_mode=True)
