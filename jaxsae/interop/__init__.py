"""Saved autoencoders: formats by name. Adding one is one file beside this one and one line in `FORMATS`.

sae = load(path)            # arrays, on one device or on a mesh
about = describe(path)      # hook, model, training facts, as saved
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxsae.distributed.mesh import place, shardings
from jaxsae.errors import BadInput
from jaxsae.interop import (
    circuit_tracer,
    dictionary_learning,
    e2e_sae,
    gemma_scope,
    hub,
    llama_scope,
    native,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
    writing,
)
from jaxsae.interop.interface import NOTHING, Format, Given
from jaxsae.sae.types import SAE, Spec, partition_specs

# In the order in which they are tried: `jaxsae` takes any safetensors file, and says what it lacks.
FORMATS: dict[str, Format] = {
    "sae_lens": sae_lens.FORMAT,
    "sparsify": sparsify.FORMAT,
    "dictionary_learning": dictionary_learning.FORMAT,
    "gemma_scope": gemma_scope.FORMAT,
    "qwen_scope": qwen_scope.FORMAT,
    "llama_scope": llama_scope.FORMAT,
    "circuit_tracer": circuit_tracer.FORMAT,
    "openai": openai.FORMAT,
    "e2e_sae": e2e_sae.FORMAT,
    "jaxsae": native.FORMAT,
}
WRITTEN = tuple(name for name, known in FORMATS.items() if known.write is not None)
# Autoencoders inside a folder that an error lists.
NAMED = 8


def load(
    path: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    file: str | None = None,
    format: str | None = None,
    given: Given = NOTHING,
) -> SAE:
    """The autoencoder in a run folder, an exported folder or a file of a format that is known, or on the hub.

    On `mesh` if one is given: then each process reads only what its devices hold. Arrays of half or double precision
    become float32 (with JAX's x64 mode on, double precision stays). `file`, `format` and `given` are as in `read`.
    Raises BadInput if there is none, if it does not say what its arrays mean, or if those of another library hold NaN.
    """
    sae, about = read(path, file, format, given)
    cast = lambda rows: jnp.promote_types(jax.dtypes.canonicalize_dtype(rows.dtype), jnp.float32)
    if mesh is None:
        sae = jax.tree.map(lambda rows: jnp.asarray(rows[:], cast(rows)), sae)
    else:
        on_mesh = lambda rows, s: place(lambda start, stop: rows[start:stop], rows.shape, cast(rows), s)
        sae = jax.tree.map(on_mesh, sae, shardings(mesh, partition_specs(sae)))
    if "format" in about:
        check_numbers(sae, path)
    return sae


def write(sae: SAE, about: dict, folder: Path, to: str) -> list[str]:
    """Write an autoencoder of NumPy arrays into a new `folder` in the format `to`; returns what was folded, in lines.

    `about` is what `describe` says of it. Raises BadInput, before anything is written, if that format cannot say it.
    """
    if to not in WRITTEN:
        raise BadInput(f"--to is {to}: allowed are {', '.join(WRITTEN)}")
    if to == "jaxsae":
        return native.FORMAT.write(sae, about, folder)
    sae, notes = writing.plain(sae, to)
    return notes + FORMATS[to].write(sae, about, folder)


def describe(path: str | Path, file: str | None = None, format: str | None = None, given: Given = NOTHING) -> dict:
    """What a saved autoencoder says of itself: its spec, hook, model and training facts; nothing is guessed."""
    return read(path, file, format, given)[1]


def spec(path: str | Path) -> Spec:
    """The mathematics of a saved autoencoder."""
    return read(path)[0].spec


def shape(path: str | Path) -> tuple[int, int]:
    """(n, d) of a saved autoencoder, of which nothing else is read."""
    return read(path)[0].W_enc.shape


def read(
    path: str | Path, file: str | None = None, format: str | None = None, given: Given = NOTHING
) -> tuple[SAE, dict]:
    """(autoencoder whose arrays are read when they are indexed, what it says of itself), checked for consistency.

    `path` is a folder, a file, or a name on the hub, and `file` a file or folder inside it. The format is recognised by
    what is there, or must be `format`. `given` says what a format leaves open. Raises BadInput.
    """
    if format is not None and format not in FORMATS:
        raise BadInput(f"there is no format {format!r}: allowed are {', '.join(FORMATS)}")
    path = located(path, file)
    for name, known in FORMATS.items():
        if format in (None, name) and (found := known.recognises(path)) is not None:
            return _read(name, found, given)
    if format is not None:
        raise BadInput(f"{path} is not of format {format}: {_explained(format)}")
    if inside := _inside(path):
        more = f" and {len(inside) - NAMED} more" if len(inside) > NAMED else ""
        raise BadInput(
            f"{path} holds no autoencoder itself, but inside are {', '.join(inside[:NAMED])}{more}: give one of them"
        )
    raise BadInput(
        f"{path} holds no autoencoder: give a finished run (`jaxsae export` writes one of a run that was stopped), a "
        f"folder with {native.WEIGHTS}, a safetensors file, or what another library saved, under the names of that "
        f"library (formats: {', '.join(FORMATS)})"
    )


def _inside(path: Path) -> list[str]:
    """Folders in `path`, one level below, that hold an autoencoder, by name."""
    below = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    return [folder.name for folder in below if any(_is(known, folder) for known in FORMATS.values())]


def _is(known: Format, folder: Path) -> bool:
    try:
        return known.recognises(folder) is not None
    except (BadInput, *_MISSHAPEN):
        return False


def _read(name: str, file: Path, given: Given) -> tuple[SAE, dict]:
    try:
        sae, about = FORMATS[name].read(file, given)
    except _MISSHAPEN as error:
        raise BadInput(f"{file} is not as {name} writes it: {type(error).__name__}: {error}") from error
    _check(sae, file)
    given.check(sae.spec, about, file)
    return sae, about


# What documents raise that say something of another kind than they should: a list for a name, say.
_MISSHAPEN = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError)


def located(path: str | Path, file: str | None = None) -> Path:
    """The file or folder of an autoencoder; one on the hub is fetched first."""
    if hub.is_name(path):
        return hub.fetch(str(path), file, [name for known in FORMATS.values() for name in known.files])
    return Path(path) / file if file else Path(path)


def _explained(name: str) -> str:
    files = ", ".join(FORMATS[name].files)
    return f"such a folder has {files}" if files else "see docs/formats.md for the names of its files"


def check_numbers(sae: SAE, path: str | Path):
    """Raises BadInput if a number is none (NaN), or a weight infinite."""
    for where, a in jax.tree.leaves_with_path(sae):
        name = jax.tree_util.keystr(where, simple=True, separator=".")
        wrong = jnp.isnan(a) if name.startswith("extra") else ~jnp.isfinite(a)
        if bool(wrong.any()):
            raise BadInput(f"{path} has {int(wrong.sum())} numbers in {name} that are NaN or infinite: it is damaged")


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
    if (prefixes := sae.spec.prefixes) and list(prefixes) != sorted({m for m in prefixes if 0 < m < n} | {n}):
        raise BadInput(f"{file} has prefixes {list(prefixes)}: not rising numbers of latents up to {n}")
    if d % sae.spec.sections:
        raise BadInput(f"{file} has {sae.spec.sections} sections: activations of width {d} do not divide into so many")
    # The output of a transcoder may have another width; one without a bias of its input has no bias there.
    transcodes = sae.b_in is not None or (sae.scale_out is not None and not sae.spec.subtract_b_dec)
    d_out = sae.W_dec.shape[-1] if transcodes or sae.W_skip is not None else d
    shapes = {"b_enc": (n,), "W_dec": (n, d_out), "b_dec": (d_out,), "b_in": (d,), "W_skip": (d, d_out)}
    shapes |= {"scale_out": (1,)}
    for name, expected in shapes.items():
        rows = getattr(sae, name)
        if rows is not None and rows.shape != expected:
            raise BadInput(f"{file} has {name} of shape {list(rows.shape)}, not {list(expected)}")
    for name, rows in sae.extra.items():
        if rows.shape != (n,):
            raise BadInput(f"{file} has {name} of shape {list(rows.shape)}, not {[n]}")
