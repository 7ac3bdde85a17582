"""Arguments of figures as one file: dicts, tuples, arrays and datasets in a compressed `.npz`, without pickle."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from lossland.sweeps.archive import write_whole

UNUSED = ("saved_",)
"""Variables that begin so are whole states of training: no figure draws them."""


def save(value: Any, path: Path) -> None:
    """Write a tree of dicts, lists, tuples, numbers, words, arrays, datasets and functions of lossland.

    Arrays with the same bytes, such as those of runs that two figures are drawn from, are written once.

    Raises:
        TypeError: for anything else, naming its place in the tree.
    """
    arrays: _Arrays = {}
    tree = _encode(value, arrays, "value")
    stream = io.BytesIO()
    named = {f"array_{place}": array for place, array in arrays.values()}
    np.savez_compressed(stream, tree=np.array(json.dumps(tree)), **named)
    write_whole(path, stream.getvalue())


def load(path: Path) -> Any:
    """Read back what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        tree = json.loads(str(file["tree"]))
        arrays = [file[f"array_{place}"] for place in range(len(file.files) - 1)]
    return _decode(tree, arrays)


_Arrays = dict[tuple[str, tuple[int, ...], bytes], tuple[int, np.ndarray]]
"""Dtype, shape and digest of an array -> its place among those written, and the array."""


def _encode(value: Any, arrays: _Arrays, place: str) -> Any:
    def array(values: Any) -> int:
        values = np.asarray(values)
        if values.dtype == object:
            if not all(isinstance(one, str) for one in values.ravel()):
                raise TypeError(f"{place}: an array of objects cannot be kept")
            values = values.astype(str)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
        return arrays.setdefault((values.dtype.str, values.shape, digest), (len(arrays), values))[0]

    def variable(one: xr.DataArray) -> Any:
        return [list(one.dims), array(one.values), _encode(dict(one.attrs), arrays, f"{place}.attrs")]

    def variables(of: Mapping[Any, xr.DataArray]) -> Any:
        return [[name, variable(one)] for name, one in of.items() if not str(name).startswith(UNUSED)]

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, np.ndarray):
        return {"array": array(value)}
    if isinstance(value, xr.Dataset):
        attributes = _encode(_lasting(value.attrs), arrays, f"{place}.attrs")
        return {"dataset": [variables(value.data_vars), variables(value.coords), attributes]}
    if isinstance(value, xr.DataArray):
        return {"dataarray": [value.name, variable(value), variables(value.coords)]}
    if isinstance(value, Mapping):
        return {
            "dict": [
                [_encode(key, arrays, place), _encode(part, arrays, f"{place}[{key!r}]")] for key, part in value.items()
            ]
        }
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_encode(part, arrays, f"{place}[{number}]") for number, part in enumerate(value)]}
    if callable(value) and getattr(value, "__module__", "").startswith("lossland"):
        return {"function": [value.__module__, value.__qualname__]}
    if hasattr(value, "__array__"):
        return {"array": array(np.asarray(value))}
    raise TypeError(f"{place}: a {type(value).__name__} cannot be kept; give the figure arrays, datasets or words")


def _lasting(attributes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Attributes but for the time of the run, so that the same numbers make the same file."""
    return {name: value for name, value in attributes.items() if name != "created"}


def _decode(tree: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()

    def variable(one: Any) -> Any:
        dims, number, attributes = one
        return dims, arrays[number], _decode(attributes, arrays)

    def part(one: Any) -> Any:
        return _decode(one, arrays)

    match kind:
        case "float":
            return float(content)
        case "array":
            return arrays[content]
        case "dataset":
            data, coords, attributes = content
            return xr.Dataset(
                {name: variable(one) for name, one in data},
                {name: variable(one) for name, one in coords},
                part(attributes),
            )
        case "dataarray":
            name, (dims, number, attributes), coords = content
            places = {coord: variable(one) for coord, one in coords}
            return xr.DataArray(arrays[number], places, dims, name, part(attributes))
        case "dict":
            return {part(key): part(value) for key, value in content}
        case "list":
            return [part(one) for one in content]
        case "tuple":
            return tuple(part(one) for one in content)
        case "function":
            module, name = content
            if not module.startswith("lossland."):
                raise ValueError(f"a function of {module} is not lossland's")
            return getattr(importlib.import_module(module), name)
    raise ValueError(f"a {kind!r} is not known; the file was written by another version")
