"""An autoencoder of one format written in another."""

import shutil
from pathlib import Path

import jax
import numpy as np

from jaxsae import interop
from jaxsae.errors import BadInput
from jaxsae.interop.interface import NOTHING, Given
from jaxsae.run import saved


def convert(
    source: str | Path, out: Path, to: str, file: str | None = None, format: str | None = None, given: Given = NOTHING
) -> list[str]:
    """Write the autoencoder of `source` (as in `jaxsae.load`) into the new folder `out`, in format `to`.

    Returns what had to be folded so that the other library computes the same, in lines. Raises BadInput, with nothing
    written, if it cannot be read, or if that format cannot say what it computes.
    """
    if out.exists():
        raise BadInput(f"{out} is there already: give another folder to write")
    about = saved.as_saved(source, file, format, given)
    sae = saved.load(source, file, None, format, **vars(given))
    interop.check_numbers(sae, source)
    half_written = out.with_name(f".{out.name}.writing")
    try:
        notes = interop.write(jax.tree.map(np.asarray, sae), about, half_written, to)
        half_written.rename(out)
    finally:
        shutil.rmtree(half_written, ignore_errors=True)
    return notes
