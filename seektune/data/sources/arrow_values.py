"""Values of Arrow columns as JSON holds them."""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Convert = Callable[[Any], Any]


def plain_rows(batch: "pa.RecordBatch") -> Iterator[dict[str, Any]]:
    """The rows of a batch.

    Arrow gives every struct of a column the same fields and fills those that a row lacks with nulls: nulls are left
    out, but for those inside JSON text of Arrow's extension type, which is decoded. Dates and decimals become text, and
    binary values a note of their size.
    """
    plain = _of_fields(batch.schema)
    return map(plain, batch.to_pylist())


def _of_fields(fields: Any) -> Convert:
    converts = {field.name: _of_type(field.type) for field in fields}

    def plain(values: dict[str, Any]) -> dict[str, Any]:
        return {name: converts[name](value) for name, value in values.items() if value is not None}

    return plain


def _of_type(type: "pa.DataType") -> Convert:
    """What converts a value of a type; `_same` if nothing has to be converted."""
    import pyarrow as pa

    if isinstance(type, pa.JsonType):
        return _unless_null(json.loads)
    if pa.types.is_struct(type):
        return _unless_null(_of_fields(type))
    if pa.types.is_map(type):
        item = _of_type(type.item_type)
        return _unless_null(lambda pairs: {str(key): item(value) for key, value in pairs})
    if isinstance(type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
        inner = _of_type(type.value_type)
        return _same if inner is _same else _unless_null(lambda values: [inner(value) for value in values])
    if pa.types.is_dictionary(type):
        return _of_type(type.value_type)
    if any(is_kind(type) for is_kind in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)):
        return _unless_null(lambda value: f"{len(value):,} bytes")
    return _unless_null(str) if pa.types.is_temporal(type) or pa.types.is_decimal(type) else _same


def _same(value: Any) -> Any:
    return value


def _unless_null(convert: Convert) -> Convert:
    return lambda value: None if value is None else convert(value)
