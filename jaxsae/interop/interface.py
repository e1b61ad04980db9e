"""What a file format is to the rest of the package."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format of saved autoencoders.

    recognises(path)        -> the file or folder to read, by what is there and never by guess; None if it is not one
    read(file)              -> (SAE, about): arrays that are read when they are sliced by rows (with `shape`, `dtype`,
                            `ndim`), and what the file says of itself, its spec included. Raises BadInput
    write(sae, about, folder)
                            writes one; raises BadInput if the format cannot say it
    """

    recognises: Callable
    read: Callable
    write: Callable
