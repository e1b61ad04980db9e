"""Transcoders trained end to end compared with plain code, on one device and on a mesh; their first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.distributed.mesh import make_mesh, replicate, shardings
from jaxsae.errors import BadInput
from jaxsae.lm.architecture import around, check_order
from jaxsae.lm.divergence import kl
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import capture
from jaxsae.sae.layout import LATENTS, TOKENS
from jaxsae.sae.normalise import normalise
from jaxsae.sae.types import SAE, partition_specs
from jaxsae.training.init_state import make_init
from jaxsae.training.program import make_objective
from tests import configs
from tests.marks import slow
from tests.programs import one_gradient
from tests.sae import dense

IN, OUT = "blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out"
B, T, D, N, K, UNIT = 8, 6, 12, 32, 5, 3.0


@pytest.fixture(scope="module")
def lm():
    """A language model of one block."""
    with jax.enable_x64(True):
        config = GPT2Config(50, T, D, 1, 2, 16)
        params = jax.jit(GPT2(config).init)(jax.random.key(0), jnp.zeros((1, T), jnp.int32))["params"]
        noise = lambda path, a: a + 0.3 * jax.random.normal(jax.random.key(len(str(path))), a.shape, jnp.float64)
        return lms.LM(jax.tree.map_with_path(noise, params), config)


def transcoder(config) -> SAE:
    sae = dense.random_sae(jax.random.key(0), N, D, config.spec(), jnp.float64)
    skip = jax.random.normal(jax.random.key(3), (D, D), jnp.float64)
    return sae.replace(b_in=0.1 * jnp.ones(D), W_skip=0.1 * skip, scale_out=jnp.array([UNIT]))


def by_plain_code(lm, sae, tokens):
    """The loss KL + 0.5 reconstruction of a TopK skip transcoder in the MLP's place, with whole logits and codes."""

    def loss(sae):
        seen, original = capture(lm, tokens, [IN, OUT])
        x = normalise(seen[IN].reshape(B * T, -1), "unit_norm")[0]
        z = (x - sae.b_in) @ sae.W_enc.T + sae.b_enc
        z = jnp.where(dense.top_mask(z, K), jax.nn.relu(z), 0)
        y = z @ sae.W_dec + sae.b_dec + x @ sae.W_skip
        _, changed = capture(lm, tokens, [], {OUT: lambda _: UNIT * y.reshape(B, T, -1)})
        error = 0.7 * ((y - seen[OUT].reshape(B * T, -1) / UNIT) ** 2).mean()
        return kl(original, changed).mean() + 0.5 * error

    return jax.value_and_grad(loss)(sae)


@pytest.mark.parametrize("mesh", [(1, 1), slow((2, 4))], ids=str)
def test_end_to_end_equals_plain_code(x64, lm, mesh):
    config = configs.sae(N, K, skip=True)
    training = configs.training(objective="e2e", reconstruction_coef=0.5, kl_chunk=7)
    sae, tokens = transcoder(config), jax.random.randint(jax.random.key(1), (B, T), 0, 50)
    objective = make_objective([(IN, config)], training, lm.config, OUT)
    gradient, grid = one_gradient(config, training, 1, objective), make_mesh(*mesh)
    put = lambda tree, specs: jax.device_put(tree, shardings(grid, specs))
    with jax.set_mesh(grid):
        run = jax.jit(lambda p, tokens, dead, lm: gradient(p, tokens, dead, (0.7, 0.0, 0.0), lm)[:2])
        args = put(sae, partition_specs(sae)), put(tokens, TOKENS), put(jnp.zeros(N, bool), LATENTS)
        grads, metrics = jax.device_get(run(*args, replicate(lm, grid)))
    want, want_grads = jax.jit(by_plain_code)(lm, sae, tokens)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-10)
    want_grads = want_grads.replace(scale_out=jnp.zeros(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max()), grads, want_grads)
    assert {f"mse/{OUT}", "mse/blocks.0.hook_resid_post"} <= set(metrics)


def test_later_errors_are_downstream_of_the_output(lm):
    training = configs.training(objective="e2e_downstream", downstream_hooks=("blocks.0.hook_resid_mid",))
    with pytest.raises(BadInput, match=f"blocks.0.hook_resid_mid is not downstream of {OUT}"):
        make_objective([(IN, configs.sae(N, K))], training, lm.config, OUT)


def test_places_around_a_hook_point_and_their_order():
    config = GPT2Config(50, T, D, 2, 2, 16)
    assert around(config, OUT) == ("blocks.0.hook_resid_mid", "blocks.0.hook_resid_post")
    assert around(config, "blocks.1.hook_resid_pre") == ("blocks.1.hook_resid_pre",) * 2
    for later in (OUT, "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"):
        check_order(config, IN, later)
    for earlier in (IN, "blocks.0.hook_resid_mid", "blocks.0.hook_attn_out"):
        with pytest.raises(BadInput, match=f"{earlier} is not after {IN}"):
            check_order(config, IN, earlier)


@pytest.mark.parametrize("init", ["tied", slow("orthogonal")])
def test_first_weights(init):
    """Widths of their own, biases in the middle of the data, a unit for the output, and a quiet start."""
    random = np.random.default_rng(0)
    x = random.normal(size=(512, 12)).astype(np.float32) + 2
    y = 30 * (x[:, :8] @ random.normal(size=(8, 7)) + 1).astype(np.float32)
    grid = make_mesh(1, 1)
    config = configs.sae(64, 4, skip=True, init=init)
    with jax.set_mesh(grid):
        state = jax.jit(make_init(config, configs.training()))((x, y))
    sae = state.params
    assert (sae.d, sae.d_out, sae.W_skip.shape) == (12, 7, (12, 7)) and not sae.W_skip.any()
    np.testing.assert_allclose(sae.scale_out, np.median(np.linalg.norm(y, axis=1)), rtol=1e-6)
    y = y / np.asarray(sae.scale_out)
    np.testing.assert_allclose(state.mse_scale, 1 / ((y - y.mean(0)) ** 2).mean(), rtol=1e-5)
    assert sae.b_in.shape == (12,)
    if init == "tied":
        middle = lambda a, at: np.linalg.norm(a - at, axis=1).sum()
        normal = np.asarray(normalise(x, "unit_norm")[0])
        for a, bias in ((normal, np.asarray(sae.b_in)), (y, np.asarray(sae.b_dec))):
            assert middle(a, bias) <= min(middle(a, a.mean(0)), middle(a, np.median(a, 0))) * (1 + 1e-6)
        np.testing.assert_allclose(np.linalg.norm(sae.W_dec, axis=1), 1, rtol=1e-5)
