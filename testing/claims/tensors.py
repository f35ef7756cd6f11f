"""Arrays as a safetensors file with one possible form: names in order, nothing between them.

The names, types and shapes of a claim's arrays follow from its claim.json, so that the header of a file is compared,
never parsed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy

from testing.claims.archive import Refused

Arrays = dict[str, numpy.ndarray]
Kinds = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> NumPy type and shape

TYPES = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "uint8": "U8", "float32": "F32"}
LENGTH = 8  # bytes of the header's length; the header is filled up to a multiple of it


def size_of(kinds: Kinds) -> int:
    """The length of the file with arrays of these kinds."""
    return len(_header(kinds)) + sum(_bytes(*kind) for kind in kinds.values())


def to_bytes(arrays: Arrays) -> bytes:
    """The file with these arrays."""
    kinds = {name: (str(array.dtype), array.shape) for name, array in arrays.items()}
    return _header(kinds) + b"".join(numpy.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))


def from_bytes(content: bytes, kinds: Kinds) -> Arrays:
    """The arrays of a file; raises Refused if they are not of these kinds."""
    header = _header(kinds)
    if not content.startswith(header) or len(content) != size_of(kinds):
        raise Refused("its arrays are not those that claim.json describes")
    arrays, place = {}, len(header)
    for name in sorted(kinds):
        dtype, shape = kinds[name]
        count = math.prod(shape)
        arrays[name] = numpy.frombuffer(content, dtype, count, place).reshape(shape).copy()
        place += _bytes(dtype, shape)
    return arrays


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return numpy.dtype(dtype).itemsize * math.prod(shape)


def _header(kinds: Kinds) -> bytes:
    entries, place = {}, 0
    for name in sorted(kinds):
        dtype, shape = kinds[name]
        end = place + _bytes(dtype, shape)
        entries[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH)
    return len(text).to_bytes(LENGTH, "little") + text
