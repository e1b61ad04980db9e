"""Checkpoints: exact, on any mesh, and never trusted when damaged."""

import configparser
import re
import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsae.distributed.mesh import make_mesh
from jaxsae.errors import BadInput
from jaxsae.sae.config import SAEConfig
from jaxsae.training.checkpoint import Checkpoints
from jaxsae.training.logs import LogConfig
from jaxsae.training.loop import Member, train
from jaxsae.training.program import make_program
from tests import configs

ROOT = Path(__file__).parents[2]
d = 16
PROGRAM = make_program(SAEConfig(64, 4), configs.training(tokens=4096, batch_size=32), d)


def state_on(mesh):
    batches = SimpleNamespace(sample=lambda rows: jax.random.normal(jax.random.key(3), (128, d)))
    return PROGRAM.first_state(batches, mesh)


def at_step(state, step):
    """Another state: every float differs from those of other steps."""
    bump = lambda a: a + step if jnp.issubdtype(a.dtype, jnp.floating) else a
    return replace(jax.tree.map(bump, state), step=state.step + step)


def values(state):
    data = lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
    return [np.asarray(data(a)) for a in jax.tree.leaves(state)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with checkpoints of steps 1, 2 and 3, of which the newest two are kept, and those states' values."""
    mesh = make_mesh(2, 4)
    folder = tmp_path_factory.mktemp("checkpoints")
    with jax.set_mesh(mesh), Checkpoints(folder, 2) as checkpoints:
        states = {step: at_step(state_on(mesh), step) for step in (1, 2, 3)}
        for state in states.values():
            checkpoints.save(state)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
    return folder, {step: values(state) for step, state in states.items()}


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "checkpoints")


def restored(folder, mesh=(2, 4)):
    mesh = make_mesh(*mesh)
    with Checkpoints(folder, 2) as checkpoints:
        return checkpoints.restore(PROGRAM.abstract_state(mesh))


@pytest.mark.parametrize("mesh", [(2, 4), (8, 1), (1, 8), (1, 1)], ids=str)
def test_bit_equal_on_any_mesh(written, folder, mesh):
    state = restored(folder, mesh)
    for a, b in zip(values(state), written[1][3]):
        np.testing.assert_array_equal(a, b)
    assert state.params.W_enc.sharding.mesh.shape == dict(zip(("data", "latent"), mesh))


def test_without_the_optimizer(written, folder):
    """It is not even read; what is read is checked all the same."""
    shutil.rmtree(folder / "3" / "optimizer")
    mesh = make_mesh(1, 8)
    like = replace(PROGRAM.abstract_state(mesh), opt=None)
    with Checkpoints(folder, 2) as checkpoints:
        state = checkpoints.restore(like)
        assert int(state.step) == 3
        whole = restored(folder.parent / "checkpoints")
        assert int(whole.step) == 2, "with the optimizer, that checkpoint is damaged"
    with Checkpoints(shutil.copytree(written[0], folder.parent / "whole"), 2) as checkpoints:
        whole = replace(checkpoints.restore(PROGRAM.abstract_state(mesh)), opt=None)
    for a, b in zip(values(state), values(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_none_where_there_is_none(tmp_path):
    assert restored(tmp_path / "new") is None


def weights(folder):
    """The files that hold the numbers of the weights."""
    return [p for p in (folder / "weights").rglob("d/*") if p.stat().st_size > 1000]


def flip(path):
    """One bit in the middle: the file still parses."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "truncated": lambda f: [p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]) for p in weights(f)],
    "one bit": lambda f: [flip(p) for p in weights(f)],
    "emptied": lambda f: [p.write_bytes(b"") for p in weights(f)],
    "file gone": lambda f: [p.unlink() for p in weights(f)],
    "part gone": lambda f: shutil.rmtree(f / "optimizer"),
    "metadata garbage": lambda f: [p.write_text("{") for p in f.rglob("_METADATA")],
    "all garbage": lambda f: [p.write_bytes(b"x") for p in f.rglob("*") if p.is_file()],
    "no files": lambda f: [p.unlink() for p in f.rglob("*") if p.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_newest_falls_back_and_says_so(written, folder, capsys, damage):
    damage(folder / "3")
    state = restored(folder)
    for a, b in zip(values(state), written[1][2]):
        np.testing.assert_array_equal(a, b)
    said = capsys.readouterr().err
    assert "step 3" in said and "damaged" in said and "step 2" in said
    # Training comes to step 3 again, and its checkpoint takes the damaged one's place.
    with Checkpoints(folder, 2) as checkpoints, jax.set_mesh(make_mesh(2, 4)):
        checkpoints.save(at_step(state, 1))
        checkpoints.wait()
    assert int(restored(folder).step) == 3


def test_all_damaged(folder):
    for step in ("2", "3"):
        DAMAGE["truncated"](folder / step)
    with pytest.raises(BadInput, match="none of the checkpoints 2, 3"):
        restored(folder)
    assert (folder / "2").exists() and (folder / "3").exists()


def test_opening_for_training_removes_nothing_but_what_a_save_left(written, folder):
    """Orbax's own tidying would take every folder that has its mark somewhere in the name."""
    left = ["4.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1700000000"]
    kept = ["best.orbax-checkpoint-tmp", "3.orbax-checkpoint-tmp.bak", "notes"]
    for name in left + kept:
        shutil.copytree(folder / "3" / "facts", folder / name)
    (folder / "6.orbax-checkpoint-tmp").write_text("a file")
    with Checkpoints(folder, 2, tidy=False):
        assert all((folder / name).exists() for name in left + kept)
    with Checkpoints(folder, 2) as checkpoints, jax.set_mesh(make_mesh(2, 4)):
        assert {path.name for path in folder.iterdir()} == {"2", "3", "6.orbax-checkpoint-tmp", *kept}
        # Training comes by the step whose checkpoint was left unfinished.
        checkpoints.save(at_step(state_on(make_mesh(2, 4)), 4))
    assert int(restored(folder).step) == 4


def test_orbax_is_pinned_to_versions_that_were_tried():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (pin,) = (line for line in setup["options"]["install_requires"].splitlines() if line.startswith("orbax-checkpoint"))
    numbers = lambda version: tuple(map(int, version.split(".")))
    least, below = re.fullmatch(r"orbax-checkpoint>=([\d.]+),<([\d.]+)", pin).groups()
    (exact,) = re.findall(r"^orbax-checkpoint==([\d.]+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    for version in (exact, metadata.version("orbax-checkpoint")):
        assert numbers(least) <= numbers(version) < numbers(below)


def diverging(folder, name, at, every):
    """A run of 20 steps whose loss or gradient, `name`, is no number at step `at`; what its error says."""
    mesh = make_mesh(1, 1)

    def step(state, batch, number):
        metrics = {"loss": 1.0, "grad_norm": 1.0, "nmse": 1.0, "dead_fraction": 0.0}
        return at_step(state, 1), metrics | ({name: float("nan")} if number == at else {})

    rows = LogConfig(log_every=100, checkpoint_every=every)
    with jax.set_mesh(mesh), Checkpoints(folder, 2) as checkpoints:
        member = Member(state_on(mesh), step, checkpoints, SimpleNamespace(write=lambda row: None), rows)
        train([member], [None] * 20, 20, 32)
    return str(member.error)


@pytest.mark.parametrize(
    "name, at, every, newest",
    [
        ("loss", 9, 4, 4),  # the weights after step 8 have no finite loss, and were saved
        ("loss", 11, 4, 8),
        ("grad_norm", 9, 4, 8),
        ("loss", 5, 4, 4),  # the only one is better than none
    ],
)
def test_a_run_that_diverged_leaves_a_checkpoint_with_a_finite_loss(tmp_path, name, at, every, newest):
    assert f"{name} became nan at step {at}" in diverging(tmp_path, name, at, every)
    state = restored(tmp_path, (1, 1))
    assert int(state.step) == newest
