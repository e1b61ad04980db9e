"""The estimate against numbers worked out by hand, against arrays that exist, and against XLA's memory."""

import jax
import numpy as np
import pytest

from jaxsae.config import Config, with_fields
from jaxsae.distributed.mesh import mesh_shape
from jaxsae.errors import BadInput
from jaxsae.planning import compiler, estimate
from jaxsae.planning.devices import DEVICES, GIB, topology, topology_of
from jaxsae.planning.plan import plan
from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.scaling import flops
from jaxsae.training.config import TrainingConfig
from jaxsae.training.program import make_program
from tests.marks import slow

MILLION = 2**20


def config(n=16 * MILLION, k=32, batch=131_072, mesh=None, **more):
    values = {"sae.n": n, "sae.k": k, "batch_size": batch, "mesh": mesh, "tokens": 10**10, "buffer_batches": 4}
    return with_fields(Config(), **values | more)


def test_a_pod_by_hand():
    """16M latents of width 768 on 64 chips, 4 x 16: b = 32,768 tokens, m = 1,048,576 latents of a device."""
    p = plan(config(mesh=(4, 16)), topology("v5p:4x4x4"), 768, compile=False)
    matrices = 2 * 4 * MILLION * 768
    assert p.bytes["parameters"] == matrices + 4 * MILLION + 4 * 768
    assert p.bytes["optimizer"] == 2 * p.bytes["parameters"] + 4  # and Adam's count
    assert p.bytes["ema"] == p.bytes["parameters"]
    assert p.bytes["other"] == 4 * MILLION + 4 + 8 + 4  # idle counts, scale, key, step
    assert p.bytes["gradients"] == p.bytes["parameters"]
    assert p.bytes["batch"] == 4 * 32_768 * 768
    assert p.bytes["data"] == 4 * p.bytes["batch"]
    assert p.flops["select"] == 2 * 32_768 * MILLION * 768
    # Six bfloat16 passes of 459 TFLOP/s.
    assert p.seconds["select"] == pytest.approx(6 * 2 * 32_768 * MILLION * 768 / 459e12)
    # Each of parameters, two moments and EMA read and written, the gradient read: 2765 GB/s.
    assert p.seconds["optimizer"] == pytest.approx(9 * (matrices + 4 * MILLION) / 2765e9)
    moved = {t.name: t.bytes for t in p.transfers}
    assert moved["top-k candidates"] == 4 * 32_768 * 32 * 16
    assert moved["reconstruction"] == 4 * 32_768 * 768
    assert moved["gradients"] == p.bytes["gradients"]
    assert moved["firing counts"] == 4 * MILLION
    assert moved["AuxK counts"] == 31 * 4 * 32_768
    # A ring of 16 (of 4) on links of 200 GB/s.
    latent = 15 / 16 * (moved["top-k candidates"] + 2 * moved["reconstruction"] + 2 * moved["L0"])
    data = 3 / 4 * 2 * (moved["gradients"] + moved["firing counts"])
    assert p.seconds["interconnect"] == pytest.approx((latent + data) / 200e9)
    parts = sum(p.seconds[name] for name in ("select", "decode", "gradient", "optimizer", "interconnect"))
    assert p.seconds["total"] == pytest.approx(parts)
    assert p.tokens_per_second == pytest.approx(131_072 / parts)


@pytest.mark.parametrize(("select", "times"), [("float32", 6), ("tf32", 3), ("bfloat16", 1)])
def test_precision_of_the_selection_on_a_tpu(select, times):
    p = plan(config(mesh=(4, 16), **{"sae.select_precision": select}), topology("v5p:4x4x4"), 768, compile=False)
    assert p.seconds["select"] == pytest.approx(times * 2 * 32_768 * MILLION * 768 / 459e12)


def test_pieces():
    """Micro-batches: temporaries of a piece, a gradient and its all-reduce for each."""
    one = plan(config(mesh=(4, 16)), topology("v5p:4x4x4"), 768, compile=False)
    four = plan(config(mesh=(4, 16), micro_batches=4), topology("v5p:4x4x4"), 768, compile=False)
    moved = lambda p, name: next(t.bytes for t in p.transfers if t.name == name)
    assert moved(four, "gradients") == 4 * moved(one, "gradients")
    assert moved(four, "reconstruction") == moved(one, "reconstruction")
    assert four.temporaries["piece"] == four.bytes["gradients"]
    assert four.temporaries["candidates"] == one.temporaries["candidates"] // 4
    # A gigabyte of pre-activations is 7,552 latents of 32,768 tokens, in whole tiles of 128.
    assert one.temporaries["selection"] == 4 * 32_768 * 7552
    assert plan(config(mesh=(4, 16)), topology("h100:8x8"), 768).temporaries["selection"] == 2 * 4 * 32_768 * 7552


def test_temporaries_at_once():
    """Gradients are not there while latents are chosen."""
    parts = {"selection": 50, "candidates": 5, "tokens": 3, "codes": 1, "copies": 20, "piece": 0, "auxk": 7}
    assert estimate.at_once(parts, gradients=10, dense=False) == 4 + 45
    assert estimate.at_once(parts, gradients=40, dense=False) == 4 + 27
    of_dense = {**parts, "selection": 0, "candidates": 0, "codes": 60, "copies": 0}
    assert estimate.at_once(of_dense, gradients=10, dense=True) == 3 + 57
    assert estimate.at_once(of_dense, gradients=70, dense=True) == 3 + 7


def test_hosts_of_gpus():
    """`latent` stays on a host of 8, `data` goes over the network of 400 Gbit/s."""
    p = plan(config(n=2**18, batch=4096, mesh=(2, 8), auxk_coef=0), topology("h100:2x8"), 768, compile=False)
    moved = {t.name: t.bytes for t in p.transfers}
    latent = 7 / 8 * (moved["top-k candidates"] + 2 * moved["reconstruction"] + 2 * moved["L0"]) / 450e9
    data = 1 / 2 * 2 * (moved["gradients"] + moved["firing counts"]) / 50e9
    assert p.seconds["interconnect"] == pytest.approx(latent + data)
    assert not any(t.only_auxk for t in p.transfers)
    assert p.seconds["auxk_interconnect"] == p.flops["auxk_at_1_percent_dead"] == 0


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (1, 8), (2, 4)])
@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_state_bytes_are_those_of_real_arrays(mesh, ema):
    sae, training = SAEConfig(n=64, k=4), with_fields(TrainingConfig(), batch_size=16, ema=ema)
    where = jax.make_mesh(mesh, ("data", "latent"), devices=jax.devices()[: mesh[0] * mesh[1]])
    with jax.set_mesh(where):
        state = make_program(sae, training, 16).init(np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32))
    of_first = lambda x: sum(s.data.nbytes for s in x.addressable_shards if s.device == jax.devices()[0])
    raw = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    real = lambda tree: sum(of_first(raw(x)) for x in jax.tree.leaves(tree))
    found = estimate.state_bytes(estimate.Size(sae, training, 16, *mesh))
    assert found["parameters"] == real(state.params)
    assert found["optimizer"] == real(state.opt)
    assert found["ema"] == real(state.ema)
    assert sum(found.values()) == real(state)


FAMILIES = tuple(activation_functions.REGISTRY)


@pytest.mark.parametrize("activation", FAMILIES)
def test_flops_and_slots_of_every_family(activation):
    """Those of a device are its share, and a code has the slots that the family says."""
    sae = {"sae.activation": activation}
    p = plan(config(n=2**14, batch=4096, mesh=(2, 1), auxk_coef=0, **sae), topology("h100:2"), 256)
    parts = flops.autoencoder(SAEConfig(2**14, 32, activation), 256)
    assert {name: p.flops[name] for name in parts} == {name: 2048 * each for name, each in parts.items()}
    slots = {"topk": 32, "multi_topk": 128, "batch_topk": 512}.get(activation)
    codes = 8 * slots if slots else 2**14 * estimate.dense_codes(SAEConfig(2**14, 32, activation))
    assert p.temporaries["codes"] == 4 * 2048 * codes


def test_transfers_of_families():
    def moved(activation, **more):
        more = {"sae.activation": activation, **more}
        p = plan(config(n=2**14, batch=4096, mesh=(1, 4), auxk_coef=0, **more), topology("h100:4"), 256)
        return {t.name: t.bytes for t in p.transfers}

    assert moved("topk")["top-k candidates"] == 4 * 4096 * 32 * 4
    # At 4k for the support, and once more for the view of k.
    assert moved("multi_topk")["top-k candidates"] == 2 * 4 * 4096 * 128 * 4
    assert all("top-k candidates" not in moved(name) for name in ("batch_topk", "relu", "gated"))
    assert moved("relu")["reconstruction"] == 4 * 4096 * 256
    assert moved("gated")["reconstruction"] == 2 * 4 * 4096 * 256
    assert moved("topk", **{"sae.prefixes": (64, 2**14)})["reconstruction"] == 2 * 4 * 4096 * 256


@pytest.mark.parametrize("activation", FAMILIES)
@pytest.mark.parametrize("prefixes", [slow(()), (256, 4096)])
def test_memory_against_xla(activation, prefixes):
    """Arguments and temporaries of the compiled step on this CPU, within 25 %.

    Here AuxK keeps the pre-activations of all dead latents.
    """
    c = config(n=4096, k=8, batch=2048, **{"sae.activation": activation, "sae.prefixes": prefixes})
    estimated = plan(c, topology("v5e:1x1"), 128, compile=False)
    memory = compiler.compile_step(c, 128, jax.devices()[:1], (1, 1)).memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert estimated.bytes["total"] - estimated.bytes["data"] == pytest.approx(needed, rel=0.25)


@pytest.mark.parametrize(
    "d, d_out, coder",
    [
        (128, 256, {"sae.skip": True, "hook": "a", "hook_out": "b"}),
        (256, None, {"sae.sections": 2, "activations": "x"}),
    ],
)
def test_memory_of_coders_against_xla(d, d_out, coder):
    """A skip transcoder, and a crosscoder, as above."""
    c = config(n=4096, k=8, batch=2048, **coder)
    estimated = plan(c, topology("v5e:1x1"), d, compile=False, d_out=d_out)
    memory = compiler.compile_step(c, d, jax.devices()[:1], (1, 1), d_out).memory_analysis()
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert estimated.bytes["total"] - estimated.bytes["data"] == pytest.approx(needed, rel=0.25)
    assert estimated.bytes["batch"] == 4 * 2048 * (d + (d_out or 0))


def test_a_skip_transcoder_by_hand():
    """Of one device with 2^14 latents and 4096 tokens, from width 256 to 1024."""
    coder = {"sae.skip": True, "hook": "a", "hook_out": "b", "auxk_coef": 0}
    p = plan(config(n=2**14, batch=4096, **coder), topology("h100:1"), 256, compile=False, d_out=1024)
    assert p.bytes["parameters"] == 4 * (2**14 * (256 + 1024 + 1) + 256 + 1024 + 1 + 256 * 1024)
    assert p.flops["decode"] == 2 * 4096 * 32 * 1024 and p.flops["gradient"] == 2 * 4096 * 32 * (256 + 2 * 1024)
    assert p.flops["skip"] == 4 * 4096 * 256 * 1024 and p.seconds["skip"] > 0
    # Rows that are read: once for the output, once for the gradient of the values; and read and written for that of
    # the decoder and of the encoder.
    bandwidth = topology("h100:1").device.bandwidth
    assert p.seconds["decode"] == pytest.approx(4 * 4096 * 32 * 1024 / bandwidth)
    assert p.seconds["gradient"] == pytest.approx(4 * 4096 * 32 * (3 * 1024 + 2 * 256) / bandwidth)
    moved = plan(config(n=2**14, batch=4096, mesh=(1, 4), **coder), topology("h100:4"), 256, compile=False, d_out=1024)
    assert next(t.bytes for t in moved.transfers if t.name == "reconstruction") == 4 * 4096 * 1024


def test_topologies():
    assert topology("V5P:4x4x4").count == 64
    assert topology("v4:2x2x1").count == 4
    assert topology("tpu7x:2x2x1").count == 8  # two devices of a chip
    assert (topology("h100:2x8").count, topology("h100:2x8").per_host) == (16, 8)
    assert topology("l4:1").count == 1
    assert topology("v5e:4x4").device.memory == 15.75 * GIB


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v9:2x2", "allowed are v4, v5e"),
        ("v5e", "AxB chips"),
        ("v5e:4", "AxB chips"),
        ("v5p:4x4", "AxBxC chips"),
        ("v5e:4xfour", "AxB chips"),
        ("v5e:0x4", "AxB chips"),
        ("h100:2x2x2", "HOSTSxN"),
        ("rtx4090:2x4", "no network"),
    ],
)
def test_bad_topologies(name, said):
    with pytest.raises(BadInput, match=said) as error:
        topology(name)
    assert name in str(error.value)


def test_this_machine():
    assert topology_of("TPU v5 lite", 16, 2).name == "v5e:4x4"
    assert topology_of("TPU v5", 64, 16).name == "v5p:4x4x4"
    assert topology_of("TPU v5", 8, 2).name == "v5p:2x2x2"
    assert topology_of("TPU7x", 8, 1).name == "tpu7x:1x2x2"
    assert topology_of("NVIDIA H100 80GB HBM3", 16, 2).name == "h100:2x8"
    assert topology_of("NVIDIA A100-SXM4-80GB", 8, 1).name == "a100-80:8"
    with pytest.raises(BadInput, match="Radeon"):
        topology_of("Radeon", 1, 1)


def test_every_device_is_whole():
    for name, device in DEVICES.items():
        assert device.matmul["float32"] <= device.matmul["tf32"] <= device.matmul["bfloat16"], name
        assert 2**33 < device.memory < 2**38, name
        assert device.network is None or device.network < device.link < device.bandwidth, name


def test_mesh_shape():
    v5p = topology("v5p:4x4x4")
    # 16M latents: five copies of 103 GB, of which 16 parts leave half of 95 GiB.
    assert mesh_shape(64, v5p.device.memory, 16 * MILLION, 768, 131_072) == (4, 16)
    assert mesh_shape(64, v5p.device.memory, MILLION, 768, 131_072) == (64, 1)
    # Too much for any: all on latent.
    assert mesh_shape(16, 2**34, 16 * MILLION, 768, 4096) == (1, 16)
    # Memory unknown: all that divide the batch on data.
    assert mesh_shape(8, None, 4096, 64, 2048) == (8, 1)
    assert mesh_shape(6, None, 4096, 64, 2048) == (4, 1)
    assert mesh_shape(1, 2**30, 4096, 64, 2047) == (1, 1)
    # A batch that 8 does not divide, latents that it does.
    assert mesh_shape(8, None, 4096, 64, 30) == (2, 4)


@pytest.mark.parametrize(
    ("given", "d", "said"),
    [
        ({"mesh": (8, 16)}, 768, "asks for 128 devices"),
        ({"mesh": (0, 4)}, 768, "two positive numbers"),
        ({"mesh": (3, 1)}, 768, "--batch-size 131072"),
        ({"mesh": (64, 1), "micro_batches": 4096}, 768, "in --micro-batches 4096: give a multiple of 262144"),
        ({"mesh": (1, 64), "n": 1000}, 768, "--sae.n 1000"),
        ({}, 0, "--d-model is 0"),
    ],
)
def test_bad_plans(given, d, said):
    with pytest.raises(BadInput, match=said):
        plan(config(**given), topology("v5p:4x4x4"), d, compile=False)
