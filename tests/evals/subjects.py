"""Subjects of evaluations that compile in seconds, and the plain mathematics of their autoencoders."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxsae.distributed.mesh import make_mesh, replicate, shardings
from jaxsae.evals.subject import Subject
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.types import SAE, Spec, partition_specs
from tests.lm import tiny
from tests.sae import dense

POSITIONS, MSE_SCALE = 8, 0.7
TOPK = Spec("topk", 4, "unit_norm", "unit_norm", True)
MESHES = [(1, 1), (2, 4)]


def two_layers(dtype=jnp.float64):
    """The tiny model without its third block, which would only take time to compile."""
    lm = tiny.model(dtype=dtype)
    return replace(lm, config=replace(lm.config, n_layer=2))


@partial(jax.jit, static_argnames="hook")
def split_prefix(lm, tokens, hook):
    return jax.reshard(on_contexts(lambda lm, tokens: lm.prefix(tokens, hook), lm, tokens), P("data"))


class Text:
    """Activations of a model on random tokens. Padding is -1; `first` and `skip` leave out positions and a token."""

    dtype, fingerprint = np.int32, "text"

    def __init__(self, lm, hook, contexts, positions=POSITIONS, first=0, skip=None):
        self.first, self.skip = first, skip
        self.lm, self.hook, self.tokens = lm, hook, tiny.random_tokens(contexts, positions)
        self.rows, self.shape = positions, (positions,)
        self.width = 4 * tiny.WIDTH if hook.endswith("mlp.hook_post") else tiny.WIDTH

    def __len__(self):
        return len(self.tokens)

    def host(self, start, stop):
        return self.tokens[np.arange(start, stop) % len(self)]

    @property
    def masked(self):
        return self.skip is not None or bool((self.tokens < 0).any())

    @property
    def count(self):
        return int(np.asarray(self.kept(self.tokens)).sum())

    def kept(self, host):
        kept = (host >= 0) & (jnp.arange(host.shape[1]) >= self.first)
        return kept if self.skip is None else kept & (host != self.skip)

    def activations(self, host):
        return (split_prefix(self.lm, jnp.maximum(host, 0), self.hook),)


class Files:
    """Activations that are there already, [contexts, rows, d]; rows of NaN are padding."""

    first, fingerprint = 0, "files"

    def __init__(self, x):
        self.masked = bool(np.isnan(x).any())
        self.x, self.dtype, self.shape = x, x.dtype, x.shape[1:]
        self.rows, self.width = self.shape

    def __len__(self):
        return len(self.x)

    def host(self, start, stop):
        return self.x[np.arange(start, stop) % len(self)]

    @property
    def count(self):
        return int((~np.isnan(self.x[..., 0])).sum())

    def kept(self, host):
        return ~jnp.isnan(host[..., 0])

    def activations(self, host):
        return (jnp.nan_to_num(host),)


def random_sae(d, n=64, seed=0, spec=TOPK, dtype=jnp.float64) -> SAE:
    return dense.random_sae(jax.random.key(seed), n, d, spec, dtype)


def placed(mesh, sae: SAE) -> SAE:
    return jax.device_put(sae, shardings(mesh, partition_specs(sae)))


def on_text(shape, sae, hook, contexts=8, lm=None, raw=None, positions=POSITIONS, tokens=10**6) -> Subject:
    """`sae` at `hook` of a model, on a mesh of `shape`."""
    mesh = make_mesh(*shape)
    lm = replicate(two_layers() if lm is None else lm, mesh)
    raw = None if raw is None else placed(mesh, raw)
    source, facts = Text(lm, hook, contexts, positions), {"mse_scale": MSE_SCALE}
    return Subject(placed(mesh, sae), source, mesh, tokens, raw, lm, hook, facts=facts, quiet=True)


def on_files(shape, sae, x, tokens=10**6) -> Subject:
    """`sae` on activations x [contexts, rows, d], without a language model."""
    mesh = make_mesh(*shape)
    return Subject(placed(mesh, sae), Files(x), mesh, tokens, facts={"mse_scale": MSE_SCALE}, quiet=True)
