"""End-to-end objectives: values and gradients against their authors' code in float64, over meshes and in pieces."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae import lm as lms
from jaxsae.distributed.mesh import make_mesh, shardings
from jaxsae.errors import BadInput
from jaxsae.lm.divergence import kl
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import capture
from jaxsae.lm.place import on_mesh
from jaxsae.sae import activation_functions
from jaxsae.sae.activation_functions import REGISTRY
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.layout import LATENTS, TOKENS
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.types import SAE, partition_specs
from jaxsae.training.config import TrainingConfig
from jaxsae.training.optimizer import lr_factor
from jaxsae.training.program import make_objective
from tests import configs
from tests.marks import slow
from tests.programs import one_gradient
from tests.sae import dense

HOOK = "blocks.1.hook_resid_pre"


def gradients(lm, sae, config, training, tokens, mse_scale=1.0, sparsity=0.0, mesh=(1, 1), hook=HOOK, shard=False):
    """Gradient, metrics and firing counts of token ids [b, T], on the host."""
    gradient = one_gradient(config, training, 8, make_objective([(hook, config)], training, lm.config))
    mesh = make_mesh(*mesh)
    put = lambda tree, specs: jax.device_put(tree, shardings(mesh, specs))
    with jax.set_mesh(mesh):
        weights = mse_scale, training.auxk_weight(config.activation), sparsity
        run = jax.jit(lambda p, tokens, dead, lm: gradient(p, tokens, dead, weights, lm)[:3])
        args = put(sae, partition_specs(sae)), put(tokens, TOKENS), put(jnp.arange(sae.n) % 4 == 0, LATENTS)
        return jax.device_get(run(*args, on_mesh(jax.tree.map(np.asarray, lm), mesh, "float64", shard)))


def golden(shared, name):
    g = dict(np.load(shared(f"fixtures/peers/train/{name}") / "golden.npz"))
    lm = lms.process_weights(lms.load(str(shared("fixtures/peers/gpt2_tiny/hf")), dtype=jnp.float64))
    return g, lm


def theirs(g, place="blocks-1-hook_resid_pre", of="param"):
    names = ("encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias")
    W, b, D, c = (g[f"{of}/{place}.{name}"] for name in names)
    return W, b, D.T, c


def config(**more):
    return configs.sae(
        **{
            "n": 80,
            "k": 32,
            "activation": "relu",
            "normalise": "none",
            "decoder": "normalised",
            "subtract_b_dec": False,
            **more,
        }
    )


CASES = {
    "e2e_e2e": (config(), {"objective": "e2e"}, 1.5),
    "e2e_e2e_downstream": (
        config(),
        {"objective": "e2e_downstream", "downstream_hooks": ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post")},
        1.5,
    ),
    "e2e_e2e_p_norm": (config(penalty="lp", exponent=0.5), {"objective": "e2e", "reconstruction_coef": 0.7}, 1.5),
}


@pytest.mark.parametrize("name", CASES)
def test_their_losses_and_gradients(x64, shared, name):
    (config, training, sparsity), (g, lm) = CASES[name], golden(shared, name)
    sae = SAE(*map(jnp.asarray, theirs(g)), config.spec())
    grads, metrics, _ = gradients(
        lm, sae, config, configs.training(mse_scale="none", **training), g["tokens"].astype(int), 1.0, sparsity
    )
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-10)
    np.testing.assert_allclose(metrics["kl"], g["term/logits_kl"], rtol=1e-10)
    np.testing.assert_allclose(metrics["penalty"], g[f"term/sparsity/{HOOK}"], rtol=1e-10)
    for place in ("blocks.2.hook_resid_pre", "blocks.2.hook_resid_post"):
        if f"term/in_to_orig/{place}" in g:
            np.testing.assert_allclose(metrics[f"mse/{place}"], g[f"term/in_to_orig/{place}"], rtol=1e-10)
    np.testing.assert_allclose(metrics["l0"], (g[f"new/{HOOK}/c"] != 0).sum(-1).mean())
    for ours, want in zip((grads.W_enc, grads.b_enc, grads.W_dec, grads.b_dec), theirs(g, of="grad")):
        np.testing.assert_allclose(ours, want, atol=1e-9 * np.abs(want).max())
    size = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    np.testing.assert_allclose(size, g["grad_norm"], rtol=1e-9)


def test_the_local_loss_of_the_same_authors(x64, shared):
    g, lm = golden(shared, "e2e_local")
    c = config()
    sae = SAE(*map(jnp.asarray, theirs(g)), c.spec())
    x = jnp.asarray(g[f"orig/{HOOK}"].reshape(-1, 20))
    np.testing.assert_allclose(lm.prefix(g["tokens"].astype(int), HOOK).reshape(-1, 20), x, atol=1e-10)
    mesh = make_mesh(1, 1)
    with jax.set_mesh(mesh):
        gradient = one_gradient(c, TrainingConfig())
        grads, metrics, *_ = gradient(sae, (x,), jnp.zeros(80, bool), (1.0, 0.0, 4.0))
    np.testing.assert_allclose(metrics["loss"], g["loss/total"], rtol=1e-12)
    for ours, want in zip((grads.W_enc, grads.b_enc, grads.W_dec, grads.b_dec), theirs(g, of="grad")):
        np.testing.assert_allclose(ours, want, atol=1e-11 * np.abs(want).max())


@pytest.fixture(scope="module")
def random_lm(tiny_lm):
    with jax.enable_x64(True):
        return lms.load(str(tiny_lm), dtype=jnp.float64)


B, T, N = 8, 6, 32
HOOK0 = "blocks.0.hook_resid_mid"


def problem(c, lm):
    dtype = lm.params["wte"]["embedding"].dtype
    sae = dense.random_sae(jax.random.key(0), c.n, lm.config.d_model, c.spec(), dtype)
    extra = activation_functions.get(c.activation).init(jax.random.key(2), c.n, dtype, c.options().own)
    sae = sae.replace(extra={name: a + 0.1 for name, a in extra.items()})
    return sae, jax.random.randint(jax.random.key(1), (B, T), 0, lm.config.vocab_size)


def plain(lm, sae, c, tokens, objective, hook=HOOK0):
    """The same loss as plain code: whole logits, dense codes."""
    later = ["blocks.1.hook_resid_pre"]

    def loss(sae):
        x = lm.prefix(tokens, hook).reshape(B * T, -1)
        normal, mean, scale = normalise(x, c.normalise)
        xhat = dense.reconstruct(sae, dense.code(sae, normal))
        raw = denormalise(xhat, mean, scale).reshape(B, T, -1)
        before, original = capture(lm, tokens, later)
        after, substituted = capture(lm, tokens, later, {hook: lambda _: raw})
        K, R = kl(original, substituted).mean(), 0.7 * ((xhat - normal) ** 2).mean()
        if objective == "e2e":
            return K
        if objective == "finetune_kl":
            return (jax.lax.stop_gradient(R / (K + 1e-8)) * K + R) / 2
        a, b = after[later[0]], before[later[0]]
        return 0.5 * K + 2.5 * ((a - b) ** 2).mean() / ((b - b.mean((0, 1))) ** 2).mean()

    return jax.value_and_grad(loss)(sae)


OBJECTIVES = ("e2e", "e2e_downstream", "finetune_kl")


# On (4, 2) the language model is split over all 8 devices, and gathered block by block.
WHERE = [*((objective, (1, 1)) for objective in OBJECTIVES), ("e2e_downstream", (4, 2))]
WHERE += [slow("e2e", (8, 1)), slow("finetune_kl", (2, 4))]


@pytest.mark.parametrize(("objective", "mesh"), WHERE)
def test_plain_code_has_the_same_value_and_gradient(x64, random_lm, objective, mesh):
    c = SAEConfig(N, 5, normalise="none" if objective == "e2e" else "unit_norm")
    sae, tokens = problem(c, random_lm)
    # Chunks that do not divide the tokens.
    training = configs.training(objective=objective, kl_chunk=7)
    shard = mesh != (1, 1)
    grads, metrics, _ = gradients(random_lm, sae, c, training, tokens, 0.7, mesh=mesh, hook=HOOK0, shard=shard)
    want, want_grads = plain(random_lm, sae, c, tokens, objective)
    np.testing.assert_allclose(metrics["loss"], want, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10 * np.abs(b).max()), grads, want_grads)
    # Every later place is logged, trained or not; the finetuned loss has the value of the error.
    assert {"mse/blocks.0.hook_resid_mid", "mse/blocks.1.hook_resid_post", "kl"} <= set(metrics)
    if objective == "finetune_kl":
        np.testing.assert_allclose(metrics["loss"], metrics["reconstruction"], rtol=1e-6)


@pytest.fixture(scope="module")
def half_block():
    """A language model of one block, of which an MLP is behind the hook point: it compiles fast."""
    with jax.enable_x64(True):
        config = GPT2Config(50, T, 12, 1, 2, 16)
        params = jax.jit(GPT2(config).init)(jax.random.key(0), jnp.zeros((1, T), jnp.int32))["params"]
        noise = lambda path, a: a + 0.3 * jax.random.normal(jax.random.key(len(str(path))), a.shape, jnp.float64)
        return lms.LM(jax.tree.map_with_path(noise, params), config)


def results(lm, c, objective, mesh=(1, 1), micro_batches=1, **more):
    sae, tokens = problem(c, lm)
    training = configs.training(objective=objective, micro_batches=micro_batches, batch_size=B * T, **more)
    return gradients(lm, sae, c, training, tokens, 0.7, 0.3, mesh, HOOK0)


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), a, b)


# What families differ in is inside the autoencoder, and is tested there on meshes; here one of each kind of support.
KINDS = ("topk", "batch_topk", "gated", "relu")
ALL = [family if family in KINDS else pytest.param(family, marks=pytest.mark.slow) for family in REGISTRY]


@pytest.mark.parametrize("family", ALL)
def test_neither_meshes_nor_micro_batches_show(x64, half_block, family):
    wide = {"bandwidth": 1.0} if family == "jumprelu" else {}
    c = configs.sae(N, 5, activation=family, prefixes=(8, N) if family == "relu" else (), **wide)
    run = partial(results, half_block, c, "e2e_downstream")
    # On (4, 2) there are fewer contexts in a micro-batch than devices: the language model is repeated over `latent`.
    close(run((4, 2), 1 if family == "batch_topk" else 2), run())


@pytest.mark.parametrize("family", REGISTRY)
def test_every_family_trains_end_to_end(x64, half_block, family):
    c = configs.sae(N, 5, activation=family, **({"bandwidth": 1.0} if family == "jumprelu" else {}))
    grads, metrics, fired = results(half_block, c, "e2e")
    size = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
    assert size > 0 and np.isfinite(size) and metrics["kl"] > 0 and fired.any()


def test_the_balance_of_a_finetune_is_that_of_the_whole_batch(x64, half_block):
    run = partial(results, half_block, SAEConfig(N, 5), "finetune_kl")
    close(run((2, 2), 2), run())


@pytest.mark.slow
def test_auxk_works_end_to_end_where_it_is_asked_for(x64, half_block):
    run = partial(results, half_block, SAEConfig(N, 5), "e2e", auxk_coef=0.1)
    one = run()
    close(run((2, 2), 4, remat=True), one)
    assert one[1]["auxk"] > 0 and results(half_block, SAEConfig(N, 5), "e2e")[1]["auxk"] == 0


def terms_of(lm, name, share):
    """terms(parameters) of an objective, for `share` of the activation as its own reconstruction."""
    tokens = jax.random.randint(jax.random.key(1), (B, T), 0, lm.config.vocab_size)
    objective = make_objective([(HOOK0, SAEConfig(N, 5))], configs.training(objective=name), lm.config)

    def terms(params):
        model = lms.LM(params, lm.config)
        batch = objective.prepare(tokens, model)
        return objective.terms(batch.x * share, batch, model, 1.0, objective.variances(batch))

    return terms, objective


def test_the_language_model_gets_no_gradient(x64, half_block):
    terms, objective = terms_of(half_block, "e2e_downstream", 0.9)
    loss = lambda params: objective.loss(terms(params), None)
    with jax.set_mesh(make_mesh(1, 1)):
        value, grads = jax.jit(jax.value_and_grad(loss))(half_block.params)
    assert value > 0
    for leaf in jax.tree.leaves(grads):
        np.testing.assert_array_equal(leaf, 0)


def test_a_perfect_reconstruction_costs_nothing(x64, half_block):
    with jax.set_mesh(make_mesh(1, 1)):
        terms = jax.jit(terms_of(half_block, "e2e", 1.0)[0])(half_block.params)
    for name, value in terms.items():
        np.testing.assert_allclose(value, 0, atol=1e-12, err_msg=name)


def test_the_compiled_step_has_no_whole_logits(random_lm):
    b, T, V = 16, 16, random_lm.config.vocab_size
    lm = jax.tree.map(lambda a: a.astype(jnp.float32), random_lm)
    c, temporary = SAEConfig(N, 5), {}
    with jax.set_mesh(make_mesh(1, 1)):
        sae = problem(c, lm)[0]
        for chunk in (32, b * T):
            training = configs.training(objective="e2e", kl_chunk=chunk)
            gradient = one_gradient(c, training, 8, make_objective([(HOOK0, c)], training, lm.config))
            args = sae, jnp.zeros((b, T), jnp.int32), jnp.zeros(N, bool), (1.0, 0.0, 0.0), lm
            compiled = jax.jit(gradient).lower(*args).compile()
            whole = [f"[{b},{T},{V}]", f"[{b * T},{V}]", f"[1,{b * T},{V}]"]
            assert any(shape in compiled.as_text() for shape in whole) == (chunk == b * T)
            temporary[chunk] = compiled.memory_analysis().temp_size_in_bytes
    assert temporary[b * T] - temporary[32] > 4 * b * T * V


def test_golden_numbers_of_the_divergence(x64):
    b, t, v = np.ogrid[:2, :3, :5]
    original, new = np.sin(b + 2 * t + 3 * v), 1.5 * np.cos(2 * b + t + 0.5 * v)
    assert float(kl(original, new).mean()) == pytest.approx(0.3587856857016736, rel=1e-12)
    assert float(kl(new, original).mean()) == pytest.approx(0.36226183816880236, rel=1e-12)


def test_golden_numbers_of_the_local_loss(x64):
    i, j = np.ogrid[:6, :4]
    k = np.arange(4)
    b, t = np.ogrid[:2, :3]
    x = np.sin(0.7 * (12 * b[..., None] + 4 * t[..., None] + k)) * (1 + 0.5 * k)
    c = config(n=6, k=1)
    decoder = np.cos(2 + 6 * np.arange(4)[:, None] + np.arange(6)).T
    sae = SAE(np.sin(1 + 4 * i + j), 0.1 * np.cos(np.arange(6)), decoder, 0.05 * (np.arange(4) + 1), c.spec())
    sae, x = jax.tree.map(jnp.asarray, (sae, x.reshape(-1, 4)))
    with jax.set_mesh(make_mesh(1, 1)):
        gradient = one_gradient(c, TrainingConfig())
        grads, metrics, *_ = gradient(sae, (x,), jnp.zeros(6, bool), (1.0, 0.0, 4.0))
    want = {"penalty": 1.8139168205504224, "reconstruction": 4.128291932850345, "loss": 11.383959215052034}
    for name, value in (want | {"l0": 2.8333333333333335}).items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-12), name
    np.testing.assert_allclose(grads.W_enc[0], [0.98785, 0.48837, -0.97963, -2.68711], atol=1e-5)
    np.testing.assert_allclose(grads.b_enc, [1.38026, 0.91174, -0.18271, 0.27308, 0.13545, 0.96531], atol=1e-5)
    np.testing.assert_allclose(grads.W_dec[0], [0.90744, 0.32102, 0.43081, 0.89548], atol=1e-5)
    np.testing.assert_allclose(grads.b_dec, [-0.24471, -0.17426, -0.05123, 0.15429], atol=1e-5)
    np.testing.assert_allclose((grads.W_dec * sae.W_dec).sum(1), 0, atol=1e-12)
    norm = lambda a: float(jnp.sqrt((a**2).sum()))
    assert norm(grads.W_enc) == pytest.approx(5.12570, abs=1e-5)
    assert norm(grads.W_dec) == pytest.approx(3.02509, abs=1e-5)


def test_golden_numbers_of_the_learning_rate(x64):
    training = configs.training(
        tokens=25_000 * 16, batch_size=16, lr=5e-4, schedule="cosine", warmup=20_000, lr_end=0.1
    )
    factor = lr_factor(training)
    want = {0: 0.0, 1: 4e-7, 625: 2.5e-4, 1249: 4.996e-4, 1250: 5e-4, 13125: 2.75e-4, 25000: 5e-5}
    for step, lr in want.items():
        assert 5e-4 * float(factor(jnp.asarray(step))) == pytest.approx(lr, rel=1e-5), step


TWICE = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre")


@pytest.mark.parametrize(
    "training, hook, said",
    [
        ({"objective": "e2e"}, "blocks.0.hook_mlp_out", "residual stream"),
        ({"objective": "e2e_downstream", "downstream_hooks": ("blocks.0.hook_resid_pre",)}, HOOK0, "not downstream"),
        ({"objective": "e2e_downstream", "downstream_hooks": ("blocks.1.hook_mlp_out",)}, HOOK0, "residual stream"),
        ({"objective": "e2e_downstream"}, "blocks.1.hook_resid_post", "nothing is downstream"),
        (
            {
                "objective": "e2e_downstream",
                "downstream_hooks": ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"),
            },
            HOOK0,
            "one place",
        ),
    ],
)
def test_what_no_objective_can_be_compared_with(random_lm, training, hook, said):
    with pytest.raises(BadInput, match=said):
        make_objective([(hook, SAEConfig(N, 5))], configs.training(**training), random_lm.config)
    with pytest.raises(BadInput, match="language model"):
        make_objective([("", SAEConfig(N, 5))], configs.training(objective="e2e"))
