"""`jaxsae plan` as it is typed; with libtpu, the real step compiled for a TPU."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxsae.cli import main
from jaxsae.config import Config, to_json, with_fields
from jaxsae.distributed.mesh import make_mesh
from jaxsae.lm.gpt2 import GPT2Config
from jaxsae.lm.place import on_mesh
from jaxsae.lm.weights import open_model
from jaxsae.planning import compiler
from jaxsae.planning.devices import topology
from jaxsae.planning.language_model import lm_bytes

SMALL = "--sae.n 4096 --sae.k 8 --batch-size 1024".split()

needs_libtpu = pytest.mark.skipif(not compiler.available(), reason="libtpu is not installed: pip install jaxsae[tpu]")


@pytest.fixture
def say(capsys):
    """say("--topology v5e:2x2 ...") -> (exit status, stdout, stderr)."""

    def run(flags):
        status = main(["plan", *flags.split()])
        return status, *capsys.readouterr()

    return run


def test_table(say):
    status, out, err = say("--topology h100:8 --d-model 768 --sae.n 131072 --batch-size 8192")
    assert (status, err) == (0, "")
    for said in ("h100:8: 8 devices, mesh data 8 x latent 1", "n 131,072", "gradients", "all-reduce over data"):
        assert said in out
    assert "analytic figures\nfits: " in out


def test_json(say):
    status, out, _ = say("--topology v5e:4x4 --no-compile --d-model 768 --sae.n 131072 --json")
    said = json.loads(out)
    assert status == 0
    assert said["fits"] is True
    assert said["compiled"] is None
    assert said["mesh"] == [16, 1]
    assert [said[name] for name in ("topology", "activation", "n", "d", "k")] == ["v5e:4x4", "topk", 131072, 768, 32]
    assert said["batch_size"] == 2048
    sizes = said["bytes"]
    assert sizes["total"] == sum(size for name, size in sizes.items() if name not in ("total", "available"))
    assert said["seconds"]["total"] > said["seconds"]["select"] > 0


def test_too_large_is_an_answer_not_an_error(say):
    status, out, _ = say("--topology l4:1 --d-model 4096 --sae.n 4194304 --json")
    said = json.loads(out)
    assert (status, said["fits"]) == (0, False)
    assert said["bytes"]["total"] > said["bytes"]["available"]


def test_width_of_the_model_and_of_files(say, tiny_lm, tmp_path):
    width = lambda flags: json.loads(say(f"--topology l4:1 --json {flags}")[1])
    of_lm = width(f"--lm {tiny_lm}")
    assert of_lm["d"] == 32
    assert width(f"--lm {tiny_lm} --hook blocks.1.mlp.hook_post")["d"] == 128
    transcoder = width(f"--lm {tiny_lm} --hook blocks.1.mlp.hook_in --hook-out blocks.1.mlp.hook_post")
    assert (transcoder["d"], transcoder["d_out"]) == (32, 128)
    crosscoder = width(f"--lm {tiny_lm} --hook blocks.0.hook_resid_post blocks.1.hook_resid_post --sae.crosscoder")
    assert (crosscoder["d"], crosscoder["d_out"]) == (64, None)
    np.save(tmp_path / "a.npy", np.zeros((8, 24), np.float32))
    of_files = width(f"--activations {tmp_path}")
    assert of_files["d"] == 24
    # Sixteen batches of activations; the model's weights only where there is a model.
    assert of_files["bytes"]["data"] == 16 * 2048 * 24 * 4
    assert of_files["bytes"]["lm"] == of_files["bytes"]["lm_work"] == width("--d-model 32")["bytes"]["lm"] == 0
    assert of_lm["bytes"]["data"] == width("--d-model 32")["bytes"]["data"] == 16 * 2048 * 32 * 4
    assert of_lm["bytes"]["lm"] > 0 and of_lm["bytes"]["lm_work"] > 0


def test_bytes_of_the_model(tiny_lm):
    """Its own arrays, whole and split over 8 devices, in float32 and in half of it."""
    host, mesh = open_model(str(tiny_lm)), make_mesh(4, 2)
    for dtype, shard in (("float32", False), ("float32", True), ("bfloat16", True)):
        lm = on_mesh(host, mesh, dtype, shard)
        of_one = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(lm.params))
        config = with_fields(Config(), lm_dtype=dtype, lm_shard=shard)
        assert lm_bytes(config, lm.config, 8, "gpu")["lm"] == of_one


def test_a_model_at_work_by_hand():
    """A GPT-2 as wide as GPT-2 XL: gathered, widened, and the activations of 8192 tokens."""
    d, vocabulary = 1600, 50_257
    lm = GPT2Config(vocab_size=vocabulary, n_ctx=1024, d_model=d, n_layer=4, n_head=25, n_inner=4 * d)
    work = lambda devices=8, **flags: lm_bytes(with_fields(Config(), **flags), lm, devices, "gpu")["lm_work"]
    # 16 contexts of 2048 tokens in all are buffered: neurons, before and after their activation function.
    activations = 4 * (2 * 4096 * d + 2 * 4096 * 4 * d)
    assert work() == activations
    assert work(context=1024) == 4 * (2 * 4096 * d + 2 * 25 * 4 * 1024**2)  # logits of attention
    embedding, positions = vocabulary * d, 1024 * d
    assert work(lm_shard=True) == activations + 4 * (embedding + positions)
    assert work(lm_dtype="bfloat16") == activations + 4 * embedding
    assert work(lm_dtype="bfloat16", lm_precision="bfloat16") == activations


def test_preset_and_config_give_the_defaults(say, tmp_path, monkeypatch):
    """--preset and --config say what the other flags default to, as they do for `jaxsae train`."""
    file, shape = tmp_path / "config.json", {"sae.n": 8192, "sae.activation": "relu", "batch_size": 512}
    file.write_text(to_json(config := with_fields(Config(), **shape)))
    presets = SimpleNamespace(preset={"my-preset": config}.get)
    monkeypatch.setitem(sys.modules, "jaxsae.presets", presets)
    for source in (f"--config {file}", "--preset my-preset"):
        said = json.loads(say(f"--topology l4:1 --d-model 64 --json {source}")[1])
        assert [said[name] for name in ("activation", "n", "batch_size")] == ["relu", 8192, 512]
        said = json.loads(say(f"--topology l4:1 --d-model 64 --json {source} --sae.n 4096")[1])
        assert [said[name] for name in ("activation", "n", "batch_size")] == ["relu", 4096, 512]


def test_matryoshka_prefixes_follow_the_largest_n(say):
    status, out, _ = say("--topology l4:1 --d-model 768 --sae.n 1024 --sae.prefixes 512 1024 --find-largest-n --json")
    assert (status, json.loads(out)["n"] > 2**16) == (0, True)


def test_largest_n(say):
    status, out, _ = say("--topology a100-40:8 --d-model 768 --sae.n 1024 --find-largest-n --json")
    best = json.loads(out)
    assert (status, best["fits"]) == (0, True)
    assert best["n"] > 2**20
    more = best["n"] * 17 // 16 // 1024 * 1024
    assert not json.loads(say(f"--topology a100-40:8 --d-model 768 --sae.n {more} --json")[1])["fits"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--d-model 64", "--topology is not given, and this machine has no accelerator"),
        ("--topology v9:2x2 --d-model 64", "allowed are v4, v5e"),
        ("--topology v5e:2x2 --no-compile --d-model 0", "--d-model is 0"),
        ("--topology v5e:2x2 --no-compile --mesh 8 1", "--mesh 8 1 asks for 8 devices: v5e:2x2 has 4"),
        ("--topology v5e:2x2 --lm ./missing", "--lm ./missing: there is no such folder"),
        ("--topology v5e:2x2 --hook blocks.3.hook_mlp_out --hook-out blocks.3.mlp.hook_in", "is not after blocks.3"),
        ("--topology v5e:2x2 --hook blocks.99.hook_resid_post", "outside the model"),
        ("--topology l4:1 --d-model 64 --objective e2e", "--objective e2e cannot be planned"),
        ("--topology l4:1 --d-model 4096 --batch-size 1048576 --buffer-batches 64 --find-largest-n", "not even 128"),
    ],
)
def test_bad_input(say, flags, said):
    status, out, err = say(flags)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_imports_stay_light():
    """The command line starts without the room and without what takes long to import."""
    heavy = ("jaxsae.planning", "scipy", "matplotlib", "transformers")
    code = f"import sys, jaxsae.cli; assert not [m for m in sys.modules if m.startswith({heavy})]"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@needs_libtpu
def test_compiled_for_a_tpu():
    """The real step for four chips of v5e, from a process whose JAX has never seen one."""
    flags = ["plan", "--topology", "v5e:2x2", "--d-model", "128", "--mesh", "2", "2", "--json", *SMALL]
    command = [sys.executable, "-m", "jaxsae.cli", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    said = json.loads(done.stdout)
    compiled = said["compiled"]
    assert said["fits"] is True
    assert "compiling for v5e:2x2, n 4,096" in done.stderr
    # Each device: 2048 latents of width 128 as parameters, two moments and EMA, and 512 tokens.
    state = 4 * (2 * 2048 * 128 + 2048 + 128) * 4
    arguments = compiled["bytes"]["arguments"]
    assert state + 4 * 512 * 128 < arguments < 1.02 * (state + 4 * 512 * 128) + 2**16
    assert said["bytes"]["total"] > arguments
    moved = {(c["kind"], c["axis"]): c["bytes"] for c in compiled["collectives"]}
    assert moved["all-gather", "latent"] == 4 * 512 * 8 * 2
    assert moved["all-reduce", "data"] >= 4 * 2 * 2048 * 128
    assert moved["all-reduce", "latent"] >= 4 * 512 * 128
    assert compiled["places"]


@needs_libtpu
def test_refused_by_the_tpu_compiler():
    """What does not fit is known to the compiler, and how much it would take is said."""
    sizes = {"sae.n": 2**22, "sae.k": 8, "sae.select_memory": 100.0, "batch_size": 2**16, "auxk_coef": 0.0}
    config = with_fields(Config(), **sizes)
    said = compiler.compiled(config, 256, topology("v5e:2x2"), (1, 4))
    assert said["bytes"]["needed"] > topology("v5e:2x2").device.memory


@needs_libtpu
def test_slices_that_are_not(say):
    status, _, err = say("--topology v5e:3x3 --d-model 128 --sae.n 4096 --batch-size 1152")
    assert status == 2
    assert "--topology v5e:3x3: libtpu knows no such slice" in err
