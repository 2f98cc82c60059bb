"""YAML as a recipe is read: safely, with every key named once, and with numbers as YAML 1.2 has them."""

from __future__ import annotations

import re
from typing import Any

import yaml

from protocols.errors import unreadable

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$")


class NotYAMLError(Exception):
    """A text that cannot be read. ``str`` of it says why; ``line``: where, 0 where that is not known."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.line = line


class RecipeLoader(yaml.SafeLoader):
    """Refuses a mapping that holds a key twice: the first value would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<" else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice; keep one of them", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class RecipeDumper(yaml.SafeDumper):
    """Writes what ``RecipeLoader`` reads: text that looks like a number is put into quotes."""


for _of in (RecipeLoader, RecipeDumper):
    _of.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))  # 1e-4 is text in YAML 1.1


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = RecipeLoader) -> Any:
    """Raises: NotYAMLError: it is not, or holds a date that there is none, a number or a depth that Python refuses."""
    try:
        return yaml.load(text, loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        why = getattr(err, "problem", None) or str(err).partition("\n")[0]
        raise NotYAMLError(why, mark.line + 1 if mark else 0) from err
    except (ValueError, RecursionError) as err:
        why = unreadable(err)
        raise NotYAMLError(f"{why} (put text in quotes)" if why == str(err) else why) from err
