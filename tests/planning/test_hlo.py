"""Collectives read from programs: every notation of XLA's device groups, and a step compiled for simulated devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsae.config import Config, with_fields
from jaxsae.planning import compiler, estimate, hlo, timing
from jaxsae.sae.config import SAEConfig
from jaxsae.training.config import TrainingConfig
from tests.marks import slow

# A mesh of data 2 x latent 2: devices 0 1 hold one part of the tokens, 0 2 one part of the latents.
NOTATIONS = {
    "replica_groups={{0,1},{2,3}}": "latent",
    "replica_groups={{0,2},{1,3}}": "data",
    "replica_groups={{0,1,2,3}}": "data+latent",
    "replica_groups={}": "data+latent",
    "replica_groups={{0},{1},{2},{3}}": None,
    "replica_groups={{0,3},{1,2}}": "?",
    "replica_groups=[2,2]<=[4]": "latent",
    "replica_groups=[2,2]<=[2,2]T(1,0)": "data",
    "replica_groups=[1,4]<=[4]": "data+latent",
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}": "data",
    "replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=2] {'axis_2'}": "latent",
    "replica_groups=mesh['a'=2,'b'=2] {'a','b'}": "data+latent",
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}": "latent",
    "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'b'}": "data",
}


@pytest.mark.parametrize("groups", NOTATIONS)
def test_axis(groups):
    line = f"  %x.1 = f32[8,4]{{1,0:T(8,128)}} all-reduce(%y), channel_id=1, {groups}, to_apply=%add"
    found = hlo.collectives(line, (2, 2))
    assert [c.axis for c in found] == ([] if NOTATIONS[groups] is None else [NOTATIONS[groups]])
    assert [c.bytes for c in found] == [128] * len(found)


def test_tuples_and_starts():
    groups = "replica_groups={{0,1},{2,3}}"
    text = f"""
  %a = (f32[8,4]{{1,0}}, s32[3]{{0}}, /*index=2*/bf16[]) all-reduce(%x, %y, %z), {groups}
  ROOT %b = f32[2]{{0}} all-reduce(%w), {groups}
  %c = (f32[8,2]{{1,0}}, f32[8,4]{{1,0}}) all-gather-start(%x), {groups}, dimensions={{1}}
  %d = f32[8,4]{{1,0}} all-gather-done(%c)
  %e = f32[4,4]{{1,0}} reduce-scatter(%x), {groups}
"""
    found = {c.kind: c for c in hlo.collectives(text, (2, 2))}
    assert found["all-reduce"].bytes == 8 * 4 * 4 + 3 * 4 + 2 + 2 * 4
    assert found["all-reduce"].count == 2
    assert found["all-gather"].bytes == found["reduce-scatter"].bytes == 8 * 4 * 4
    assert set(found) == {"all-reduce", "all-gather", "reduce-scatter"}


@pytest.mark.parametrize("mesh", [(2, 2), (4, 2), (1, 8)])
def test_psum_and_gather(mesh):
    """The axis of a real program's collectives, and their bytes."""
    mesh = jax.make_mesh(mesh, ("data", "latent"))

    def f(x):
        gathered = jax.lax.all_gather(x, "latent", axis=1, tiled=True)
        return jax.lax.psum(x * gathered.sum(), "data")

    with jax.set_mesh(mesh):
        g = jax.jit(jax.shard_map(f, in_specs=P("data", "latent"), out_specs=P(None, "latent"), check_vma=False))
        x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, P("data", "latent")))
        text = g.lower(x).compile().as_text()
    data, latent = mesh.axis_sizes
    found = {(c.kind, c.axis): c.bytes for c in hlo.collectives(text, (data, latent))}
    assert found["all-gather", "latent"] == 4 * (8 // data) * 64
    assert found.get(("all-reduce", "data"), 0) == (4 * (8 // data) * (64 // latent) if data > 1 else 0)


def test_memory_report():
    """As libtpu 0.0.42 writes it, shortened."""
    text = """Memory Space: default (color=0)
Total bytes: 2622938624 (2.44GiB)
  cumulative_size;       size;       offset; used_by_n_values; shapes_list
  ------------------------------------------------------------
  192.00MiB( 17%);  192.00MiB;       491520;                9; 2×f32[512,768], 5×f32[65536,768]
    1.06GiB( 99%);    1.50GiB;            0;                7; f32[512,65536]
    1.07GiB(100%);   256.0KiB;     10813440;                1; s32[65536]
    1.07GiB(100%);       512B;   4048502784;                1; (s32[512], pred[512])
"""
    total, places = hlo.memory_report(text, 3)
    assert total == 2622938624
    assert places == [
        {"bytes": 3 * 2**29, "shapes": "f32[512,65536]"},
        {"bytes": 192 * 2**20, "shapes": "2×f32[512,768], 5×f32[65536,768]"},
        {"bytes": 2**18, "shapes": "s32[65536]"},
    ]
    assert hlo.memory_report("") == (None, [])


CASES = [slow((2, 4), 0.0, "topk"), ((2, 4), 1 / 32, "topk"), slow((8, 1), 0.0, "topk")]
CASES += [((2, 4), 0.0, name) for name in ("multi_topk", "batch_topk", "gated")]


@pytest.mark.parametrize(("mesh", "auxk", "activation"), CASES)
def test_estimated_transfers_are_in_the_step(mesh, auxk, activation):
    """What the estimate says is moved, a step compiled for simulated devices moves, over the same axis."""
    sae = SAEConfig(n=512, k=4, activation=activation)
    training = with_fields(TrainingConfig(), batch_size=64, auxk_coef=auxk, k_aux=8)
    step = compiler.compile_step(Config(sae=sae, training=training), 32, jax.devices(), mesh)
    text = step.as_text()
    found = hlo.collectives(text, mesh)
    by_kind = lambda rows: {key: sum(r.bytes for r in rows if (r.kind, r.axis) == key) for key in KEYS}
    KEYS = [("all-gather", "latent"), ("all-reduce", "latent"), ("all-reduce", "data")]
    size = estimate.Size(sae, training, 32, *mesh)
    estimated = by_kind(timing.transfers(size, estimate.state_bytes(size)["parameters"]))
    # The program has the gradient twice, with and without dead latents; each view's part of it may be summed alone.
    for key in KEYS:
        assert estimated[key] <= by_kind(found)[key] <= 2.6 * estimated[key] + 4096, key
    assert {(c.kind, c.axis) for c in found if c.bytes > 4096} <= set(KEYS)
