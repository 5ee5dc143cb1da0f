"""YAML in and out: refusals that name the line, and a file that explains each of its keys."""

import textwrap
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from fornix.common.errors import ConfigurationError

_WIDTH = 100


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is written twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file holds an empty one.

    Raises:
        ConfigurationError: if it can't be read, with the line where one is to blame.
    """
    try:
        # S506: the loader is a SafeLoader
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name a YAML file to read") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}{_place_and_problem(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigurationError(f"{path}: holds no mapping of names to values, such as 'seed: 1'")
    return values


def dump_section(section: BaseModel, indent: str = "") -> str:
    """Return a configuration as YAML, each key under a comment that says what it means."""
    parts = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        inner = value if isinstance(value, BaseModel) else None
        about = field.description or (inner and type(inner).__doc__) or ""
        if inner is not None and not indent:
            parts.append("\n")
        parts.append(_comment(about, indent))
        parts.append(
            f"{indent}{name}:\n{dump_section(inner, indent + '  ')}"
            if inner is not None
            else _assignment(name, value, indent)
        )
    return "".join(parts)


def _comment(text: str, indent: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), _WIDTH - len(indent) - 2)
    return "".join(f"{indent}# {line}\n" for line in lines)


def _assignment(name: str, value: Any, indent: str) -> str:
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump({name: plain}, allow_unicode=True, sort_keys=False, width=10**6)
    return textwrap.indent(text, indent)


def _place_and_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f", line {mark.line + 1}: {problem}" if mark else f": {problem}"
