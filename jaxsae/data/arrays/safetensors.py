"""Safetensors, memory-mapped: the file is a header and then raw numbers."""

import math
from pathlib import Path

import ml_dtypes
import numpy as np

from jaxsae.io import safetensors_rows

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: Path) -> dict[str, np.ndarray]:
    header, start = safetensors_rows.header(path)
    header.pop("__metadata__", None)
    return {name: _tensor(path, start, fact) for name, fact in header.items() if fact["dtype"] in DTYPES}


def _tensor(path: Path, start: int, fact: dict) -> np.ndarray:
    shape, (first, last) = tuple(fact["shape"]), fact["data_offsets"]
    dtype = np.dtype(DTYPES[fact["dtype"]])
    if last - first != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"a tensor of shape {list(shape)} lies in {last - first} bytes")
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start + first, shape)
