"""What all records share: kinds of fields, how a record is read, written and shown.

A record describes one kind of file, once: the class that writes it reads it. Types are strict (text
is no number), an absent or null field has no value (None), and keys that this version does not know
are kept. Whatever is wrong with a file becomes one line that names the file and the field.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    WrapValidator,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from ...errors import InputError
from ...parsing import nearest
from ...terminal import page_text, printable
from ..files import add_seal, make_folder, write_result

T = TypeVar("T")
LARGEST = 1e300  # no quantity is larger, and sums of such numbers stay finite


def shown(value: Any) -> str:
    """A value from a file as a message quotes it: on one line, 60 characters at most."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def must_be(wanted: str) -> WrapValidator:
    """Names what a value must be, in the error for whatever is not."""

    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("wanted", "{wanted}", {"wanted": wanted}) from None

    return WrapValidator(check)


# Kinds of fields.
Fraction = Annotated[float, Field(ge=0, le=1), must_be("a number from 0 to 1")]
Interval = Annotated[
    tuple[Fraction, Fraction], Strict(False), must_be("a list of two fractions, from 0 to 1")
]
Quantity = Annotated[float, Field(ge=0, le=LARGEST), must_be("a number ≥ 0")]
Real = Annotated[float, Field(ge=-LARGEST, le=LARGEST), must_be("a finite number")]
Count = Annotated[int, Field(ge=0, lt=2**63), must_be("a whole number ≥ 0")]
Positive = Annotated[int, Field(ge=1, lt=2**63), must_be("a whole number ≥ 1")]
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63), must_be("a whole number")]
ListOf = Annotated[  # a list; null is an empty one
    tuple[T, ...], Strict(False), BeforeValidator(lambda value: () if value is None else value)
]
Names = Annotated[
    tuple[str, ...],
    Strict(False),
    must_be("a list of names"),
    BeforeValidator(lambda value: () if value is None else value),
]

_QUOTE = "'"
_KINDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "dict_type": "a JSON object",
    "model_type": "a JSON object",
    "invalid_key": "text",
}


_EMPTY: tuple[Any, ...] = (None, "", [], (), {})


class Part(BaseModel):
    """A JSON object inside a record, with its fields by name and kind."""

    OBJECT: ClassVar[str] = "a JSON object"  # what such an object is called in its kind of file

    model_config = ConfigDict(
        strict=True, extra="allow", frozen=True, allow_inf_nan=False, defer_build=True
    )

    @model_serializer(mode="wrap")
    def _held(self, handler: Any) -> dict[str, Any]:
        """What was not said and is empty is left out."""
        said = self.model_fields_set
        return {k: v for k, v in handler(self).items() if k in said or v not in _EMPTY}

    def to_dict(self) -> dict[str, Any]:
        """All fields that have a value, as JSON holds them."""
        held: dict[str, Any] = self.model_dump(mode="json")
        return held

    @classmethod
    def checked(cls, value: Any, where: str) -> Self:
        """The object that a file holds.

        Args:
            value: of JSON.
            where: the file, for the error.

        Raises:
            InputError: a field of the wrong kind, or none that must be there; one line.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InputError(f"{where}{complaint(error, cls)}") from None


def complaint(error: ValidationError, model: type[BaseModel]) -> str:
    """What is wrong first, to follow the name of the file."""
    first = error.errors(include_url=False)[0]
    names: list[str] = []
    for part in first["loc"]:
        if isinstance(part, int) and names:
            names[-1] = f"{names[-1].strip(_QUOTE)}[{part}]"
        else:
            names.append(f"{_QUOTE}{part}{_QUOTE}")
    *parents, last = names or [""]
    place = "".join(f": {name}" for name in parents)
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    if kind == "extra_forbidden":
        for part in first["loc"][:-1]:
            model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
        return f"{place}: unknown key {last}{nearest(str(first['loc'][-1]), model.model_fields)}"
    if kind == "value_error":  # of a check that says itself what is wrong
        return f"{place}: {last}: {context['error']}" if last else f"{place}: {context['error']}"
    if kind == "string_unicode":
        return f"{place}: {last or 'a name'} is no text"
    if kind == "missing" or (value is None and last):
        return f"{place} has no {last}"
    wanted = context.get("wanted") or _KINDS.get(kind) or context.get("expected") or first["msg"]
    wanted = getattr(model, "OBJECT", wanted) if kind in ("model_type", "dict_type") else wanted
    return f"{place}{last and f': {last}'} must be {wanted}, not {shown(value)}"


class Record(Part):
    """What one kind of file holds.

    Attributes:
        SCHEMA: what the file says under `schema`: kind of record and version.
        FILE: its name in a run folder.
    """

    SCHEMA: ClassVar[str]
    FILE: ClassVar[str] = "result.json"

    def to_dict(self) -> dict[str, Any]:
        """What the file holds, without its seal."""
        return {"schema": self.SCHEMA, **super().to_dict()}

    def save(self, folder: Path | str) -> Path:
        """Write the file into a folder, which is made if need be, over no other file than a record.

        Returns:
            the file.

        Raises:
            InputError: the folder cannot be written, or holds another file of this name.
        """
        path = make_folder(Path(folder)) / self.FILE
        write_result(path, add_seal(self.to_dict()))
        return path

    @classmethod
    def checked(cls, value: Any, where: str) -> Self:
        """As `Part.checked`; the schema has been compared."""
        if isinstance(value, dict):
            value = {key: item for key, item in value.items() if key != "schema"}
        return super().checked(value, where)

    def headline(self) -> str:
        """What was done to what, on one line."""
        return type(self).__name__

    def key_figures(self) -> list[tuple[str, str]]:
        """The figures that say most, each with its name."""
        return []

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.key_figures())
        return f"{printable(self.headline())}\n{printable(figures)}"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{_html(name)}</th><td>{_html(value)}</td></tr>"
            for name, value in self.key_figures()
        )
        return f"<table><caption>{_html(self.headline())}</caption>{rows}</table>"


class ShownAsRecord:
    """An outcome with a model in it, which no record holds: it is written, and shows itself, as the
    record of its figures."""

    def as_record(self) -> Record:
        """The figures, as the run folder keeps them."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """As `Record.to_dict`."""
        return self.as_record().to_dict()

    def save(self, folder: Path | str) -> Path:
        """As `Record.save`."""
        return self.as_record().save(folder)

    def __repr__(self) -> str:
        return repr(self.as_record())

    def _repr_html_(self) -> str:
        return self.as_record()._repr_html_()


def _html(text: str) -> str:
    return html.escape(str(page_text(text)))


def percent(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A fraction in per cent, with its 95 % interval: `41.2% (38.2% to 44.3%)`."""
    if value is None:
        return "no value"
    if interval is None:
        return f"{value:.1%}"
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
