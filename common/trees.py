"""Frames of several arrays: a dict or tuple of them, as its leaves by path and back.

A frame of one array is a tree that is a leaf itself, with the empty path. The leaf `b` of the dict under
key `a` has the path `a.b`; tuples count from 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Leaf = TypeVar("Leaf")
Made = TypeVar("Made")


def leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a tree by path, in the order in which they stand."""
    if isinstance(tree, Mapping):
        parts = [(str(name), inner) for name, inner in tree.items()]
    elif isinstance(tree, tuple):
        parts = [(str(at), inner) for at, inner in enumerate(tree)]
    else:
        return {path: tree}
    found: dict[str, Any] = {}
    for name, inner in parts:
        found |= leaves(inner, f"{path}.{name}" if path else name)
    return found


def like(tree: Any, values: Mapping[str, Made], path: str = "") -> Any:
    """Return a tree of the same form as `tree`, of the leaves in `values`."""
    if isinstance(tree, Mapping):
        return {
            name: like(inner, values, f"{path}.{name}" if path else str(name))
            for name, inner in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(
            like(inner, values, f"{path}.{at}" if path else str(at)) for at, inner in enumerate(tree)
        )
    return values[path]


def mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Return a tree of the same form, with `function` of every leaf."""
    if isinstance(tree, Mapping):
        return {name: mapped(inner, function) for name, inner in tree.items()}
    if isinstance(tree, tuple):
        return tuple(mapped(inner, function) for inner in tree)
    return function(tree)


def bare(values: dict[str, Made]) -> Made | dict[str, Made]:
    """Return leaves by path as a message has them: one without a path by itself."""
    return values.get("", values)
