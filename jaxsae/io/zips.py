"""Members of zip archives as bytes, memory-mapped if they are stored as they are."""

import zipfile
from pathlib import Path

import numpy as np

# Before a member's data stand 30 bytes of fixed fields, among them the lengths of its name and of what comes after.
_FIXED, _NAME_LENGTH, _EXTRA_LENGTH = 30, slice(26, 28), slice(28, 30)


def members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name. Raises zipfile.BadZipFile or OSError if it is not a whole one."""
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info for info in archive.infolist()}


def contents(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, uint8 [size]: a map of the file, or a copy in memory if the member is compressed.

    Raises zipfile.BadZipFile, EOFError or OSError if the archive is damaged.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        with zipfile.ZipFile(path) as archive:
            return np.frombuffer(archive.read(member), np.uint8)
    with path.open("rb") as file:
        file.seek(member.header_offset)
        fixed = file.read(_FIXED)
    if fixed[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"{member.filename} does not lie where the archive says")
    start = member.header_offset + _FIXED
    start += int.from_bytes(fixed[_NAME_LENGTH], "little") + int.from_bytes(fixed[_EXTRA_LENGTH], "little")
    if member.file_size == 0:
        return np.frombuffer(b"", np.uint8)
    if start + member.file_size > path.stat().st_size:
        raise zipfile.BadZipFile(f"{member.filename} goes beyond the end of the file")
    return np.memmap(path, np.uint8, "r", start, (member.file_size,))
