"""Zarr: a folder NAME.zarr with one array, or with a group of arrays. Read by the package zarr."""

from pathlib import Path

from jaxsae.errors import BadInput


def read(path: Path) -> dict:
    try:
        import zarr
    except ImportError:
        raise BadInput(f"{path} needs the package zarr: pip install 'jaxsae[zarr]'") from None
    opened = zarr.open(str(path), mode="r")
    return dict(_arrays(opened, "")) if isinstance(opened, zarr.Group) else {"": opened}


def _arrays(group, prefix: str):
    for name in sorted(group):
        member = group[name]
        if hasattr(member, "shape"):
            yield f"{prefix}{name}", member
        else:
            yield from _arrays(member, f"{prefix}{name}/")
