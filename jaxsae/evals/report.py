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
from jaxsae.precision import Products
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.sharded import autoencode
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
    select: Products = "float32",
    quiet: bool = False,
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Metrics on about `tokens` held-out tokens of `source`, and NMSE by position.

    `saes` maps a prefix for the names ("" and "raw_", say) to an autoencoder on the mesh; `mse_scale` is that of their
    training loss. Without a language model
    (activations from files) the metrics that need one are None.
    """
    data = mesh.shape["data"]
    rows = source.rows
    count = max(1, min(tokens // rows, len(source)))
    b = max(data, min(count, max(1, 4096 // rows)) // data * data)
    total: dict[str, np.ndarray] = {}
    starts = range(0, max(1, count // b) * b, b)
    for start in tqdm(starts, desc="evaluating", unit="batch", disable=quiet, leave=False, mininterval=1):
        read = lambda a, z, start=start: source.host(start + a, start + z)
        host = place(read, (b, *source.shape), source.dtype, NamedSharding(mesh, P("data")))
        with jax.set_mesh(mesh):
            sums = _batch_sums(saes, source.activations(host), select)
            if lm is not None:
                sums |= _downstream_sums(lm, saes, host, source.activations(host), hook, select)
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
                values |= dict.fromkeys(("ce_original", "ce_substituted", "delta_ce", "kl", "ce_recovered"))
            out |= {f"{prefix}{view}{name}": value for name, value in values.items()}
    return out, by_position


def _reconstructions(sae: SAE, x, select):
    """x [b@data, T, d] -> (normalised x and its reconstruction [b@data, T, d], L0 [b@data, T], mean, scale)."""
    flat = lax.reshape(x, (x.shape[0] * x.shape[1], x.shape[2]), out_sharding=P("data"))
    flat, mean, scale = normalise(flat, sae.spec.normalise)
    xhat, l0, _ = autoencode(sae, flat, select)
    back = lambda a: lax.reshape(a, (*x.shape[:2], *a.shape[1:]), out_sharding=P("data"))
    return back(flat), back(xhat), back(l0), back(mean), back(scale)


@partial(jax.jit, static_argnames="select")
def _batch_sums(saes, x, select):
    sums = {}
    for prefix, sae in saes.items():
        normal, xhat, l0, _, _ = _reconstructions(sae, x, select)
        sums |= {f"{prefix}{name}": v for name, v in reconstruction.sums(normal, xhat, l0).items()}
    return sums


@partial(jax.jit, static_argnames=("hook", "select"))
def _downstream_sums(lm, saes, tokens, x, hook, select):
    """Sums over contexts [T] of every loss in `downstream.losses`."""
    substitutes = {}
    for prefix, sae in saes.items():
        _, xhat, _, mean, scale = _reconstructions(sae, x, select)
        substitutes[prefix] = denormalise(xhat, mean, scale)

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
