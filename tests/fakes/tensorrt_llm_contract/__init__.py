"""What Tandem knows of TensorRT-LLM's Python interface: the TOML files beside this, read and typed.

Each file says which classes there are, what they take and what they have, in which versions, and where that was read.
The fake ``tensorrt_llm`` is made from it, and a test holds Tandem's code to it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

VERSIONS = ("1.2", "1.3", "1.4")
Kind = Literal["pydantic", "dataclass", "class", "result", "json", "error", "variables", "command"]


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A field, an attribute or a key."""

    type: str
    """As in Python; other classes of the description by their names."""
    default: str | None = None
    """A Python literal, or ``Class()``; None: there is none, so it must be given."""
    defaults: dict[str, str] = {}
    """Where a version has another one."""
    versions: tuple[str, ...] = VERSIONS
    unproven: tuple[str, ...] = ()
    """Versions whose sources could not be read for this: Tandem's code must do with or without."""
    one_of: list[str] | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    pytorch_only: bool = False
    """Of ``LLM``: the class for built engines has no such argument."""
    note: str = ""

    def default_in(self, version: str) -> str | None:
        """The default of one version, as a Python literal."""
        return self.defaults.get(version, self.default)


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    parameters: list[str] = []
    """Names, in the order of 1.2; Tandem passes all but the first by keyword."""
    returns: str = "None"
    versions: tuple[str, ...] = VERSIONS
    note: str = ""


class Class(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One class, or the JSON object of one kind."""

    kind: Kind
    modules: list[str] = []
    """Where it can be imported from: ``module``, ``module:name`` where it has another name there, either followed by
    ``@1.2,1.3`` where only some versions have it there."""
    positional: bool = False
    """Whether its arguments may be passed without their names."""
    fields: dict[str, Name] = {}
    """What its constructor takes; all of them are attributes, too."""
    attributes: dict[str, Name] = {}
    methods: dict[str, Method] = {}
    yields: str | None = None
    """Type of what iterating over it gives, with ``async for`` as well."""
    awaited: str | None = None
    versions: tuple[str, ...] = VERSIONS
    sources: dict[str, str] = {}
    """Where it was read, per version: path@commit."""
    note: str = ""

    def places(self) -> dict[str, tuple[str, ...]]:
        """The versions that have it, by the module it can be imported from."""
        found = {}
        for text in self.modules:
            module, _, versions = text.partition("@")
            found[module.partition(":")[0]] = tuple(versions.split(",")) if versions else self.versions
        return found

    def type_of(self, name: str) -> str | None:
        """Type of a field or an attribute, or None where there is none of that name."""
        found = self.fields.get(name) or self.attributes.get(name)
        return found.type if found else None


@cache
def read_contract() -> dict[str, Class]:
    """All classes by name.

    Raises:
        msgspec.ValidationError: a file is not of the form above.
        ValueError: a class is described twice.
    """
    classes: dict[str, Class] = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        for name, described in msgspec.toml.decode(path.read_bytes(), type=dict[str, Class]).items():
            if name in classes:
                raise ValueError(f"{path.name}: {name} is described twice")
            classes[name] = described
    return classes


@cache
def literal(text: str) -> Any:
    """The value of a default that is a Python literal; not to be changed. Reading one is not for several threads at
    once (CPython 3.11: gh-106905), so whoever describes a class does it beforehand."""
    return ast.literal_eval(text)
