"""Every activation function: losses and gradients against other libraries' training code in float64, and its pieces
against plain code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

import jaxsae
from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.flags import NoFlags
from jaxsae.interop.native import save
from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions import REGISTRY, batch_topk
from jaxsae.sae.activation_functions.interface import Preacts
from jaxsae.sae.activation_functions.jumprelu import active, jump
from jaxsae.sae.activation_functions.options import Options, SparsityConfig
from jaxsae.sae.activation_functions.penalties import LP
from jaxsae.sae.activation_functions.prolu import prolu_relu, prolu_ste
from jaxsae.sae.init import directions, orthogonal, torch_linear_init
from jaxsae.sae.layout import TOKENS
from jaxsae.sae.normalise import normalise
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from jaxsae.training.program import make_program
from tests import configs
from tests.marks import slow
from tests.programs import local_gradient, one_gradient
from tests.sae import dense

K = 5


def run(g, names, config, coefficients, extra=(), k_aux=12, dead=None):
    """Our metrics and gradient for a golden's parameters; `names` are those of W_enc, b_enc, W_dec, b_dec."""
    turned = lambda name: (
        g[f"param/{name}"].T
        if g[f"param/{name}"].shape[0] == 24 and g[f"param/{name}"].ndim == 2
        else g[f"param/{name}"]
    )
    arrays = [jnp.asarray(turned(name)) for name in names]
    x = jnp.asarray(g["x"])
    sae = SAE(*arrays, config.spec(), {name: jnp.asarray(value) for name, value in extra})
    dead = jnp.zeros(sae.n, bool) if dead is None else jnp.asarray(dead)
    training = configs.training(batch_size=len(x))
    result = local_gradient((1, 1), config, training, k_aux, sae, (x,), dead, coefficients)
    grads, metrics, _, min_active = result
    return jax.device_get(grads), {name: float(value) for name, value in metrics.items()}, min_active


def compare(grads, g, names, prefix="grad", atol=1e-11):
    for ours, theirs in zip((grads.W_enc, grads.b_enc, grads.W_dec, grads.b_dec), names):
        want = g[f"{prefix}/{theirs}"]
        want = want.T if want.ndim == 2 and want.shape[0] == 24 else want
        np.testing.assert_allclose(ours, want, atol=atol * max(1, np.abs(want).max()), err_msg=theirs)


def load(shared, name):
    return dict(np.load(shared(f"fixtures/peers/train/{name}") / "golden.npz"))


def config(activation, **more):
    return configs.sae(**{"n": 96, "k": K, "activation": activation, "normalise": "none", **more})


NN = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec")


def test_relu_with_l1(x64, shared):
    g = load(shared, "dl_standard")
    names = ("encoder.weight", "encoder.bias", "decoder.weight", "bias")
    grads, metrics, _ = run(g, names, config("relu"), (24.0, 0.0, 0.1 * 24))
    np.testing.assert_allclose(metrics["loss"], g["loss/loss"], rtol=1e-12)
    np.testing.assert_allclose(24 * metrics["penalty"], g["loss/sparsity_loss"], rtol=1e-12)
    compare(grads, g, names)


def test_relu_with_l1_weighted_by_decoder_norms(x64, shared):
    g, names = load(shared, "saelens_standard"), ("W_enc", "b_enc", "W_dec", "b_dec")
    grads, metrics, _ = run(g, names, config("relu", decoder="free"), (24.0, 0.0, 0.7 * 24))
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    compare(grads, g, names)


def test_gated(x64, shared):
    g = load(shared, "dl_gated")
    names = ("encoder.weight", "gate_bias", "decoder.weight", "decoder_bias")
    extra = (("r_mag", g["param/r_mag"]), ("b_mag", g["param/mag_bias"]))
    grads, metrics, _ = run(g, names, config("gated"), (24.0, 0.0, 0.1 * 24), extra)
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/mse_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/loss"], rtol=1e-12)
    compare(grads, g, names)
    np.testing.assert_allclose(grads.extra["r_mag"], g["grad/r_mag"], atol=1e-9)
    np.testing.assert_allclose(grads.extra["b_mag"], g["grad/mag_bias"], atol=1e-9)


def test_jumprelu(x64, shared):
    g, names = load(shared, "saelens_jumprelu_step"), ("W_enc", "b_enc", "W_dec", "b_dec")
    theta = g["param/threshold"].astype(np.float64)
    c = config("jumprelu", bandwidth=0.5, decoder="free")
    grads, metrics, _ = run(g, names, c, (24.0, 0.0, 0.6 * 24), (("log_threshold", np.log(theta)),))
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-6)
    compare(grads, g, names, atol=1e-6)
    np.testing.assert_allclose(grads.extra["log_threshold"], theta * g["grad/threshold"], rtol=1e-5, atol=1e-5)


def test_batch_topk(x64, shared):
    g = load(shared, "dl_batchtopk_auxk")
    grads, metrics, least = run(g, NN, config("batch_topk"), (24.0, 1 / 32, 0.0), dead=g["dead_mask_used"])
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/l2_loss"], rtol=1e-12)
    # Their AuxK is float32.
    np.testing.assert_allclose(metrics["auxk"], g["loss/auxk_loss"], rtol=1e-6)
    compare(grads, g, NN, atol=1e-6)
    assert metrics["l0"] == K
    assert least == g["acts"][g["acts"] > 0].min()


def test_the_least_kept_value_as_threshold_is_what_training_did_but_for_that_one(x64, shared):
    g = load(shared, "dl_batchtopk_auxk")
    *_, least = run(g, NN, config("batch_topk"), (24.0, 0.0, 0.0))
    arrays = [jnp.asarray(g[f"param/{name}"].T if name == "decoder.weight" else g[f"param/{name}"]) for name in NN]
    sae = SAE(*arrays, config("batch_topk").spec(), {"threshold": jnp.full(96, least)})
    z = np.asarray(jaxsae.dense(jaxsae.encode(sae, jnp.asarray(g["x"])), 96))
    differ = z != 0
    differ ^= g["acts"] > 0
    assert differ.sum() == 1 and g["acts"][differ] == least
    np.testing.assert_allclose(z[~differ], g["acts"][~differ], atol=1e-12)


def test_matryoshka(x64, shared):
    g, names = load(shared, "dl_matryoshka_auxk"), ("W_enc", "b_enc", "W_dec", "b_dec")
    # They weigh every prefix by a third and then take the mean.
    c = config("batch_topk", prefixes=(24, 48, 96))
    grads, metrics, _ = run(g, names, c, (24 / 3, 1 / 32, 0.0), dead=g["dead_mask_used"])
    np.testing.assert_allclose(metrics["loss"] - metrics["auxk"] / 32, g["loss/l2_loss"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/loss"], rtol=1e-8)
    compare(grads, g, names, atol=1e-6)


def test_multi_topk(x64, shared):
    g, names = load(shared, "sparsify_multi_topk"), ("encoder.weight", "encoder.bias", "W_dec", "b_dec")
    x = g["x"].astype(np.float64)
    grads, metrics, _ = run(g, names, config("multi_topk"), (1 / ((x - x.mean(0)) ** 2).mean(), 0.0, 0.0))
    np.testing.assert_allclose(metrics["reconstruction"], g["loss/fvu"], rtol=1e-12)
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    # Their own gradient leaves the encoder out; this is the one of their forward pass by autograd.
    compare(grads, g, names, prefix="full_grad")


def test_gradients_of_thresholds():
    """The numbers of the paper's definitions at theta 1, bandwidth 0.1."""
    slopes = lambda f, z: [
        float(s) for s in jax.grad(lambda z, t: f(z, t, 0.1), (0, 1))(jnp.asarray(z), jnp.asarray(1.0))
    ]
    assert float(jump(1.02, 1.0, 0.1)) == pytest.approx(1.02) and float(jump(0.9, 1.0, 0.1)) == 0
    assert slopes(jump, 1.02) == pytest.approx([1, -10])
    assert slopes(jump, 0.9) == [0, 0]
    assert slopes(active, 1.02) == pytest.approx([0, -10])
    assert slopes(active, 0.97) == pytest.approx([0, -10])


def test_prolu_surrogates():
    m, b = jnp.array([1.0, 1.0, -1.0, 0.5]), jnp.array([0.5, -2.0, 3.0, -0.2])
    for function, slopes in ((prolu_relu, ([1, 0, 0, 1], [1, 0, 0, 1])), (prolu_ste, ([2, 0, 0, 1.5], [1, 0, 0, 0.5]))):
        np.testing.assert_array_equal(function(m, b), [1, 0, 0, 0.5])
        for ours, want in zip(jax.grad(lambda m, b, f=function: f(m, b).sum(), (0, 1))(m, b), slopes):
            np.testing.assert_allclose(ours, want)


def test_the_p_norm_keeps_its_root_and_gives_zeros_no_gradient():
    v = jnp.array([[0.0, 4.0, 9.0]])
    options = Options(SparsityConfig(exponent=0.5))
    value = lambda v: LP.finish(LP.each(v, Preacts(v, 0, {}, 1), options).sum(1), options).sum()
    assert float(value(v)) == pytest.approx(25)
    np.testing.assert_allclose(jax.grad(value)(v), [[0, 5 / 2, 5 / 3]], rtol=1e-6)


def any_family(family, **more):
    """A configuration of a family, with gradients that reach everything."""
    wide = {"bandwidth": 1.0} if family == "jumprelu" else {}
    return config(family, n=64, decoder="normalised" if family == "relu" else "unit_norm", **wide, **more)


def noisy(c, dtype=jnp.float64):
    """A random autoencoder with other extra arrays than its family begins with."""
    sae = dense.random_sae(jax.random.key(0), c.n, 12, c.spec(), dtype)
    extra = activation_functions.get(c.activation).init(jax.random.key(1), c.n, dtype, c.options().own)
    noise = lambda i: 0.3 * jax.random.normal(jax.random.key(i), (c.n,), dtype)
    return sae.replace(extra={name: noise(i) for i, name in enumerate(extra)})


def gradient_on(mesh, c, micro_batches=1):
    x, dead = jax.random.normal(jax.random.key(1), (32, 12), jnp.float64), jnp.arange(c.n) % 4 == 0
    training = configs.training(batch_size=32, micro_batches=micro_batches)
    return jax.device_get(local_gradient(mesh, c, training, 8, noisy(c), (x,), dead, (0.7, 1 / 32, 0.3)))


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), a, b)


# (8, 1) has no axis that (2, 4) has not; TopK is tested there in test_step.
@pytest.mark.parametrize("family", REGISTRY)
def test_meshes_do_not_show(x64, family):
    c = any_family(family)
    close(gradient_on((2, 4), c), gradient_on((1, 1), c))


@pytest.mark.parametrize("family", ["multi_topk", slow("batch_topk"), slow("relu")])
def test_meshes_do_not_show_with_prefixes(x64, family):
    c = any_family(family, prefixes=(16, 32, 64))
    close(gradient_on((2, 4), c), gradient_on((1, 1), c))


@pytest.mark.parametrize("family", REGISTRY)
def test_a_saved_autoencoder_encodes_as_training_did(tmp_path, family):
    c = any_family(family, prefixes=(16, 64))
    sae = noisy(c, jnp.float32)
    # BatchTopK has one threshold for all latents.
    extra = {name: jnp.full(64, 0.3) if name == "threshold" else value for name, value in sae.extra.items()}
    x = jax.random.normal(jax.random.key(1), (3, 5, 12))
    save(sae.replace(extra=extra), tmp_path, {})
    sae = jaxsae.load(tmp_path)
    assert sae.spec == c.spec()
    code = jaxsae.encode(sae, x)
    with jax.set_mesh(make_mesh(1, 1)):
        flat = x.reshape(-1, 12)
        out = autoencode(sae, flat, choose(sae, flat))
    np.testing.assert_allclose(jaxsae.decode(sae, code).reshape(-1, 12), out.xhat, atol=1e-5)
    z = jaxsae.dense(code, 64)
    np.testing.assert_array_equal((z > 0).sum(-1).reshape(-1), out.l0)
    # No slot too many: k of them, or as many as the token with the most latents uses.
    assert code.values.shape[-1] == (K if family in ("topk", "multi_topk") else int(out.l0.max()))


@pytest.mark.parametrize("family", ["multi_topk", "gated", slow("relu")])
def test_micro_batches_do_not_show(x64, family):
    c = any_family(family)
    close(gradient_on((2, 4), c, 4), gradient_on((2, 4), c))


def test_what_only_a_whole_batch_knows_is_not_computed_in_micro_batches():
    for c in (config("batch_topk"), config("jumprelu", target_l0=4.0)):
        with pytest.raises(BadInput, match="whole batch"):
            one_gradient(c, configs.training(micro_batches=2))


def test_the_threshold_of_batch_topk_is_the_mean_of_what_it_saw_of_late():
    update = jax.jit(batch_topk.TYPE.update_extra)

    def after(values, extra=None, start=0):
        extra = {"threshold": jnp.full(3, 7.0)} if extra is None else extra
        for step, value in enumerate(values, start):
            extra = update(extra, jnp.asarray(value), jnp.asarray(step))
        return extra

    first = after([2.0])
    np.testing.assert_allclose(first["threshold"], 2.0, rtol=1e-6, err_msg="not mixed with what it began with")
    np.testing.assert_allclose(after([5.0] * 40)["threshold"], 5.0, rtol=1e-6)
    # Nothing was active.
    np.testing.assert_allclose(after([np.inf], first, 1)["threshold"], 2.0, rtol=1e-6)
    # What an untrained autoencoder kept is forgotten: of the first fifth of a run (1/5)^10 is left.
    np.testing.assert_allclose(after([9.0] * 80 + [3.0] * 320)["threshold"], 3.0, rtol=1e-4)


class Planted:
    """Tokens of 24 dimensions, sums of a few of 48 directions."""

    directions = np.random.default_rng(0).normal(size=(48, 24))

    def batch(self, seed, size=512):
        draw = np.random.default_rng(seed)
        shape = (size, 48)
        amounts = draw.exponential(size=shape) * (draw.random(shape) < 0.1)
        return jnp.asarray(amounts @ self.directions + 1, jnp.float32)

    def sample(self, rows):
        return self.batch(0, rows)


def l0_of(sae, x, mesh):
    with jax.set_mesh(mesh):
        x = normalise(jax.device_put(x, NamedSharding(mesh, TOKENS)), sae.spec.normalise)[0]
        return float(autoencode(sae, x, choose(sae, x)).l0.mean())


@pytest.mark.parametrize("init", ["tied", "orthogonal"])
def test_an_autoencoder_that_is_steered_starts_at_its_l0(init):
    c = configs.sae(96, 6, activation="jumprelu", target_l0=6.0, init=init)
    states = {}
    for shape in ((1, 1), (2, 4)):
        mesh = make_mesh(*shape)
        sae = states[shape] = make_program(c, configs.training(seed=3), 24).first_state(Planted(), mesh).params
        assert l0_of(sae, Planted().batch(1, 2048), mesh) == pytest.approx(6, rel=0.05)
    one, other = (jax.device_get(sae) for sae in states.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)
    if init == "tied":
        z = directions(jax.random.key(1), 512, 24) @ one.W_enc.T
        z = np.where(z > np.exp(one.extra["log_threshold"]), z, 0)
        norms = np.linalg.norm(z @ one.W_dec, axis=1)
        assert norms.mean() == pytest.approx(1, rel=0.05), "unit vectors come back with norm 1, by so few latents"


@pytest.mark.parametrize("family", [slow("batch_topk"), "jumprelu"])
def test_a_short_run_ends_at_the_l0_that_was_asked_for(family):
    """As it is saved, on other tokens: BatchTopK by its threshold, JumpReLU by its controller."""
    n, k, steps = 96, 6, 300
    c = configs.sae(n, k, activation=family, target_l0=float(k) if family == "jumprelu" else None)
    program, mesh = make_program(c, configs.training(tokens=512 * steps, batch_size=512, lr=3e-3), 24), make_mesh(1, 1)
    state = program.first_state(Planted(), mesh)
    with jax.set_mesh(mesh):
        for i in range(steps):
            batch = jax.device_put(Planted().batch(i), NamedSharding(mesh, TOKENS))
            state, metrics = program.step(state, (batch,), program.hyper)
    assert float(metrics["l0"]) == pytest.approx(k, rel=0.1)
    assert l0_of(state.params, Planted().batch(10**6), mesh) == pytest.approx(k, rel=0.1)


def test_the_decoder_of_the_end_to_end_paper_is_a_tight_frame():
    W = orthogonal(jax.random.key(0), 96, 12)
    np.testing.assert_allclose(W.T @ W, np.eye(12), atol=1e-5)
    W = orthogonal(jax.random.key(0), 5, 12)
    np.testing.assert_allclose(W @ W.T, np.eye(5), atol=1e-5)
    sae = torch_linear_init(jax.random.key(0), config("relu", decoder="normalised").spec(), 96, 12, NoFlags())
    assert float(jnp.abs(sae.W_enc).max()) <= 12**-0.5 and float(jnp.abs(sae.b_dec).max()) <= 96**-0.5
