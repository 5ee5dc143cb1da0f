"""One clear sentence for what pydantic found wrong."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_SHOWN = 80
_REPR = reprlib.Repr()  # repr itself can exhaust the stack
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the known name that is nearest to `name`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a sentence on the first fault: where, which value, what was expected."""
    faults = error.errors(include_url=False, include_context=True)
    # a misspelt key is missing under its right name too: the misspelling says more
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    where = _cut(".".join(key_path(model, fault["loc"])))
    where = where if where.isprintable() else ascii(where)
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        return f"unknown key {where!r}{nearest(_cut(str(fault['loc'][-1])), known)}" + (
            f" (known: {', '.join(sorted(known))})" if known else ""
        )
    if fault["type"] == "missing":
        return f"{where!r} is missing"
    if fault["type"] == "union_tag_invalid":
        tag = fault["ctx"]
        expected = str(tag["expected_tags"]).replace(", ", " or ")
        return f"{where}.{str(tag['discriminator']).strip(chr(39))} = {tag['tag']!r}: must be {expected}"
    message = fault["msg"].removeprefix("Value error, ")
    if not where or (fault["type"] == "value_error" and isinstance(fault.get("input"), dict)):
        return message  # a rule about several keys, whose sentence names them
    return f"{where} = {shown(fault.get('input'))}: {message}"


def shown(value: object) -> str:
    """Return what a sentence may say of a value that a stranger sent, however deep or long it is."""
    return _cut(_REPR.repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def key_path(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return a fault's location as a person writes it: without the tag of a discriminated union."""
    models, path = [model], []
    for part in location:
        inner = [
            found
            for outer in models
            for name, field in outer.model_fields.items()
            if name == part
            for found in models_in(field.annotation)
        ]
        known = any(part in one.model_fields for one in models)
        if known or len(models) < 2:
            path.append(str(part))
            models = inner
        else:
            models = models[:1]  # the tag; what comes next may be an unknown key
    return path


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the known field names of the model that `path` leads to (all members of a union)."""
    models = [model]
    for part in path:
        models = [
            inner
            for outer in models
            for name, field in outer.model_fields.items()
            for inner in models_in(field.annotation)
            # a discriminated union adds its tag to the path: it names no field, so stay here
            if name == part
        ] or models
    return {name for one in models for name in one.model_fields}


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that an annotation names, the members of a union too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]
