"""Members of zip archives as bytes, memory-mapped if they are stored as they are."""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

# Before a member's data stand 30 bytes of fixed fields, among them the lengths of its name and of what comes after.
_FIXED, _NAME_LENGTH, _EXTRA_LENGTH = 30, slice(26, 28), slice(28, 30)
# What the compressed members of an archive may grow to: so many bytes, or so many times the archive. Sparse activations
# shrink by less; what was made to fill a memory, by a thousand.
_GROWN, _TIMES = 256 << 20, 100

# What damaged archives make zipfile raise beside its own errors: other compressions, passwords, broken streams.
_ODD = (NotImplementedError, RuntimeError, zlib.error, struct.error)


def members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by name.

    Raises zipfile.BadZipFile or OSError if it is not a whole one, or if it would fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except _ODD as error:
        raise zipfile.BadZipFile(str(error)) from error
    grown = sum(info.file_size for info in found if info.compress_type != zipfile.ZIP_STORED)
    if grown > max(_GROWN, _TIMES * path.stat().st_size):
        raise zipfile.BadZipFile(f"its {path.stat().st_size:,} bytes would become {grown:,}, more than numbers do")
    return {info.filename: info for info in found}


def contents(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of a member, uint8 [size]: a map of the file, or a copy in memory if the member is compressed.

    Raises zipfile.BadZipFile, EOFError or OSError if the archive is damaged.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(
            f"{member.filename} is compressed in a way (number {member.compress_type}) not read here"
        )
    if member.compress_type == zipfile.ZIP_DEFLATED:
        try:
            with zipfile.ZipFile(path) as archive:
                return np.frombuffer(archive.read(member), np.uint8)
        except _ODD as error:
            raise zipfile.BadZipFile(str(error)) from error
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
