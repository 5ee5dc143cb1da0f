"""Reading a run's configuration: flags before environment variables before file before defaults.

A key has one dotted name in all of them: `learner.batch_size` is `batch_size` under `learner` in the
YAML file, the flag `--learner.batch_size 128` and the variable `FORNIX_LEARNER__BATCH_SIZE=128`.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from fornix.common.config import RunConfig
from fornix.common.errors import ConfigurationError
from fornix.common.validation import first_fault, key_path, models_in, nearest
from fornix.common.yaml_files import dump_section, load_yaml

PREFIX = "FORNIX_"
_NESTED = "__"

Values = dict[str, Any]
#: What kind of place values came from, and the values.
_Source = tuple[str, Values]


class _Settings(BaseSettings, RunConfig):
    """RunConfig as pydantic-settings reads it."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=PREFIX, env_nested_delimiter=_NESTED)


class FlagParser(argparse.ArgumentParser):
    """Raises ConfigurationError, with the nearest known flag, where argparse would exit."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigurationError."""
        raise ConfigurationError(f"{message}; see {self.prog} --help")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return what was given, or raise ConfigurationError for a flag that is unknown."""
        namespace, rest = self.parse_known_args(arguments)
        if rest:
            flag = rest[0].split("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            raise ConfigurationError(
                f"unknown {'flag' if flag.startswith('-') else 'argument'} {flag!r}"
                f"{nearest(flag, known)}; see {self.prog} --help"
            )
        return namespace


class ConfigFlags:
    """The configuration's keys as flags of a command.

    Args:
        parser: of the command; the flags are added to it.
    """

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
            _Settings, root_parser=parser, cli_exit_on_error=False, cli_use_class_docs_for_groups=True
        )

    def values(self, namespace: argparse.Namespace) -> Values:
        """Return what a parsed command line says of the configuration, nested by section."""
        given = {name: value for name, value in vars(namespace).items() if _is_key(name)}
        try:
            return dict(self._source(parsed_args=given)())
        except SettingsError as error:
            raise ConfigurationError(f"flags: {error}") from None


def read_run_config(file: Path | None, flags: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of `file` (None: defaults) under environment variables and `flags`.

    Raises:
        ConfigurationError: with one sentence on the first key, value or line that is wrong.
    """
    parser = FlagParser(prog="fornix", add_help=False)
    config_flags = ConfigFlags(parser)
    return resolve(file, config_flags.values(parser.parse(flags)))


def resolve(file: Path | None, flags: Values, environment: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration of `file` under environment variables and parsed `flags`.

    Args:
        file: in YAML; None for the defaults.
        flags: of `ConfigFlags.values`.
        environment: its FORNIX_ variables count; this process's own if not given.

    Raises:
        ConfigurationError: with one sentence on the first key, value or line that is wrong.
    """
    sources: list[_Source] = [
        ("file", load_yaml(file) if file else {}),
        ("variable", _from_environment(os.environ if environment is None else environment)),
        ("flag", flags),
    ]
    values: Values = {}
    for _, given in sources:
        values = _merge(values, given)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_sentence(error, sources, file)) from None


def dump_run_config(config: RunConfig, path: Path) -> None:
    """Write every key with its value and, as a comment, what it means; `resolve` reads it back."""
    head = f"# The resolved configuration of {config.name}: file, variables, flags and defaults.\n"
    partial = path.with_suffix(".partial")
    partial.write_text(head + dump_section(config), encoding="utf-8")
    partial.replace(path)


def key_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, bool]:
    """Return the dotted names of all keys and sections, and whether each holds one plain value."""
    names: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        names[prefix + name] = _is_plain(field.annotation)
        for one in models_in(field.annotation):
            names |= key_names(one, f"{prefix}{name}.")
    return names


def variable(key: str) -> str:
    """Return the environment variable of a dotted key."""
    return PREFIX + key.upper().replace(".", _NESTED)


def _is_plain(annotation: Any) -> bool:
    """Return whether a key of this type holds one plain value, or none."""
    if get_origin(annotation) in (Union, UnionType):
        some = [part for part in get_args(annotation) if part is not NoneType]
        return len(some) == 1 and _is_plain(some[0])
    return get_origin(annotation) in (None, Literal) and not models_in(annotation)


def _is_key(name: str) -> bool:
    return name in _KEYS


def _from_environment(environment: Mapping[str, str]) -> Values:
    """Return what FORNIX_ variables say, or raise ConfigurationError for one that is not known."""
    for name, value in environment.items():
        if name.startswith(PREFIX):
            _check_variable(name, value)
    return dict(EnvSettingsSource(_Settings)()) if environment else {}


def _check_variable(name: str, value: str) -> None:
    key = name.removeprefix(PREFIX).lower().replace(_NESTED, ".")
    if key not in _KEYS and key.rpartition(".")[0] not in _MAPPINGS:
        known = [variable(key) for key in _KEYS]
        raise ConfigurationError(f"unknown environment variable {name}{nearest(name, known)}")
    if _KEYS.get(key, True):
        return
    try:
        json.loads(value)
    except ValueError as error:
        raise ConfigurationError(
            f"environment variable {name} = {value!r}: a list or a mapping is written as JSON; {error}"
        ) from None


def _merge(low: Values, high: Values, prefix: str = "") -> Values:
    """Return `low` with the values of `high` laid over it, key by key.

    A mapping with names of the user's own is one value: the higher source has it whole.
    """
    merged = dict(low)
    for key, value in high.items():
        below, name = merged.get(key), prefix + key
        if isinstance(below, dict) and isinstance(value, dict) and name not in _MAPPINGS:
            value = _merge(below, value, f"{name}.")
        merged[key] = value
    return merged


def _sentence(error: ValidationError, sources: Sequence[_Source], file: Path | None) -> str:
    """Return where the first fault came from, and what it is."""
    fault = error.errors(include_url=False)[0]
    path = key_path(RunConfig, fault["loc"])
    key = ".".join(path)
    sentence = _unknown(key) if fault["type"] == "extra_forbidden" else first_fault(error, RunConfig)
    kind = next((kind for kind, given in reversed(sources) if path and _holds(given, path)), "")
    if kind == "flag":
        return sentence.replace(key, f"--{key}", 1)
    if kind == "variable":
        return f"environment variable {variable(key)}: {sentence}"
    return f"{file}: {sentence}" if file else sentence


def _unknown(key: str) -> str:
    if key in _KEYS:
        return f"key {key!r} does not belong to this environment.kind; remove one of them"
    return f"unknown key {key!r}{nearest(key, _KEYS)}"


def _holds(values: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


_KEYS = key_names()
#: Keys whose value is a mapping with names of the user's own.
_MAPPINGS = {"environment.treasures"}
