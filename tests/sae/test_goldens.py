"""More losses and gradients of other libraries' training code in float64, those of `test_activations` aside.

Where a library's formula differs from ours in one term, that term is added here in plain code, or left out.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.sae.normalise import normalise
from jaxsae.sae.types import SAE
from tests import configs
from tests.programs import local_gradient
from tests.sae import dense
from tests.sae.test_activation_functions import compare, config, load, run

SAELENS = ("W_enc", "b_enc", "W_dec", "b_dec")
SPARSIFY = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
OPENAI = ("encoder.weight", "latent_bias", "decoder.weight", "pre_bias")
K_AUX = 12


def arrays(g, names):
    """A golden's parameters in our layout: [n, d] weights."""
    rows = lambda a: a.T if a.ndim == 2 and a.shape[0] == 24 else a
    return tuple(jnp.asarray(rows(g[f"param/{name}"])) for name in names)


def token_by_token(g, names, config, pairs, coefficients, extra=()):
    """Means over tokens of the loss and the gradient of each token alone: for losses that weigh each one differently.

    `pairs` are (x [B, d], y [B, d]), `coefficients` three [B] arrays.
    """
    sae = SAE(*arrays(g, names), config.spec(), {name: jnp.asarray(value) for name, value in extra})
    dead, training = jnp.zeros(sae.n, bool), configs.training(batch_size=1)
    one = lambda pair, weights: local_gradient((1, 1), config, training, K_AUX, sae, pair, dead, weights)[:2]
    alone = [
        jax.device_get(one(tuple(jnp.asarray(a[b : b + 1]) for a in pairs), [c[b] for c in coefficients]))
        for b in range(len(pairs[0]))
    ]
    grads, metrics = jax.tree.map(lambda *parts: np.mean(parts, 0), *alone)
    return grads, metrics


def test_gated_of_saelens(x64, shared):
    g, names = load(shared, "saelens_gated"), ("W_enc", "b_gate", "W_dec", "b_dec")
    extra = (("r_mag", g["param/r_mag"]), ("b_mag", g["param/b_mag"]))
    grads, metrics, _ = run(g, names, config("gated", decoder="free"), (24.0, 0.0, 0.7 * 24), extra)
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/mse_loss"], rtol=1e-12)
    np.testing.assert_allclose(0.7 * 24 * metrics["penalty"], g["loss/l1_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    # Their decoder learns from the auxiliary reconstruction too; in the paper it is frozen there.
    W, b, W_dec, b_dec = arrays(g, names)
    gate = jax.nn.relu((g["x"] - b_dec) @ W.T + b)
    slope = 2 / 32 * (gate @ W_dec + b_dec - g["x"])
    # And from the penalty, which with a frozen decoder would only shrink it.
    shrink = 0.7 * gate.mean(0)[:, None] * W_dec / np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_dec, b_dec = grads.W_dec + gate.T @ slope + shrink, grads.b_dec + slope.sum(0)
    compare(grads.replace(W_dec=W_dec, b_dec=b_dec), g, names)
    for name in ("r_mag", "b_mag"):
        want = g[f"grad/{name}"]
        np.testing.assert_allclose(grads.extra[name], want, atol=1e-11 * np.abs(want).max(), err_msg=name)


def test_jumprelu_with_tanh(x64, shared):
    g = load(shared, "saelens_jumprelu_tanh")
    theta = g["param/threshold"].astype(np.float64)
    c = config("jumprelu", bandwidth=0.5, decoder="free", penalty="tanh")
    grads, metrics, _ = run(g, SAELENS, c, (24.0, 0.0, 0.6 * 24), (("log_threshold", np.log(theta)),))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/mse_loss"], rtol=1e-12)
    np.testing.assert_allclose(0.6 * 24 * metrics["penalty"], g["loss/l0_loss"], rtol=1e-12)
    # They have a loss on the pre-activations of dead latents besides: the others' own arrays do not see it. And their
    # thresholds' gradient goes, with its sign turned, to the pre-activations too: W_enc and b_dec are not comparable.
    # Thresholds are float32.
    living = ~g["dead_mask"]
    thresholds = grads.extra["log_threshold"] / theta
    for ours, theirs in ((grads.W_dec, "W_dec"), (thresholds, "threshold"), (grads.b_enc - thresholds, "b_enc")):
        want = g[f"grad/{theirs}"][living]
        np.testing.assert_allclose(ours[living], want, atol=1e-6 * np.abs(want).max(), err_msg=theirs)


def test_jumprelu_with_a_target_for_each_token(x64, shared):
    g = load(shared, "saelens_jumprelu_quadratic")
    theta = g["param/threshold"].astype(np.float64)
    c = config("jumprelu", bandwidth=0.5, decoder="free", target_l0=5.0)
    # They square what each token's L0 is off, not what the batch's mean is: the same for a batch of one. Theirs is
    # ten times as large at a target of 5.
    weigh = np.full(32, 24.0), np.zeros(32), np.full(32, 0.6 * 10)
    grads, metrics = token_by_token(g, SAELENS, c, (g["x"], g["x"]), weigh, (("log_threshold", np.log(theta)),))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/mse_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    compare(grads, g, SAELENS)
    want = theta * g["grad/threshold"]
    np.testing.assert_allclose(grads.extra["log_threshold"], want, atol=1e-6 * np.abs(want).max())


def test_jumprelu_with_a_target(x64, shared):
    g = load(shared, "dl_jumprelu")
    theta = g["param/threshold"]
    c = config("jumprelu", bandwidth=0.5, target_l0=5.0, subtract_b_dec=False)
    grads, metrics, _ = run(g, SAELENS, c, (24.0, 0.0, 1.0), (("log_threshold", np.log(theta)),))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/l2_loss"], rtol=1e-12)
    # Their L0 is float32.
    np.testing.assert_allclose(metrics["loss"], g["loss/loss"], rtol=1e-9)
    compare(grads, g, SAELENS)
    # They look for values after the jump in the window around the threshold, where those below it are 0.
    z = g["x"] @ g["param/W_enc"] + g["param/b_enc"]
    window = lambda a: ((np.abs(a - theta) < 0.25) / 0.5).sum(0)
    slope = 2 * ((z > theta).sum(1).mean() / 5 - 1) / 5 / 32
    ours = grads.extra["log_threshold"] / theta + slope * (window(z) - window(np.where(z > theta, z, 0)))
    np.testing.assert_allclose(ours, g["grad/threshold"], atol=1e-6)


def signed_auxk(sae, x, xhat, dead):
    """SAELens' AuxK: dead pre-activations without ReLU, squared errors that nothing divides, fewer dead weigh less."""
    z = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    k = min(K_AUX, int(dead.sum()))
    a = jnp.where(dense.top_mask(jnp.where(dead, z, -jnp.inf), k), z, 0)
    return 0.5 * k / K_AUX * ((x - xhat - a @ sae.W_dec) ** 2).sum(1).mean()


@pytest.mark.parametrize(
    "case, family",
    [
        ("saelens_topk_auxk_few_dead_rescale0", {"activation": "topk"}),
        ("saelens_topk_auxk_many_dead_rescale0", {"activation": "topk"}),
        ("saelens_topk_auxk_few_dead_rescale1", {"activation": "topk"}),
        ("saelens_topk_auxk_many_dead_rescale1", {"activation": "topk"}),
        ("saelens_batchtopk_auxk", {"activation": "batch_topk"}),
        ("saelens_matryoshka_auxk", {"activation": "batch_topk", "prefixes": (24, 48, 96)}),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_topk_families_of_saelens(x64, shared, case, family):
    g, prefixes = load(shared, case), len(family.get("prefixes", (96,)))

    def unit(theirs):
        """Multiplying pre-activations by the norms of decoder rows is an encoder so scaled, and a unit decoder."""
        W_enc, b_enc, W_dec, b_dec = theirs
        norm = 1 if case.endswith("rescale0") else jnp.sqrt((W_dec**2).sum(1))
        return W_enc * jnp.reshape(norm, (-1, 1)), b_enc * norm, W_dec / jnp.reshape(norm, (-1, 1)), b_dec

    ours, back = jax.vjp(unit, arrays(g, SAELENS))
    scaled = {**g, **{f"param/{name}": a for name, a in zip(SAELENS, ours)}}
    # They add the prefixes up, we take the mean. Our AuxK is another, so theirs stands in.
    grads, metrics, least = run(scaled, SAELENS, config(**family), (24.0 * prefixes, 0.0, 0.0))
    auxk, more = jax.value_and_grad(signed_auxk)(SAE(*ours, grads.spec), g["x"], g["recon"], g["dead_mask"])
    np.testing.assert_allclose(auxk, g["loss/auxiliary_reconstruction_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"] + auxk, g["loss/total"], rtol=1e-12)
    np.testing.assert_allclose(metrics["reconstruction"], prefixes * g["loss/mse_loss"], rtol=1e-12)
    total = jax.tree.map(jnp.add, grads.replace(extra={}), more)
    (theirs,) = back((total.W_enc, total.b_enc, total.W_dec, total.b_dec))
    compare(SAE(*theirs, grads.spec), g, SAELENS)
    if family["activation"] == "batch_topk":
        # Their threshold moved from 0 by a hundredth of the way.
        np.testing.assert_allclose(0.01 * least, g["buffer_after/topk_threshold"], rtol=1e-12)


@pytest.mark.parametrize("case", ["topk", "auxk_few_dead", "auxk_many_dead"])
def test_topk_of_sparsify(x64, shared, case):
    g = load(shared, f"sparsify_{case}")
    x, dead = g["x"], g.get("dead_mask", np.zeros(96, bool))
    # They divide AuxK by the variance of the input instead of the residual's, and less weight goes to fewer dead.
    spread = lambda a: ((a - a.mean(0)) ** 2).sum()
    k_aux = min(K_AUX, dead.sum())
    auxk = k_aux / K_AUX * spread(x - g["recon"]) / spread(x)
    coefficients = 24 * 32 / spread(x), auxk / 32, 0.0
    grads, metrics, _ = run(g, SPARSIFY, config("topk"), coefficients, k_aux=int(max(1, k_aux)), dead=dead)
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/fvu"], rtol=1e-12)
    np.testing.assert_allclose(auxk * metrics["auxk"], g["loss/auxk"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    # Their own gradient leaves the encoder out; this is the one of their forward pass by autograd.
    compare(grads, g, SPARSIFY, prefix="full_grad")


def test_relu_of_openai(x64, shared):
    g = load(shared, "openai_relu_l1")
    x, weight = g["x"], float(g["loss/l1_weight"])
    # Every token's error is divided by its mean square, its L1 by its norm.
    weigh = 1 / (x**2).mean(1), np.zeros(32), 24 * weight / np.linalg.norm(x, axis=1)
    grads, metrics = token_by_token(g, OPENAI, config("relu"), (x, x), weigh)
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/nmse"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    compare(grads, g, OPENAI)


def test_topk_of_openai_after_layer_norm(x64, shared):
    g = load(shared, "openai_topk_nmse")
    raw = g["x"]
    x, mean, scale = normalise(jnp.asarray(raw), "ln_std")
    # Held against the input in its own units: the way back has no 1e-5, so what goes in is not quite what should come
    # out.
    y = (raw - mean[:, None]) / scale[:, None]
    weigh = scale**2 / (raw**2).mean(1), np.zeros(32), np.zeros(32)
    grads, metrics = token_by_token(g, OPENAI, config("topk"), (x, y), weigh)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    compare(grads, g, OPENAI)
