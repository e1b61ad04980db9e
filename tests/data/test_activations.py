"""Batches whose every row says where it comes from; those of text against the model's prefix."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.data import activations
from jaxsae.data.activations import LANES, ActivationBatches, BufferPlan, HooksSource, TextSource
from jaxsae.data.sections import SectionsSource
from jaxsae.distributed.mesh import make_mesh, place
from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import GPT2, GPT2Config
from jaxsae.lm.model import LM, prefix

MESHES = [(1, 1), (8, 1), (2, 4), (4, 2)]


class Numbered:
    """Row r of context c is [c * rows + r, c]: exact in float32 here."""

    width, shape, dtype, fingerprint = 2, (1,), np.int32, "numbered"
    first, masked = 0, False

    def __init__(self, rows):
        self.rows, self.count = rows, rows << 20

    def __len__(self):
        return 1 << 20

    def host(self, start, stop):
        return np.arange(start, stop)[:, None]

    def activations(self, host):
        rows = host[:, :, None] * self.rows + jnp.arange(self.rows)[None, :, None]
        contexts = host[:, :, None] + jnp.zeros((1, self.rows, 1), jnp.int32)
        return (jnp.concatenate([rows, contexts], -1).astype(jnp.float32),)


def make_batches(mesh=(1, 1), batch=64, rows=12, per_chunk=4, seed=0):
    plan = BufferPlan.of(batch, rows, mesh[0], per_chunk)
    return ActivationBatches(Numbered(rows), plan, make_mesh(*mesh), seed)


def test_plans_divide():
    for batch in (1, 2, 6, 24, 64, 96, 100, 2048):
        for data in (d for d in range(1, 17) if batch % d == 0):
            for rows in (1, 7, 63, 64):
                for batches in (1, 3, 16):
                    plan = BufferPlan.of(batch, rows, data, batches)
                    assert plan.lanes % data == batch % plan.lanes == 0
                    assert plan.contexts % plan.lanes == 0
                    # Each lane deals whole rows to the batches, and keeps less than one context.
                    left_over = plan.contexts * rows - batches * batch
                    assert 0 <= left_over < plan.lanes * rows


def test_meshes_whose_size_divides_the_lanes_share_one_plan():
    for batch in (8, 24, 64, 192):
        assert len({BufferPlan.of(batch, 64, data, 16) for data in (1, 2, 4, 8)}) == 1
        assert BufferPlan.of(batch, 64, 8, 16).lanes == math.gcd(batch, LANES)


def test_a_batch_that_does_not_divide_over_the_devices():
    message = "--batch-size 100 does not divide over the 8 devices .*: give a multiple of 8"
    with pytest.raises(BadInput, match=message):
        BufferPlan.of(100, 64, 8, 16)


# The last ones share little or nothing with LANES; 63 rows are a context of 64 without position 0.
SIZES = [(64, 12, 4), (128, 63, 3), (10, 7, 5), (9, 4, 1)]


@pytest.mark.parametrize("batch, rows, per_chunk", SIZES)
def test_batches_hold_rows_of_their_chunk_and_none_twice(batch, rows, per_chunk):
    batches = make_batches((1, 1), batch, rows, per_chunk)
    contexts = batches.plan.contexts
    for number in (0, 3):
        chunk = np.asarray(batches.chunk(number)[0])
        assert chunk.shape == (per_chunk, batch, 2)
        ids, of = chunk[..., 0].ravel().astype(int), chunk[..., 1].ravel().astype(int)
        np.testing.assert_array_equal(ids // rows, of)
        assert len(set(ids)) == len(ids)
        # Chunks take the contexts in their order, each once.
        assert set(of) <= set(range(number * contexts, (number + 1) * contexts))
        assert contexts * rows - len(ids) < batches.plan.lanes * rows


def test_batches_mix_contexts_and_positions():
    batches = make_batches(batch=256, rows=32, per_chunk=8)
    chunk = np.asarray(batches.chunk(0)[0]).astype(int)
    ids, of = chunk[..., 0], chunk[..., 1]
    # As many contexts as lanes are in every batch, and a context is in almost all batches.
    assert all(len(set(batch)) >= batches.plan.lanes for batch in of)
    spread = [sum(context in batch for batch in of) for context in range(batches.plan.contexts)]
    assert np.mean(spread) > 7
    # Any position may come anywhere: no position is rare in any batch.
    counts = np.stack([np.bincount(batch % 32, minlength=32) for batch in ids])
    assert counts.sum(1).tolist() == [256] * 8 and (counts > 0).mean() > 0.95 and counts.max() < 32


def test_seeds_and_chunks_mix_differently():
    def places(seed, number):
        ids = np.asarray(make_batches(seed=seed).chunk(number)[0])[..., 0].ravel()
        return (ids - ids.min() // 768 * 768).tolist()

    orders = [places(0, 0), places(0, 1), places(1, 0)]
    assert orders[0] == places(0, 0)
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]


@pytest.mark.parametrize("batch, meshes", [(64, MESHES[1:]), (24, [(8, 1)])])
def test_batches_are_the_same_on_every_mesh(batch, meshes):
    want = make_batches((1, 1), batch).chunk(2)[0]
    for mesh in meshes:
        got = make_batches(mesh, batch).chunk(2)[0]
        assert str(jax.typeof(got)) == f"float32[4,{batch}@data,2]"
        assert got.sharding.mesh.shape["data"] == mesh[0]
        np.testing.assert_array_equal(got, want)


def test_a_mesh_that_does_not_divide_the_lanes_still_splits_every_batch():
    chunk = np.asarray(make_batches((3, 1), batch=12, rows=5, per_chunk=3).chunk(0)[0])
    ids = chunk[..., 0].ravel()
    assert chunk.shape == (3, 12, 2) and len(set(ids)) == 36


@pytest.mark.parametrize("mesh", [(1, 1), (4, 2)], ids=str)
def test_a_step_has_its_batch_wherever_the_stream_begins(mesh):
    batches = make_batches(mesh)
    rows = lambda start, stop: [x for (x,) in batches.iterate(start, stop)]
    whole = rows(0, 11)
    assert [str(jax.typeof(batch)) for batch in whole] == ["float32[64@data,2]"] * 11
    chunks = np.concatenate([batches.chunk(number)[0] for number in range(3)])
    np.testing.assert_array_equal(whole, chunks[:11])
    # From the first, an inner and the last batch of a chunk; within a chunk and beyond it.
    for start, stop in [(4, 11), (5, 7), (7, 9), (10, 11)]:
        np.testing.assert_array_equal(rows(start, stop), chunks[start:stop])
    assert rows(3, 3) == []


def test_a_stream_that_is_left_can_be_begun_again():
    batches = make_batches()
    stream = batches.iterate(0, 1000)
    first = next(stream)
    stream.close()
    np.testing.assert_array_equal(next(batches.iterate(0, 1000)), first)


def test_the_sample_is_the_first_rows_and_its_chunk_is_not_computed_twice():
    batches = make_batches()
    read, numbers = batches.source.host, []
    batches.source.host = lambda start, stop: numbers.append(start) or read(start, stop)
    sample = batches.sample(300)
    assert len(numbers) == 2
    whole = np.concatenate([x for (x,) in batches.iterate(0, 6)])
    np.testing.assert_array_equal(sample, whole[:300])
    # The second chunk was needed for the sample, and is read again; the first one is not.
    assert numbers.count(0) == 1 and len(numbers) == 3


class Holed(Numbered):
    """Numbered rows of which only those count whose context and position `keep` names."""

    masked = True

    def __init__(self, rows, keep, contexts=1 << 20):
        super().__init__(rows)
        self.keep, self.contexts = keep, contexts
        self.count = round(contexts * rows * np.mean(keep(np.arange(4096)[:, None], np.arange(rows))))

    def __len__(self):
        return self.contexts

    def kept(self, host):
        return jnp.broadcast_to(self.keep(host, jnp.arange(self.rows)), (len(host), self.rows))


def holed_batches(source, mesh=(1, 1), batch=64, per_chunk=4):
    plan = BufferPlan.of(batch, source.count / len(source), mesh[0], per_chunk)
    return ActivationBatches(source, plan, make_mesh(*mesh), 0)


def some(context, position):
    """A scattered third is left out, and all of every seventh context."""
    return ((context * 31 + position * 17) % 3 > 0) & (context % 7 > 0)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_batches_are_full_of_rows_that_count(mesh):
    """Every lane's rows in a random order, those that count first, and around again where they do not suffice."""
    rows, batches = 12, holed_batches(Holed(12, some), mesh)
    plan, chunk = batches.plan, np.asarray(batches.chunk(2)[0])
    assert chunk.shape == (4, 64, 2) and plan.contexts > 4 * 64 / rows
    key, per_lane = jax.random.fold_in(batches.key, 2), 4 * 64 // plan.lanes
    lanes = (2 * plan.contexts + np.arange(plan.contexts)).reshape(plan.lanes, -1)
    want = np.zeros((4, plan.lanes, per_lane // 4), int)
    for lane, contexts in enumerate(lanes):
        ids = (contexts[:, None] * rows + np.arange(rows)).ravel()
        order = [int(i) for i in jax.random.permutation(jax.random.fold_in(key, lane), len(ids))]
        counting = [ids[i] for i in order if some(ids[i] // rows, ids[i] % rows)]
        if not counting:
            # Of a lane without any, the first row of the first one that has some.
            counting = [want[0, next(i for i in range(lane) if want[0, i].any()), 0]]
        want[:, lane] = np.resize(counting, per_lane).reshape(4, -1)
    np.testing.assert_array_equal(chunk[..., 0], want.reshape(4, 64))


def test_no_row_comes_twice_while_a_lane_has_others():
    source = Holed(12, lambda context, position: (position < 5) & (context >= 0))
    ids = np.asarray(holed_batches(source).chunk(0)[0])[..., 0].ravel()
    assert len(set(ids)) == len(ids) and set(ids % 12) == set(range(5))


def test_a_lane_without_rows_that_count_gives_those_of_another():
    """Only one context of the chunk has any."""
    source = Holed(12, lambda context, position: (context == 9) & (position < 4))
    batches = ActivationBatches(source, BufferPlan.of(64, 12, 4, 2), make_mesh(4, 2), 0)
    ids = np.asarray(batches.chunk(0)[0])[..., 0]
    assert {*ids.ravel()} <= {9 * 12 + i for i in range(4)}


def test_a_source_that_keeps_all_gives_what_one_without_marks_gives():
    source = Holed(12, lambda context, position: (context >= 0) & (position >= 0))
    for got, want in zip(holed_batches(source).iterate(0, 6), make_batches().iterate(0, 6), strict=True):
        np.testing.assert_array_equal(got[0], want[0])


def test_the_start_of_training_sees_only_rows_that_count():
    few = Holed(12, some, contexts=60)
    sample = np.asarray(holed_batches(few).sample(10**6)).astype(int)
    assert len(sample) == few.count < 60 * 12 and some(sample[:, 1], sample[:, 0] % 12).all()


class FromOne(Numbered):
    """The first position is left out."""

    first = 1

    def __init__(self, rows):
        super().__init__(rows)
        self.count = (rows - 1) << 20


def test_without_the_first_position_batches_are_those_of_contexts_that_are_one_shorter():
    """So a run of an older version resumes with the batches that it had."""
    source = FromOne(13)
    chunk = np.asarray(holed_batches(source).chunk(1)[0])[..., 0].astype(int)
    want = np.asarray(make_batches().chunk(1)[0])[..., 0].astype(int)
    np.testing.assert_array_equal(chunk, want // 12 * 13 + want % 12 + 1)


class Pairs(Numbered):
    """What should come out is the negative of what goes in."""

    def activations(self, host):
        (x,) = super().activations(host)
        return x, -x


def test_pairs_stay_together():
    batches = ActivationBatches(Pairs(12), BufferPlan.of(64, 12, 2, 4), make_mesh(2, 2), 0)
    alone = make_batches((2, 1))
    for (x, y), (same,) in zip(batches.iterate(0, 5), alone.iterate(0, 5), strict=True):
        np.testing.assert_array_equal(x, same)
        np.testing.assert_array_equal(y, -x)


def test_what_goes_wrong_while_reading_ahead_is_raised():
    batches = make_batches()
    read = batches.source.host

    def host(start, stop):
        if start >= 2 * batches.plan.contexts:
            raise OSError("gone")
        return read(start, stop)

    batches.source.host = host
    stream = batches.iterate(0, 100)
    for _ in range(8):
        next(stream)
    with pytest.raises(OSError, match="gone"):
        next(stream)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1)], ids=str)
def test_what_is_read_ahead_has_the_precisions_of_its_reader(mesh):
    """JAX keeps them by thread, and the next chunk is made in another one."""
    batches, seen = make_batches(mesh), []
    read, compute = batches.source.host, batches.source.activations
    precisions = lambda: (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    batches.source.host = lambda *where: seen.append(precisions()) or read(*where)
    batches.source.activations = lambda host: seen.append(precisions()) or compute(host)
    with jax.enable_x64(True), jax.default_matmul_precision("float32"):
        for _ in batches.iterate(0, 9):
            pass
    assert set(seen) == {(True, "float32")} and len(seen) >= 6


T = 8
CONFIG = GPT2Config(vocab_size=50, n_ctx=T, d_model=8, n_layer=2, n_head=2, n_inner=12)


@pytest.fixture(scope="module")
def lm():
    tokens = jnp.zeros((1, T), jnp.int32)
    params = jax.jit(GPT2(CONFIG).init)(jax.random.key(0), tokens)["params"]
    return LM(params, CONFIG)


class Tokens:
    """Random contexts in the place of prepared text."""

    padded = False

    def __init__(self, size=1000):
        self.ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (size, T), np.int32)
        # Neighbours begin with different tokens, so that no two of their activations are equal.
        self.ids[:, 0] = np.arange(size) % CONFIG.vocab_size

    def __len__(self):
        return len(self.ids)

    def read(self, start, stop):
        return self.ids[start:stop]


HOOKS = ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.1.mlp.hook_post"]
HOOKS += ["blocks.0.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.0.mlp.hook_in"]


def text_source(lm, mesh, hook, skip_first=False):
    lm = jax.device_put(lm, NamedSharding(mesh, P()))
    return TextSource(lm, hook, Tokens(), T, skip_first, "tokens")


CASES = [*((hook, 16) for hook in HOOKS), (HOOKS[1], 8192), (HOOKS[1], 1)]


@pytest.mark.parametrize("hook, at_once", CASES)
def test_text_gives_the_activations_of_the_prefix(lm, monkeypatch, hook, at_once):
    # Several contexts at a time, down to one: activations are the same.
    monkeypatch.setattr(activations, "TOKENS_AT_ONCE", {"cpu": at_once, "gpu": 0})
    activations._activations.clear_cache()
    mesh = make_mesh(2, 4)
    source = text_source(lm, mesh, hook)
    host = place(source.host, (12, T), source.dtype, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        (got,) = source.activations(host)
    want = prefix(lm, Tokens().ids[:12], hook)
    assert source.width == want.shape[-1] and source.rows == T and len(source) == 1000
    assert str(jax.typeof(got)) == f"float32[12@data,{T},{source.width}]"
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("hooks, hook_out", [((HOOKS[0],), HOOKS[3]), ((HOOKS[0], HOOKS[4]), None)])
def test_several_hook_points_are_read_in_one_pass(lm, hooks, hook_out):
    """A pair of a transcoder; activations of a crosscoder side by side."""
    mesh = make_mesh(2, 4)
    placed = jax.device_put(lm, NamedSharding(mesh, P()))
    kind, places = (HooksSource, (*hooks, hook_out)) if hook_out else (SectionsSource, hooks)
    source = kind(placed, places, Tokens(), T, False, "tokens")
    want = [np.asarray(prefix(lm, Tokens().ids[:16], hook)) for hook in (*hooks, *filter(None, [hook_out]))]
    want = want if hook_out else [np.concatenate(want, -1)]
    host = place(source.host, (16, T), source.dtype, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = source.activations(host)
    assert source.width == want[0].shape[-1] and len(got) == len(want)
    for ours, theirs in zip(got, want):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    batches = ActivationBatches(source, BufferPlan.of(16, T, 2, 2), mesh, 0)
    samples, (first, *_) = batches.samples(40), batches.iterate(0, 1)
    for sample, array in zip(samples, first, strict=True):
        np.testing.assert_array_equal(sample[:16], array)
    if hook_out:
        # Rows of the pair stay together.
        rows = np.concatenate([a.reshape(-1, a.shape[-1]) for a in want], -1)
        assert np.abs(np.concatenate(first, -1)[:, None] - rows).max(-1).min(1).max() < 1e-4


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"])
def test_batches_of_text_are_rows_of_the_prefix(lm, hook, skip_first):
    mesh = make_mesh(4, 2)
    source = text_source(lm, mesh, hook, skip_first)
    rows = T - skip_first
    assert source.rows == T and source.count == 1000 * rows
    batches = ActivationBatches(source, BufferPlan.of(16, rows, 4, 3), mesh, 0)
    got = np.concatenate([x for (x,) in batches.iterate(0, 3)])
    want = prefix(lm, Tokens().ids[: batches.plan.contexts], hook)[:, int(skip_first) :]
    want = np.asarray(want).reshape(-1, source.width)
    distances = np.abs(got[:, None] - want).max(-1)
    nearest = distances.argmin(1)
    assert distances.min(1).max() < 1e-5 and len(set(nearest)) == len(got)
    if skip_first:
        first = np.asarray(prefix(lm, Tokens().ids[: batches.plan.contexts], hook)[:, 0])
        assert np.abs(got[:, None] - first).max(-1).min() > 1e-3


def test_several_hook_points_give_what_each_gives_alone(lm):
    """The same rows at the same places of the batches, from one pass."""
    mesh = make_mesh(2, 4)
    placed, hooks = jax.device_put(lm, NamedSharding(mesh, P())), [HOOKS[1], HOOKS[2], HOOKS[0]]
    source = HooksSource(placed, hooks, Tokens(), T, True, "tokens", (7,))
    batches = ActivationBatches(source, BufferPlan.of(16, T - 2, 2, 3), mesh, 5)
    got, samples = next(batches.iterate(1, 2)), batches.samples(40)
    for hook, array, sample in zip(hooks, got, samples, strict=True):
        alone = TextSource(placed, hook, Tokens(), T, True, "tokens", (7,))
        alone = ActivationBatches(alone, batches.plan, mesh, 5)
        np.testing.assert_allclose(array, next(alone.iterate(1, 2))[0], atol=1e-5)
        np.testing.assert_allclose(sample, alone.sample(40), atol=1e-5)


def test_padding_and_named_tokens_of_a_text_do_not_count(lm):
    """Padding is -1 at the end of a context: before it activations are those of the text alone, after it finite."""
    mesh, contexts = make_mesh(2, 1), Tokens()
    contexts.padded, lengths = True, 2 + np.arange(1000) % (T - 1)
    real = np.arange(T) < lengths[:, None]
    contexts.ids = np.where(real, contexts.ids, -1)
    placed = jax.device_put(lm, NamedSharding(mesh, P()))
    source = TextSource(placed, HOOKS[1], contexts, T, True, "tokens", (7, 11))
    kept = real & (np.arange(T) > 0) & (contexts.ids != 7) & (contexts.ids != 11)
    assert source.masked and source.first == 1 and source.count == kept.sum()
    host = place(source.host, (12, T), source.dtype, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got, (x,) = source.kept(host), source.activations(host)
    np.testing.assert_array_equal(got, kept[:12])
    x = np.asarray(x)
    assert np.isfinite(x).all()
    for i in (0, 3):
        alone = prefix(lm, contexts.ids[i : i + 1, : lengths[i]], HOOKS[1])
        np.testing.assert_allclose(x[i, : lengths[i]], alone[0], atol=1e-5)


def test_how_many_tokens_count_is_estimated_from_the_first_contexts(lm, monkeypatch):
    source = TextSource(lm, HOOKS[0], Tokens(), T, False, "tokens", (7,))
    exact = (Tokens().ids != 7).sum()
    assert source.count == exact
    monkeypatch.setattr(activations, "COUNTED", 200 * T)
    few = TextSource(lm, HOOKS[0], Tokens(), T, False, "tokens", (7,))
    assert few.count == (Tokens().ids[:200] != 7).sum() * 5 and few.count == pytest.approx(exact, rel=0.02)


def test_a_hook_that_the_model_does_not_have(lm):
    for hook in ("blocks.2.hook_resid_post", "blocks.0.hook_resid", "resid"):
        with pytest.raises(BadInput, match="blocks"):
            TextSource(lm, hook, Tokens(), T, False, "tokens")
