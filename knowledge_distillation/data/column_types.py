"""Of which type a column is, when its values come by the batch; and where one does not fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, shown

if TYPE_CHECKING:
    import pyarrow as pa

_UNREADABLE = (ValueError, TypeError, OverflowError, NotImplementedError)  # what Arrow makes of values it cannot hold
_KINDS: tuple[tuple[type, str, str], ...] = (  # in the order in which they are asked for: True is an int as well
    (str, "string", "a text"),
    (bool, "bool", "true or false"),
    (int, "int", "a whole number"),
    (float, "double", "a number"),
    (list, "list", "a list"),
    (dict, "struct", "a record"),
    (object, "?", "something else"),
)


@dataclass(frozen=True)
class Batch:
    """Some rows: the values of each column, and the line or row (`unit`) of the file that each row begins at."""

    columns: Mapping[str, Sequence[Any]]
    places: Sequence[int]
    unit: str = "line"


Batches = Callable[[], Iterator[Batch]]
AsArray = Callable[[Any, "pa.DataType | None"], "pa.Array"]


def array_of(path: Path, name: str, batch: Batch, as_array: AsArray, known: Any) -> pa.Array:
    """A column of a batch, of the known type where all values are of it.

    Raises:
        DataError: there is no type for all of them; the first that does not fit is named.
    """
    values = batch.columns[name]
    try:
        return as_array(values, known)
    except _UNREADABLE:
        # The first rows up to which values fit, or one fewer than the first that does not.
        at = bisect_left(range(len(values)), True, key=lambda last: not _is_readable(values[: last + 1]))
        if _is_readable([values[at]]):
            raise _of_two_types(path, name, batch, at, as_array(values[:at], None).type) from None
        raise DataError(
            f"{path}, {batch.unit} {batch.places[at]}: {name!r} is {shown(values[at], 80)}, which cannot be stored"
        ) from None


def _is_readable(values: Sequence[Any]) -> bool:
    import pyarrow as pa

    try:
        pa.array(values)
    except _UNREADABLE:
        return False
    return True


def wider(path: Path, name: str, batch: Batch, known: Any, array: pa.Array, mixed_is_text: bool) -> pa.DataType:
    """The type that holds what came before and this."""
    import pyarrow as pa

    if known is None or array.type == known:
        return array.type
    try:
        fields = [pa.schema([(name, one)]) for one in (known, array.type)]
        return pa.unify_schemas(fields, promote_options="permissive").field(name).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        if mixed_is_text:
            return pa.string()
        odd = next(at for at, value in enumerate(batch.columns[name]) if value is not None)
        raise _of_two_types(path, name, batch, odd, known) from None


def _of_two_types(path: Path, name: str, batch: Batch, at: int, before: pa.DataType) -> DataError:
    value = batch.columns[name][at]
    kind = next(words for type_, _, words in _KINDS if isinstance(value, type_))
    known = next((words for _, name_, words in _KINDS if str(before).startswith(name_)), str(before))
    return DataError(
        f"{path}, {batch.unit} {batch.places[at]}: {name!r} is {kind}, {shown(value, 80)}, and {known} in rows "
        "before: give it values of one kind in all rows"
    )
