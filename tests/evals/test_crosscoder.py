"""Transcoders and crosscoders as what they replace: the standard metrics, and those of sections, by plain code."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh, replicate
from jaxsae.errors import BadInput
from jaxsae.evals import crosscoder, measure
from jaxsae.evals.subject import Subject
from jaxsae.lm.model import capture
from jaxsae.lm.parallel import on_contexts
from jaxsae.sae.types import Spec
from tests.evals.subjects import MSE_SCALE, Text, placed, random_sae, two_layers
from tests.evals.test_standard import normalised
from tests.lm import tiny
from tests.marks import slow
from tests.sae import dense

HOOKS = ("blocks.0.hook_resid_mid", "blocks.1.hook_attn_out")
IN, OUT = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
UNIT, K = 2.0, 4


class Several(Text):
    """Activations at several hook points, side by side, or in a pair."""

    def __init__(self, lm, hooks, contexts, paired):
        super().__init__(lm, hooks[0], contexts)
        self.hooks, self.paired = hooks, paired

    def activations(self, host):
        seen = _seen(self.lm, host, self.hooks)
        return tuple(seen) if self.paired else (jnp.concatenate(seen, -1),)


def _read(lm, tokens, hooks):
    return [capture(lm, tokens, hooks)[0][hook] for hook in hooks]


@partial(jax.jit, static_argnames="hooks")
def _seen(lm, tokens, hooks):
    seen = on_contexts(lambda lm, tokens: _read(lm, tokens, hooks), lm, tokens)
    return [jax.reshard(a, jax.P("data")) for a in seen]


def subject_of(mesh, sae, hooks, paired) -> Subject:
    grid = make_mesh(*mesh)
    lm = replicate(two_layers(), grid)
    source = Several(lm, hooks, 6, paired)
    where = {"hook": hooks[1], "hook_in": hooks[0]} if paired else {"hook": hooks}
    facts = {"mse_scale": MSE_SCALE}
    return Subject(placed(grid, sae), source, grid, 10**6, None, lm, facts=facts, quiet=True, **where)


def cross_entropy(logits, tokens):
    log_p = jax.nn.log_softmax(logits)
    return -np.take_along_axis(np.asarray(log_p)[:, :-1], tokens[:, 1:, None], -1).mean()


def losses(lm, tokens, taps):
    """Cross-entropy with other activations {hook: [b, T, d]}."""
    return cross_entropy(
        jax.jit(lambda lm, t, taps: lm.run(t, {h: lambda _, a=a: a for h, a in taps.items()}))(lm, tokens, taps), tokens
    )


@pytest.mark.parametrize("mesh", [(1, 1), slow((2, 4))], ids=str)
def test_a_transcoder_is_measured_in_the_place_of_what_it_replaces(x64, mesh):
    skip = 0.1 * jax.random.normal(jax.random.key(5), (tiny.WIDTH, tiny.WIDTH), jnp.float64)
    sae = random_sae(tiny.WIDTH).replace(b_in=0.1 * jnp.ones(tiny.WIDTH), W_skip=skip, scale_out=jnp.array([UNIT]))
    subject = subject_of(mesh, sae, (IN, OUT), True)
    got = measure("standard", subject)
    lm, tokens = two_layers(), subject.source.tokens
    x, y = (np.asarray(a) for a in _read(lm, tokens, (IN, OUT)))
    normal = jnp.asarray(normalised(x)[0].reshape(-1, tiny.WIDTH))
    z = dense.code(sae.replace(b_dec=sae.b_in), normal)
    yhat = UNIT * np.asarray(dense.reconstruct(sae, z) + normal @ skip).reshape(y.shape)
    square = lambda a: (a**2).sum()
    np.testing.assert_allclose(got["fvu"], square(y - yhat) / square(y - y.mean((0, 1))), rtol=1e-5)
    np.testing.assert_allclose(got["nmse"], got["fvu"], rtol=1e-5)
    np.testing.assert_allclose(got["loss"], MSE_SCALE * ((y - yhat) ** 2).mean() / UNIT**2, rtol=1e-5)
    original, changed, zero, mean = (
        losses(lm, tokens, {OUT: a}) for a in (y, yhat, 0 * y, np.broadcast_to(y.mean((0, 1)), y.shape))
    )
    np.testing.assert_allclose(got["delta_ce"], changed - original, atol=1e-6)
    np.testing.assert_allclose(got["ce_recovered"], (zero - changed) / (zero - original), rtol=1e-4)
    np.testing.assert_allclose(got["ce_mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(got["ce_recovered_mean"], (mean - changed) / (mean - original), rtol=1e-4)
    with pytest.raises(BadInput, match="--metrics dark_matter is not of a transcoder: allowed are standard"):
        measure("dark_matter", subject)


@pytest.mark.parametrize("mesh", [(1, 1), slow((2, 4))], ids=str)
def test_sections_of_a_crosscoder(x64, mesh):
    sae = random_sae(2 * tiny.WIDTH, spec=Spec("topk", K, "unit_norm", "free", True, sections=2))
    # Some latents write into one section only, or less into one.
    factor = jnp.where(jnp.arange(64) % 4 == 0, 0.0, jnp.where(jnp.arange(64) % 4 == 1, 0.2, 1.0))
    W = sae.W_dec.reshape(64, 2, -1).at[:, 1].multiply(factor[:, None]).reshape(64, -1)
    sae = sae.replace(W_dec=W)
    subject = subject_of(mesh, sae, HOOKS, False)
    got = measure("crosscoder", subject)
    lm, tokens = two_layers(), subject.source.tokens
    raw = [np.asarray(a) for a in _read(lm, tokens, HOOKS)]
    parts = [normalised(a) for a in raw]
    x = np.concatenate([part[0] for part in parts], -1).reshape(-1, 2 * tiny.WIDTH)
    norms = np.linalg.norm(np.asarray(W).reshape(64, 2, -1), axis=2)
    z = (x - np.asarray(sae.b_dec)) @ np.asarray(sae.W_enc).T + np.asarray(sae.b_enc)
    # They compete by what they write into both sections.
    z = np.where(np.asarray(dense.top_mask(jnp.asarray(z * norms.sum(1)), K)), np.maximum(z, 0), 0)
    xhat = np.split((z @ np.asarray(W) + np.asarray(sae.b_dec)).reshape(*tokens.shape, -1), 2, -1)
    relative = (norms / norms.sum(1, keepdims=True))[(z > 0).any(0)]
    assert got["living"] == len(relative)
    np.testing.assert_allclose(got["exclusive"], (relative.max(1) >= 0.9).mean())
    np.testing.assert_allclose(got["shared"], (relative.min(1) >= 0.25).mean())
    assert 0 < got["exclusive"] < 1 and 0 < got["shared"] < 1
    np.testing.assert_allclose(got["effective_sections"], (1 / (relative**2).sum(1)).mean(), rtol=1e-6)
    replaced = {}
    for m, (hook, (normal, mean, scale), out) in enumerate(zip(HOOKS, parts, xhat)):
        nmse = ((normal - out) ** 2).sum() / ((normal - normal.mean((0, 1))) ** 2).sum()
        np.testing.assert_allclose(got[hook]["nmse"], nmse, rtol=1e-6)
        replaced[hook] = out * scale + mean
        alone = losses(lm, tokens, {hook: replaced[hook]}) - losses(lm, tokens, {})
        np.testing.assert_allclose(got[hook]["delta_ce"], alone, atol=1e-6)
        np.testing.assert_allclose(got[hook]["relative_norm_mean"], relative[:, m].mean(), rtol=1e-6)
        assert sum(got[hook]["histogram"]) == len(relative)
    standard = measure("standard", subject)
    np.testing.assert_allclose(standard["delta_ce"], losses(lm, tokens, replaced) - losses(lm, tokens, {}), atol=1e-6)


def test_shares_of_no_latents():
    assert crosscoder.shares(np.zeros((0, 2)), 0.9, 0.5)["living"] == 0
