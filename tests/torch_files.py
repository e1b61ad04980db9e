"""Files as torch.save writes them (1.6 and later), made without torch."""

import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import numpy as np

STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "bool": "BoolStorage",
}


def save(path, value, compression=zipfile.ZIP_STORED, byteorder="little"):
    """Write containers with NumPy arrays in the place of tensors; views of one array share its storage."""
    names = ["torch", "torch._utils"]
    modules = {name: types.ModuleType(name) for name in names}
    for storage in STORAGES.values():
        setattr(modules["torch"], storage, type(storage, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2(*arguments): ...

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= modules
    try:
        with zipfile.ZipFile(path, "w", compression) as archive:
            storages = []

            class Storage:
                def __init__(self, array):
                    self.array = array

            class Pickler(pickle.Pickler):
                def reducer_override(self, value):
                    if not isinstance(value, np.ndarray):
                        return NotImplemented
                    base = value if value.base is None else value.base
                    steps = tuple(step // value.itemsize for step in value.strides)
                    offset = (value.ctypes.data - base.ctypes.data) // value.itemsize
                    return _rebuild_tensor_v2, (Storage(base), offset, value.shape, steps, False, OrderedDict())

                def persistent_id(self, value):
                    if not isinstance(value, Storage):
                        return None
                    keys = [number for number, base in enumerate(storages) if base is value.array]
                    if not keys:
                        storages.append(value.array)
                    key = str(keys[0] if keys else len(storages) - 1)
                    kind = getattr(modules["torch"], STORAGES[str(value.array.dtype)])
                    return "storage", kind, key, "cpu", value.array.size

            with archive.open("archive/data.pkl", "w") as file:
                Pickler(file, 2).dump(value)
            archive.writestr("archive/byteorder", byteorder)
            archive.writestr("archive/version", "3\n")
            for number, storage in enumerate(storages):
                archive.writestr(f"archive/data/{number}", storage.tobytes())
    finally:
        for name, module in before.items():
            sys.modules.pop(name) if module is None else sys.modules.__setitem__(name, module)
