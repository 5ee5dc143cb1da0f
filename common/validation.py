"""One clear sentence for what pydantic found wrong."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean X?)` for the known name that is nearest to `name`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""


def first_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a sentence on the first fault: where, which value, what was expected."""
    faults = error.errors(include_url=False, include_context=True)
    fault = faults[0]
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        return f"unknown key {where!r}{nearest(str(fault['loc'][-1]), known)}" + (
            f" (known: {', '.join(sorted(known))})" if known else ""
        )
    if fault["type"] == "missing":
        return f"{where!r} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    if not where:
        return message
    value = repr(fault.get("input"))
    return f"{where} = {value if len(value) <= 80 else value[:77] + '...'}: {message}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """Return the known field names of the model that `path` leads to (all members of a union)."""
    models = [model]
    for part in path:
        models = [
            inner
            for outer in models
            for name, field in outer.model_fields.items()
            for inner in _models_in(field.annotation)
            # a discriminated union adds its tag to the path: it names no field, so stay here
            if name == part
        ] or models
    return {name for one in models for name in one.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]
