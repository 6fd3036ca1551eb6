"""Classes made from the description: they take what the real ones take, and refuse what those refuse."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tensorrt_llm._settings import version
from tensorrt_llm_contract import Class, Name, literal, read_contract

_PLAIN = {"int": int, "str": str, "bool": bool, "bytes": bytes, "dict": dict}


def fields_of(described: Class) -> dict[str, Name]:
    """The fields that this version has."""
    return {name: field for name, field in described.fields.items() if version() in field.versions}


class _Listing(type):
    """Lists the fields as pydantic or as a dataclass does, as of the version that is set at the time."""

    _described: Class

    def __getattr__(cls, name: str) -> Any:
        lists = "model_fields" if cls._described.kind == "pydantic" else "__dataclass_fields__"
        if name == lists and "_described" in vars(cls):
            return dict.fromkeys(fields_of(cls._described))
        raise AttributeError(name)


class _Keeper(metaclass=_Listing):
    """Values by field. Unknown names are refused on the way in, and as attributes."""

    _described: Class
    _name: str

    def __init__(self, *args: object, **kwargs: object) -> None:
        fields = fields_of(self._described)
        if args and not self._described.positional:
            raise TypeError(f"{self._name}.__init__() takes 1 positional argument but {len(args) + 1} were given")
        given = {**dict(zip(fields, args, strict=False)), **kwargs}
        if unknown := sorted(given.keys() - fields.keys()):
            raise self._wrong(unknown[0], "Extra inputs are not permitted")
        for name, field in fields.items():
            if name in given:
                value = self._checked(name, field, given[name])
            else:
                default = field.default_in(version())
                if default is None:
                    raise self._wrong(name, "Field required")
                value = make_default(default)
            object.__setattr__(self, name, value)
        self._after_init()

    def _after_init(self) -> None:
        """For what a class checks over all fields."""

    def _wrong(self, name: str, why: str) -> Exception:
        if self._described.kind != "dataclass":  # pydantic's errors are ValueErrors
            return ValueError(f"1 validation error for {self._name}\n{name}\n  {why}")
        if why.startswith("Extra"):
            return TypeError(f"{self._name}.__init__() got an unexpected keyword argument '{name}'")
        if why.startswith("Field required"):
            return TypeError(f"{self._name}.__init__() missing 1 required keyword-only argument: '{name}'")
        return ValueError(f"{name}: {why}")

    def _checked(self, name: str, field: Name, value: object) -> object:
        if self._described.kind == "dataclass":
            return value  # it checks nothing by itself
        value = coerce(field.type, value)
        if why := what_is_wrong(field, value):
            raise self._wrong(name, why)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        if name not in fields_of(self._described):
            raise AttributeError(f"'{self._name}' object has no attribute '{name}'")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in fields_of(self._described))
        return f"{self._name}({said})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


def make_class(name: str, base: type[_Keeper] = _Keeper) -> type[Any]:
    """The class of that name in the description."""
    described = read_contract()[name]
    kind: type[Any] = _Listing(name, (base,), {"_described": described, "_name": name})
    _made[name] = kind
    for field in fields_of(described).values():
        if (default := field.default_in(version())) is not None and not default.endswith("()"):
            literal(default)
    return kind


_made: dict[str, type[Any]] = {}


def make_default(text: str) -> object:
    """The value of a default: a literal, or a new object of a described class."""
    return _made[text[:-2]]() if text.endswith("()") else copy.copy(literal(text))


def coerce(kind: str, value: object) -> object:
    """As pydantic does: a mapping becomes the class that is asked for."""
    wanted = kind.removesuffix(" | None")
    return _made[wanted](**value) if wanted in _made and isinstance(value, Mapping) else value


def what_is_wrong(field: Name, value: object) -> str | None:
    """Why pydantic would refuse a value, or None."""
    if not any(_fits(part.strip(), value) for part in field.type.split("|")):
        return f"Input should be a valid {field.type} [input_value={value!r}]"
    if value is None:
        return None
    if field.one_of is not None and value not in field.one_of:
        return f"Input should be {' or '.join(map(repr, field.one_of))} [input_value={value!r}]"
    if isinstance(value, int | float):
        if field.above is not None and not value > field.above:
            return f"Input should be greater than {field.above:g} [input_value={value!r}]"
        if field.at_least is not None and not value >= field.at_least:
            return f"Input should be greater than or equal to {field.at_least:g} [input_value={value!r}]"
        if field.at_most is not None and not value <= field.at_most:
            return f"Input should be less than or equal to {field.at_most:g} [input_value={value!r}]"
    return None


def _fits(kind: str, value: object) -> bool:
    if kind == "any":
        return True
    if kind == "None":
        return value is None
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind.startswith("list"):
        inner = kind[5:-1]
        return isinstance(value, list | tuple) and all(_fits(inner, each) for each in value)
    if kind in _PLAIN:
        return isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))
    return isinstance(value, _made.get(kind, ()))
