"""Contexts on a mesh: each that is asked for counts once, whatever divides; the language model uses all devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh
from jaxsae.evals import standard
from jaxsae.evals.subject import Subject, contexts
from tests.evals.subjects import Files, on_text, random_sae, two_layers
from tests.lm import tiny
from tests.marks import slow

X = np.arange(6 * 5 * 2.0).reshape(6, 5, 2)


@pytest.mark.parametrize("tokens, count", [(1, 1), (20, 4), (24, 4), (10**9, 6)])
def test_as_many_tokens_are_read_as_asked_and_there_are(tokens, count):
    subject = Subject(None, Files(X), make_mesh(1, 1), tokens, quiet=True)
    assert subject.contexts == count and subject.rows == 5 * count


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (2, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("contexts, size", [(7, None), (7, 3), (13, 4)])
def test_each_context_counts_once(mesh, contexts, size):
    x = np.arange(contexts * 5 * 2.0).reshape(contexts, 5, 2)
    subject = Subject(None, Files(x), make_mesh(*mesh), 10**6, quiet=True)
    batches = list(subject.batches(size))
    assert len({batch.host.shape for batch in batches}) == 1
    assert all(len(batch.host) % subject.mesh.size == 0 for batch in batches)
    assert size is None or all(batch.size <= size for batch in batches)
    counted = [np.asarray(batch.host)[np.asarray(batch.mask)] for batch in batches]
    np.testing.assert_array_equal(np.concatenate(counted), x)
    assert [len(part) for part in counted] == [batch.size for batch in batches]
    # What fills up the last batch is data too: no number of it is infinite.
    assert all(np.isin(batch.host, x).all() for batch in batches)


def test_a_prime_number_of_contexts_is_one_batch():
    subject = Subject(None, Files(np.zeros((13, 64, 2))), make_mesh(2, 1), 10**6, quiet=True)
    assert [batch.host.shape for batch in subject.batches()] == [(14, 64, 2)]


def test_a_device_reads_only_its_contexts():
    class Counting(Files):
        def host(self, start, stop):
            assert stop - start <= 2
            return super().host(start, stop)

    batch = contexts(Counting(X), 1, 6, 8, make_mesh(4, 1))
    np.testing.assert_array_equal(batch.host, X[[1, 2, 3, 4, 5, 5, 5, 5]])


@pytest.mark.parametrize("mesh", [slow((1, 8)), (2, 4)], ids=str)
def test_every_device_runs_the_language_model_on_its_own_contexts(mesh):
    """Of 16 contexts every device of 8 makes the logits of 2, three times: none has those of 4 or more."""
    sae = random_sae(tiny.WIDTH, dtype=jnp.float32)
    subject = on_text(mesh, sae, "blocks.0.hook_resid_post", 16, two_layers(jnp.float32))
    batch = next(subject.batches())
    with jax.set_mesh(subject.mesh):
        arrays = (subject.activations(batch),)
        assert arrays[0].shape[0] == 16
        centers = standard._centers(subject.sae, arrays, batch.kept, 16)
        rest = batch.kept, centers, subject.lm, *subject.text(batch)
        lower = partial(standard._per_token.lower, {"exported": subject.sae}, arrays, *rest)
        text = lower(subject.hook, subject.selection).compile().as_text()
    logits = {line.split("[")[1].split("]")[0] for line in text.split() if line.startswith("f32[")}
    rows = {int(np.prod([int(n) for n in shape.split(",")[:-1]])) for shape in logits if shape.endswith(",101")}
    # Two contexts of eight positions, of the original and of the substitute.
    assert max(rows) == 2 * 8 * 2
