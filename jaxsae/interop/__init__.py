"""Saved autoencoders: formats by name. Adding one is one file beside this one and one line in `FORMATS`.

sae = load(path)            # arrays, on one device or on a mesh
about = describe(path)      # hook, model, training facts, as saved
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae.distributed.mesh import place, shardings
from jaxsae.errors import BadInput
from jaxsae.interop import native
from jaxsae.interop.interface import Format
from jaxsae.sae.types import SAE, Spec, partition_specs

FORMATS: dict[str, Format] = {"jaxsae": native.FORMAT}


def load(path: str | Path, mesh: jax.sharding.Mesh | None = None) -> SAE:
    """The autoencoder in a run folder, an exported folder or a file of a format that is known.

    On `mesh` if one is given: then each process reads only what its devices hold. Arrays of half or double precision
    become float32 (with JAX's x64 mode on, double precision stays). Raises BadInput if there is none, or if it does not
    say what its arrays mean.
    """
    sae = read(path)[0]
    cast = lambda rows: jnp.promote_types(jax.dtypes.canonicalize_dtype(rows.dtype), jnp.float32)
    if mesh is None:
        return jax.tree.map(lambda rows: jnp.asarray(rows[:], cast(rows)), sae)
    on_mesh = lambda rows, s: place(lambda start, stop: rows[start:stop], rows.shape, cast(rows), s)
    return jax.tree.map(on_mesh, sae, shardings(mesh, partition_specs(sae)))


def describe(path: str | Path) -> dict:
    """What a saved autoencoder says of itself: its spec, hook, model and training facts; nothing is guessed."""
    return read(path)[1]


def spec(path: str | Path) -> Spec:
    """The mathematics of a saved autoencoder."""
    return read(path)[0].spec


def shape(path: str | Path) -> tuple[int, int]:
    """(n, d) of a saved autoencoder, of which nothing else is read."""
    return read(path)[0].W_enc.shape


def read(path: str | Path) -> tuple[SAE, dict]:
    """(autoencoder whose arrays are read when they are indexed, what it says of itself), checked for consistency."""
    path = Path(path)
    for known in FORMATS.values():
        if (file := known.recognises(path)) is not None:
            sae, about = known.read(file)
            _check(sae, file)
            return sae, about
    raise BadInput(
        f"{path} holds no autoencoder: give a finished run (`jaxsae export` writes one of a run that was stopped), a "
        f"folder with {native.WEIGHTS}, or a safetensors file (formats: {', '.join(FORMATS)})"
    )


def _check(sae: SAE, file: Path):
    for where, rows in jax.tree.leaves_with_path(sae):
        if not jnp.issubdtype(rows.dtype, jnp.floating):
            name = jax.tree_util.keystr(where, simple=True, separator=".")
            raise BadInput(
                f"{file} has {name} of type {rows.dtype}: an autoencoder's arrays are floating-point numbers"
            )
    k = sae.spec.k
    if sae.W_enc.ndim != 2 or not (isinstance(k, int) and 1 <= k <= len(sae.W_enc)):
        raise BadInput(f"{file} has W_enc of shape {list(sae.W_enc.shape)} and k = {k!r}: not [n, d] and 1 to n")
    n, d = sae.W_enc.shape
    # A bias of its own for the input makes the output's width independent of it.
    d_out = d if sae.b_in is None else sae.W_dec.shape[-1]
    shapes = {"b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,), "b_in": (d,)}
    for name, expected in shapes.items():
        rows = getattr(sae, name)
        if rows is not None and rows.shape != expected:
            raise BadInput(f"{file} has {name} of shape {list(rows.shape)}, not {list(expected)}")
