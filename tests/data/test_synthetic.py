"""Made activations: what they promise of frequencies, hierarchy and groups, and that they are the same everywhere."""

import jax
import numpy as np
import pytest

import jaxsae
from jaxsae.config import Config, with_fields
from jaxsae.data import synthetic
from jaxsae.data.activations import ActivationBatches, BufferPlan
from jaxsae.data.synthetic import ROWS, SyntheticSource, World, truth_of, world_of
from jaxsae.distributed.mesh import make_mesh
from jaxsae.planning.width import widths
from tests.marks import slow

SMALL = World(features=24, width=12, active=3.0)
MESHES = [(1, 1), (4, 2)]
SLOW = ("gaussian-768", "points")


def made(world, contexts=64, mesh=(1, 1)):
    """Activations [rows, d] and magnitudes [rows, F] of the first contexts."""
    source = SyntheticSource(world, "all", None)
    with jax.set_mesh(make_mesh(*mesh)):
        x, magnitudes = jax.device_get(source.made(source.host(0, contexts)))
    return x.reshape(-1, world.width), magnitudes.reshape(-1, world.features * world.manifold)


def test_frequencies_are_zipf_up_to_a_bound():
    have = synthetic.frequencies(World(features=100, active=6.0, exponent=1.0))
    assert have.sum() == pytest.approx(6) and have.max() == synthetic.MOST
    free = have < synthetic.MOST
    ranks = np.arange(1, 101)[free]
    np.testing.assert_allclose(have[free] * ranks, (have[free] * ranks)[0], rtol=1e-9)


def test_rows_are_sums_of_directions_that_fire_as_often_as_is_said():
    world = SMALL
    truth = truth_of(world)
    x, magnitudes = made(world, 256)
    fires = magnitudes > 0
    error = np.sqrt(truth.often * (1 - truth.often) / len(x))
    assert (np.abs(fires.mean(0) - truth.often) < 5 * error).all()
    assert magnitudes[fires].min() >= 0.5 and magnitudes[fires].max() < 1.5
    assert magnitudes[fires].mean() == pytest.approx(1, abs=0.01)
    noise = x - magnitudes @ truth.directions
    assert noise.std() == pytest.approx(world.noise, rel=0.02)
    np.testing.assert_allclose(np.linalg.norm(truth.directions, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(truth.directions.sum(1), 0, atol=1e-5)


def test_children_fire_only_with_their_parents():
    world = World(features=25, width=12, active=3.0, children=4)
    truth = truth_of(world)
    _, magnitudes = made(world, 256)
    fires, children = magnitudes > 0, np.flatnonzero(truth.parents != np.arange(25))
    assert len(children) == 20 and set(truth.parents[children]) == set(range(5))
    assert not (fires[:, children] & ~fires[:, truth.parents[children]]).any()
    given = fires[:, children].sum(0) / fires[:, truth.parents[children]].sum(0)
    np.testing.assert_allclose(given, truth.often[children], atol=0.06)


def test_features_of_a_group_fire_together_and_as_often_as_without():
    world = World(features=24, width=12, active=3.0, correlation=0.6, group=8)
    truth = truth_of(world)
    fires = made(world, 512)[1] > 0
    error = np.sqrt(truth.often / len(fires))
    assert (np.abs(fires.mean(0) - truth.often) < 8 * error).all()
    correlations = np.corrcoef(fires.T.astype(float))
    same = truth.groups[:, None] == truth.groups
    np.fill_diagonal(correlations, np.nan)
    assert np.nanmean(correlations[same]) > 0.03 and abs(np.nanmean(correlations[~same])) < 0.005


@pytest.mark.parametrize("name", [slow(name) if name in SLOW else name for name in synthetic.WORLDS])
def test_every_world_is_the_same_on_every_mesh(name):
    """What a context holds does not depend on its neighbours either."""
    world = synthetic.WORLDS[name]
    (x, magnitudes), (other_x, other_magnitudes) = (made(world, 8, mesh) for mesh in MESHES)
    np.testing.assert_array_equal(magnitudes, other_magnitudes)
    np.testing.assert_allclose(x, other_x, atol=1e-6)
    np.testing.assert_allclose(made(world, 2)[0], x[: 2 * ROWS], atol=1e-6)
    assert len(np.unique(x[::ROWS, 0])) == 8


def test_batches_are_the_same_on_every_mesh():
    batches = []
    for shape in MESHES:
        mesh = make_mesh(*shape)
        plan = BufferPlan.of(128, ROWS, shape[0], 2)
        stream = ActivationBatches(SyntheticSource(SMALL, "train", 3), plan, mesh, 3).iterate(0, 3)
        batches.append([np.asarray(x) for (x,) in stream])
    np.testing.assert_allclose(*batches, atol=1e-6)


def test_a_twentieth_is_held_out_and_the_seed_orders_the_rest():
    train, held_out, everything = (
        SyntheticSource(SMALL, split, None, 60).host(0, count)[:, 0].tolist()
        for split, count in (("train", 57), ("held_out", 3), ("all", 60))
    )
    assert held_out == [19, 39, 59] and sorted(train + held_out) == everything == list(range(60))
    shuffled = SyntheticSource(SMALL, "train", 7, 60).host(0, 57)[:, 0].tolist()
    assert shuffled != train and sorted(shuffled) == train
    assert SyntheticSource(SMALL, "train", 7, 60).host(57, 60).shape == (3, 1)


def test_the_fingerprint_is_that_of_the_world():
    prints = {SyntheticSource(world, "train", 0).fingerprint for world in synthetic.WORLDS.values()}
    assert len(prints) == len(synthetic.WORLDS)
    assert SyntheticSource(world_of("synthetic:zipf"), "held_out", 5).fingerprint in prints


def test_an_unknown_world_is_refused_with_the_known_ones():
    with pytest.raises(jaxsae.BadInput, match=r"synthetic:gauss is unknown: allowed are synthetic:zipf, "):
        world_of("synthetic:gauss")
    assert widths(with_fields(Config(), activations="synthetic:zipf")) == (synthetic.WORLDS["zipf"].width, None)


def test_points_of_manifolds_have_the_length_that_a_point_would_have():
    flat, round_ = World(features=24, width=12, active=3.0), World(features=24, width=12, active=3.0, manifold=3)
    one, coordinates = made(flat, 8)[1], made(round_, 8)[1].reshape(-1, 24, 3)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=-1), one, atol=1e-5)
    assert (coordinates < 0).any() and truth_of(round_).directions.shape == (72, 12)


def test_fingerprints_of_runs_that_were_saved_hold():
    """Those of the first version, whose worlds had no manifolds."""
    saved = {"zipf": "synthetic-713903143dd7a93738e1", "mixed": "synthetic-59984499b78d145cc8a2"}
    assert {name: SyntheticSource(synthetic.WORLDS[name], "train", 0).fingerprint for name in saved} == saved
