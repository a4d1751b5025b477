"""Columns of features as the bytes that Feast's online stores keep: one serialized `Value` per cell.

Doubles are laid out with numpy; every other scalar type is converted by Feast itself, but each distinct value once;
lists, maps and the rest are Feast's conversion, cell by cell. So the bytes are Feast's, whatever the type.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

# Types whose conversion looks at one cell at a time and makes a null an empty Value.
_BY_DISTINCT_VALUE = {
    ValueType.STRING: pa.types.is_string,
    ValueType.INT32: pa.types.is_integer,
    ValueType.INT64: pa.types.is_integer,
    ValueType.FLOAT: pa.types.is_floating,
    ValueType.DOUBLE: pa.types.is_floating,
    ValueType.BOOL: pa.types.is_boolean,
}
_DOUBLE_TAG = Value(double_val=1.0).SerializeToString()[0]


def encode(column: pa.Array, kind: ValueType) -> np.ndarray:
    """Serialized Feast values of a column.

    Args:
        column: shape (n,); floating-point NaN counts as null, as in Feast.
        kind: the type that the feature view declares.

    Returns:
        Shape (n,), objects of bytes; a null is b"", the empty Value.
    """
    is_kind = _BY_DISTINCT_VALUE.get(kind)
    if is_kind is None or not is_kind(column.type):
        return _objects([value.SerializeToString() for value in _protos(column, kind)])
    distinct, index = _distinct(column)
    if kind == ValueType.DOUBLE and 2 * len(distinct) > len(column):
        return _encode_doubles(column)
    return _take([value.SerializeToString() for value in _protos(distinct, kind)], index, b"")


def as_text(column: pa.Array, kind: ValueType) -> np.ndarray:
    """What Feast's SQLite store keeps beside each value for text search: shape (n,), objects of str or None."""
    is_kind = _BY_DISTINCT_VALUE.get(kind)
    if is_kind is None or not is_kind(column.type):
        return _objects([extract_text_and_num(value, False)[0] for value in _protos(column, kind)])
    distinct, index = _distinct(column)
    if kind == ValueType.DOUBLE:  # Feast writes str(float)
        return _take([None if x != x else str(x) for x in distinct.cast(pa.float64()).to_pylist()], index, None)
    return _take([extract_text_and_num(value, False)[0] for value in _protos(distinct, kind)], index, None)


def entity_keys(
    columns: Sequence[pa.Array], names: Sequence[str], kinds: Sequence[ValueType], version: int
) -> list[bytes]:
    """Feast's serialized entity key of each row.

    Raises:
        ValueError: a key is null.
    """
    for name, column in zip(names, columns, strict=True):
        if column.null_count:
            raise ValueError(f"{column.null_count} of {len(column)} rows have no {name!r}; every row needs its key")
    if len(columns) == 1 and kinds[0] == ValueType.STRING and pa.types.is_string(columns[0].type):
        empty = EntityKey(join_keys=list(names), entity_values=[Value(string_val="")])
        prefix = serialize_entity_key(empty, version)[: -struct.calcsize("<I")]  # up to the length of the text
        texts = [text.encode() for text in columns[0].to_pylist()]
        return [prefix + struct.pack("<I", len(text)) + text for text in texts]
    values = [_protos(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    rows = zip(*values, strict=True)
    return [serialize_entity_key(EntityKey(join_keys=list(names), entity_values=row), version) for row in rows]


def _protos(column: pa.Array, kind: ValueType) -> list[Value]:
    cells = column.to_numpy(zero_copy_only=False)
    protos: list[Value] = python_values_to_proto_values(cells, kind)
    return protos


def _distinct(column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Distinct values, and for each cell the position of its own; -1 for null."""
    encoded = column.dictionary_encode()
    return encoded.dictionary, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def _take(distinct: list[Any], index: np.ndarray, null: Any) -> np.ndarray:
    return np.asarray(_objects([*distinct, null])[index])  # -1 is the last one


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _encode_doubles(column: pa.Array) -> np.ndarray:
    """Tag and eight bytes for each cell, cut from one buffer."""
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # nulls become NaN
    cells = np.empty((len(numbers), 9), dtype=np.uint8)
    cells[:, 0] = _DOUBLE_TAG
    cells[:, 1:] = np.ascontiguousarray(numbers, dtype="<f8").view(np.uint8).reshape(-1, 8)
    buffer = cells.tobytes()
    encoded = _objects([buffer[i : i + 9] for i in range(0, len(buffer), 9)])
    encoded[np.isnan(numbers)] = b""
    return encoded
