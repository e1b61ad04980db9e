"""Explanations of an autoencoder's latents, and what they are worth, against plain loops over tokens and latents."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsae
from jaxsae.evals import EvaluationConfigs, explanations, measure, n2g
from jaxsae.evals.explaining import token_strings
from jaxsae.evals.ngrams import Bigrams
from jaxsae.sae.normalise import normalise
from tests.evals.subjects import MESHES, on_text, random_sae, two_layers
from tests.evals.test_patterns import plain_predict, plain_search
from tests.lm import tiny

HOOK, CONTEXTS, T, N = "blocks.0.hook_resid_post", 12, 8, 16


class Letters:
    """A tokenizer of the tiny model: every id is a character."""

    end_of_text, name = 100, "letters"

    def __init__(self, bos=None):
        self.bos, self.backend = bos, self

    def decode(self, ids):
        return "".join(chr(0x100 + i) for i in ids)

    def decode_batch(self, batch, skip_special_tokens):
        return [self.decode(ids) for ids in batch]

    def encode(self, texts):
        return [[7] for _ in texts]


STRINGS, PAD = token_strings(Letters(), 101), (7, chr(0x107))


def subject(mesh, bos=None, dtype=jnp.float64, first=0):
    """Few different tokens, so that patterns occur again; padding in one context of each half."""
    lm = two_layers(dtype)
    made = on_text(mesh, random_sae(tiny.WIDTH, N, dtype=dtype), HOOK, CONTEXTS, lm, tokens=10**6)
    made.source.tokens %= 5
    made.source.tokens[1, 6:], made.source.tokens[9, 3:] = -1, -1
    made.source.first = first
    if bos is not None:
        made.source.tokens[:, 0] = bos
    return replace(made, tokenizer=lambda: Letters(bos))


@jax.jit
def latents_of(lm, sae, ids):
    x = normalise(lm.prefix(ids[None], HOOK)[0], sae.spec.normalise)[0]
    z = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    return jnp.where(z >= jax.lax.top_k(z, sae.spec.k)[0][:, -1:], jax.nn.relu(z), 0)


def one_text(made):
    """ids [T] -> latents [T, N] of one text, 0 where training left a token out."""
    lm, sae, kept_of = two_layers(), random_sae(tiny.WIDTH, N), made.source.kept

    def values(ids):
        # No token sees those after it.
        filled = np.full(T + 1, -1, np.int32)
        filled[: len(ids)] = ids
        z = np.where(kept_of(filled[None])[0][:, None], latents_of(lm, sae, np.maximum(filled, 0)), 0)
        return z[: len(ids)]

    return values


@pytest.fixture
def plain(x64):
    return subject((1, 1))


def test_explanations_and_their_scores_equal_plain_loops(plain):
    """With all activations as documents, so that none is drawn."""
    made, half, values = plain, CONTEXTS // 2, one_text(plain)
    z = np.stack([values(row) for row in made.source.tokens])
    config = EvaluationConfigs(n2g=n2g.Config(latents=N, documents=10**6))
    result = measure("n2g", made, config)
    explained = {item["latent"]: item for item in result["explanations"]}
    assert sorted(explained) == np.flatnonzero((z[:half] > 0).any((0, 1))).tolist()
    assert result["activations"] == (z[:half] > 0).sum() and result["held_out_tokens"] == 6 * T - 5
    scores = {"precision": [], "recall": [], "f1": []}
    for latent in list(explained)[:4]:
        patterns = set()
        for context, row in enumerate(made.source.tokens[:half]):
            for index in np.flatnonzero(z[context, :, latent] > 0):
                ids, whole = row[: index + 1].tolist(), z[context, index, latent]
                ask = lambda ids, latent=latent: values(ids)[-1, latent]
                keys, _ = plain_search(ids, [STRINGS[i] for i in ids], whole, ask, PAD)
                patterns.add(tuple(keys))
        assert set(paths(explained[latent]["trie"])) == patterns
    for latent, item in explained.items():
        said, true = [], []
        for context, row in enumerate(made.source.tokens[half:]):
            real = row[row >= 0]
            said += [value > 0 for value in plain_predict(item["trie"], [STRINGS[i] for i in real])]
            true += (z[half + context, : len(real), latent] > 0).tolist()
        both = np.sum(np.logical_and(said, true))
        of = {"precision": sum(said), "recall": sum(true), "f1": (sum(said) + sum(true)) / 2}
        for name, count in of.items():
            assert item[name] == (pytest.approx(both / count) if count else None)
            scores[name] += [both / count] if count else []
    for name, each in scores.items():
        assert result[name] == pytest.approx(np.mean(each))
        assert result[f"{name}_se"] == pytest.approx(np.std(each, ddof=1) / np.sqrt(len(each)))
        assert sum(result[f"{name}_histogram"]) == len(each)
    assert result["density"] == pytest.approx((z[half:, :, sorted(explained)] > 0).sum() / len(explained) / (6 * T - 5))


def paths(trie, keys=()):
    """The keys down to every value."""
    for key, child in trie.items():
        if key == "<saliency>":
            yield keys
        else:
            yield from paths(child, (*keys, key))


def test_what_is_drawn_and_found_does_not_depend_on_the_mesh(x64, tmp_path):
    config = EvaluationConfigs(n2g=n2g.Config(latents=5, documents=3, seed=1))
    first, second = (measure("n2g", subject(mesh), config) for mesh in MESHES)
    assert len(first["explanations"]) == 5 and first["activations"] <= 15
    for a, b in zip(first.pop("explanations"), second.pop("explanations")):
        assert a["latent"] == b["latent"] and list(paths(a["trie"])) == list(paths(b["trie"]))
    assert first == second
    other = measure("n2g", subject((1, 1)), replace(config, n2g=replace(config.n2g, seed=2)))
    assert [item["latent"] for item in other["explanations"]] != [5]
    n2g.figure(first, tmp_path / "n2g.png")
    assert (tmp_path / "n2g.png").read_bytes().startswith(b"\x89PNG")


def test_texts_begin_as_contexts_do_and_places_that_training_left_out_explain_nothing():
    """With a token at the start of every context, at which training left the latents out."""
    made = subject((1, 1), bos=100, dtype=jnp.float32, first=1)
    result = measure("n2g", made, EvaluationConfigs(n2g=n2g.Config(latents=2, documents=2, length=3)))
    assert result["held_out_tokens"] == 6 * (T - 1) - 5
    for item in result["explanations"]:
        for keys in paths(item["trie"]):
            assert STRINGS[100] not in keys[:1] and len([key for key in keys if key != "token(^)"]) <= 3


def test_scales_equal_least_squares():
    random = np.random.default_rng(0)
    s, a = random.uniform(size=(50, 4)).astype("f"), random.uniform(size=(50, 4)).astype("f")
    s[:, 2] = 0
    want = [np.linalg.lstsq(s[:, [i]], a[:, i], rcond=None)[0][0] for i in range(4)]
    np.testing.assert_allclose(explanations.scales(s, a), want, rtol=1e-5)
    np.testing.assert_allclose(explanations.scales(s[:, 0], a[:, 0]), want[0], rtol=1e-5)
    assert want[2] == 0 and explanations.scales(s[:, 2], a[:, 2]) == 0


def test_bigrams_equal_counting_by_hand():
    texts = [np.array([[0, 1, 2, 1], [2, 1, -1, -1]]), np.array([[1, 2, 1, 0]])]
    have = Bigrams(texts, 4)
    # After 1: 2 twice, 0 once; after 0: 1 once; after 2: 1 three times; after 3: nothing.
    next_tokens = np.array([1, 2, 1, 1, 2, 1, 0])
    p = (np.bincount(next_tokens, minlength=4) + 1) / (len(next_tokens) + 4)
    np.testing.assert_allclose(have.unigram(np.arange(4)), p)
    counts = np.array([[0, 1, 0, 0], [1, 0, 2, 0], [0, 3, 0, 0], [0, 0, 0, 0]])
    different, total = (counts > 0).sum(1, keepdims=True), counts.sum(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        want = np.where(total > 0, (counts + different * p) / (total + different), p)
    before, after = np.divmod(np.arange(16), 4)
    np.testing.assert_allclose(have.bigram(before, after), want.ravel())
    np.testing.assert_allclose(want.sum(1), 1)


def test_simulated_latents_and_their_loss_equal_plain_numpy(plain):
    made, half, values = plain, CONTEXTS // 2, one_text(plain)
    z = np.stack([values(row) for row in made.source.tokens])
    config = {"documents": 10**6, "length": 8, "seed": 0}
    result = measure("explanations", made, EvaluationConfigs(explanations=explanations.Config(**config)))
    tries = measure("n2g", made, EvaluationConfigs(n2g=n2g.Config(latents=N, **config)))["explanations"]
    tokens, kept = made.source.tokens, made.source.tokens >= 0
    s = np.zeros_like(z)
    for item in tries:
        for context, row in enumerate(tokens):
            real = [STRINGS[i] for i in row[row >= 0]]
            s[context, : len(real), item["latent"]] = plain_predict(item["trie"], real)
    flat = lambda a: a.reshape(-1, N)
    factors = np.asarray(explanations.scales(flat(s[:half]), flat(z[:half])))
    simulated = factors * s[half:]
    lm = two_layers()
    x = np.asarray(lm.prefix(jnp.asarray(np.maximum(tokens[half:], 0)), HOOK))
    mean = x.mean(-1, keepdims=True)
    norm = np.linalg.norm(x - mean, axis=-1, keepdims=True)
    b, W = np.asarray(made.sae.b_dec), np.asarray(made.sae.W_dec)
    normal, kept = (x - mean) / norm, kept[half:]
    predicted = kept[:, :-1] & kept[:, 1:]

    def loss(stream):
        logits = np.asarray(lm.suffix(jnp.asarray(np.where(kept[..., None], stream, x)), HOOK))
        p = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[:, :-1]
        return -np.take_along_axis(p, np.maximum(tokens[half:, 1:], 0)[..., None], -1)[..., 0][predicted].mean()

    center = normal[kept].mean(0)
    for name, latents in (("autoencoder", z[half:]), ("simulated", simulated), ("empty", 0 * simulated)):
        xhat = latents @ W + b
        nmse = ((normal - xhat)[kept] ** 2).sum() / ((normal[kept] - center) ** 2).sum()
        assert result["nmse"][name] == pytest.approx(nmse, rel=1e-9)
        assert result["delta_ce"][name] == pytest.approx(loss(xhat * norm + mean) - loss(x), rel=1e-8, abs=1e-12)
    assert result["l0_simulated"] == pytest.approx((s[half:] > 0).sum() / kept.sum())
    assert result["l0"] == pytest.approx((z[half:] > 0).sum() / kept.sum())
    counts, before, after = Bigrams([tokens[:half]], 101), tokens[half:, :-1][predicted], tokens[half:, 1:][predicted]
    for name, p in (("bigram", counts.bigram(before, after)), ("unigram", counts.unigram(after))):
        assert result["delta_ce"][name] == pytest.approx(-np.log(p).mean() - loss(x), rel=1e-9)
    assert result["counted_tokens"] == counts.tokens == (tokens[:half] >= 0).sum() - half


def test_losses_with_simulated_latents_do_not_depend_on_the_mesh(x64, tmp_path):
    config = EvaluationConfigs(explanations=explanations.Config(documents=2))
    first, second = (measure("explanations", subject(mesh), config) for mesh in MESHES)
    for name in ("nmse", "delta_ce"):
        assert first[name] == pytest.approx(second.pop(name), rel=1e-9)
    assert second.items() <= first.items()
    explanations.figure(first, tmp_path / "explanations.png")
    assert (tmp_path / "explanations.png").read_bytes().startswith(b"\x89PNG")


def test_an_autoencoder_without_active_latents_has_nothing_to_explain(x64, tmp_path):
    made = subject((1, 1))
    made = replace(made, sae=made.sae.replace(b_enc=made.sae.b_enc - 1e6))
    result = measure("n2g", made)
    assert result["latents"] == 0 and result["explanations"] == [] and result["precision"] is None
    n2g.figure(result, tmp_path / "n2g.png")
    result = measure("explanations", made)
    assert result["l0"] == result["l0_simulated"] == 0
    assert result["delta_ce"]["simulated"] == pytest.approx(result["delta_ce"]["empty"], rel=1e-9)
    result = measure("refinement", made)
    assert result["values"] == 0 and result["shift"]["mean"] is None and result["nmse"]["after"] > 0


def test_what_cannot_be_explained_is_refused():
    made = subject((1, 1), dtype=jnp.float32)
    for name, changed, message in (
        ("n2g", replace(made, tokenizer=None), "there is no tokenizer"),
        ("explanations", replace(made, tokens=1), "tested on another, and there is one: give more text"),
        ("n2g", replace(made, lm=None), "--metrics n2g needs a language model"),
    ):
        with pytest.raises(jaxsae.BadInput, match=message):
            measure(name, changed)
    with pytest.raises(jaxsae.BadInput, match=r"--explanations\.count-tokens is 0: give at least 1"):
        explanations.Config(count_tokens=0)


def test_names_of_tokens_are_lossless(tiny_lm):
    """Parts of a character have no text of their own."""
    tokenizer = jaxsae.lm.load_tokenizer(jaxsae.lm.load(str(tiny_lm)))
    size = tokenizer.backend.get_vocab_size()
    names = token_strings(tokenizer, size + 2)
    assert len(set(names)) == size + 2 and names[-1] == f"<{size + 1}>"
    assert names[tokenizer.encode([" the"])[0][0]].startswith(" ")
    assert json.loads(json.dumps(names)) == names
