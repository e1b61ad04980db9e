"""All metrics of one or more autoencoders in one pass over held-out data. b contexts, T positions, d width."""

from functools import partial

import jax
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

from jaxsae.evals import downstream, reconstruction
from jaxsae.lm.model import LM
from jaxsae.mesh import place
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.select import EXACT, Selection
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.struct import SAE

# Tokens whose logits exist at once on a device, three times over.
LOGITS_AT_ONCE = 1024


def evaluate(
    saes: dict[str, SAE],
    source,
    mesh: jax.sharding.Mesh,
    tokens: int,
    mse_scale: float,
    lm: LM | None = None,
    hook: str | None = None,
    how: Selection = EXACT,
    quiet: bool = False,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Metrics on about `tokens` held-out tokens of `source`, and NMSE by position.

    `saes` maps a prefix for the names ("" and "raw_", say) to an autoencoder on the mesh; `mse_scale` is that of their
    training loss. Without a language model (activations from files) the metrics that need one are None.
    """
    total: dict[str, np.ndarray] = {}
    count = min(tokens // source.rows, len(source))
    for start, stop in tqdm(_batches(count, source.rows, mesh), "evaluating", unit="batch", disable=quiet, leave=False):
        read = lambda a, z, start=start: source.host(start + a, start + z)
        host = place(read, (stop - start, *source.shape), source.dtype, NamedSharding(mesh, P("data")))
        with jax.set_mesh(mesh):
            sums = _sums(saes, source.activations(host), lm, host, hook, how)
        for name, value in jax.device_get(sums).items():
            total[name] = total.get(name, 0) + np.asarray(value, np.float64)
    out: dict[str, float | None] = {}
    by_position = {}
    for prefix in saes:
        parts = {name: total[f"{prefix}{name}"] for name in ("error", "square", "x", "l0", "tokens")}
        by_position[f"{prefix}nmse_by_position"] = reconstruction.nmse_by_position(parts)
        views = {"": slice(None), "no_pos0_": slice(1, None)} if lm is not None else {"": slice(None)}
        for view, positions in views.items():
            values = reconstruction.metrics({name: v[positions] for name, v in parts.items()}, mse_scale)
            if lm is not None:
                losses = {name: total[name][positions].sum() for name in total if name.startswith(("ce_", prefix))}
                counted = parts["tokens"][positions]
                values |= downstream.metrics(losses, counted[:-1].sum(), counted.sum(), prefix)
            else:
                values |= dict.fromkeys(downstream.NAMES)
            out |= {f"{prefix}{view}{name}": value for name, value in values.items()}
    return out, by_position


def _batches(count: int, rows: int, mesh) -> list[tuple[int, int]]:
    """Ranges that cover `count` contexts in batches of about 4096 rows and a rest, each a multiple of the data axis."""
    data = mesh.shape["data"]
    multiple = lambda contexts: contexts // data * data
    whole, size = max(data, multiple(count)), max(data, multiple(4096 // rows))
    return [(start, min(start + size, whole)) for start in range(0, whole, size)]


def _reconstructions(sae: SAE, x, how: Selection):
    """x [b@data, T, d] -> (normalised x and its reconstruction [b@data, T, d], L0 [b@data, T], mean, scale)."""
    flat = lax.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]), out_sharding=P("data"))
    flat, mean, scale = normalise(flat, sae.spec.normalise)
    out = autoencode(sae, flat, choose(sae, flat, how), how)
    back = lambda a: lax.reshape(a, (*x.shape[:2], *a.shape[1:]), out_sharding=P("data"))
    return back(flat), back(out.xhat), back(out.l0), back(mean), back(scale)


@partial(jax.jit, static_argnames=("hook", "how"))
def _sums(saes, x, lm, tokens, hook, how):
    """What a batch of activations x [b@data, T, d] adds to every total, by position; losses where there is an lm."""
    sums, substitutes = {}, {}
    for prefix, sae in saes.items():
        normal, xhat, l0, mean, scale = _reconstructions(sae, x, how)
        substitutes[prefix] = denormalise(xhat, mean, scale)
        # NMSE does not change when both are shifted; near the origin its float32 sums keep their digits.
        values = reconstruction.sums(normal - sae.b_dec, xhat - sae.b_dec, l0)
        sums |= {f"{prefix}{name}": value for name, value in values.items()}
    return sums if lm is None else sums | _downstream_sums(lm, tokens, x, substitutes, hook)


def _downstream_sums(lm, tokens, x, substitutes, hook):
    """Sums over contexts [T] of every loss in `downstream.losses`."""

    def local(lm, tokens, x, substitutes):
        b, T = tokens.shape
        some = max(c for c in range(1, b + 1) if b % c == 0 and c * T <= max(LOGITS_AT_ONCE, T))
        group = lambda a: a.reshape(-1, some, *a.shape[1:])
        losses = lax.map(
            lambda part: jax.tree.map(lambda a: a.sum(0), downstream.losses(lm, part[0], hook, *part[1:])),
            jax.tree.map(group, (tokens, x, substitutes)),
        )
        return jax.tree.map(lambda a: lax.psum(a.sum(0), "data"), losses)

    specs = P(), P("data"), P("data"), P("data")
    return jax.shard_map(local, in_specs=specs, out_specs=P())(lm, tokens, x, substitutes)
