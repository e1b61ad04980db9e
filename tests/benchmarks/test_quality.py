"""quality.py on a tiny language model's activations, jaxsae beside a made-up library; no PyTorch and no environment."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import common, quality, quality_table
from benchmarks.peers.protocol import WorkerFailed
from jaxsae.cli import main
from jaxsae.data.arrays import read
from jaxsae.data.config import DataConfig
from jaxsae.run.harvest import harvest
from jaxsae.run.harvest_config import HarvestConfig

ROOT = Path(__file__).parents[2]

# It learns nothing, but writes files that sparsify would write: at its own rate what it reconstructs with, at a larger
# one something else, at a smaller one what diverged.
FAKE = """
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PACKAGES = ("pytest",)

def train(settings):
    rows, n, k = np.load(settings["rows"], mmap_mode="r"), settings["n"], settings["k"]
    W = np.random.default_rng(settings["seed"]).normal(size=(n, rows.shape[1])).astype(np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    b = rows.mean(0)
    x = np.load(settings["check"])
    u = (x - b) @ W.T
    kept = np.sort(u, 1)[:, -k:-k + 1]
    np.save(settings["reconstructed"], np.where(u >= kept, np.maximum(u, 0), 0) @ W + b)
    out = Path(settings["out"])
    out.mkdir(parents=True)
    saved = W * {1: 1, 3: 1.1}.get(settings["factor"], np.nan)
    arrays = {"encoder.weight": W, "encoder.bias": np.zeros(n, np.float32), "W_dec": saved, "b_dec": b}
    save_file({name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}, out / "sae.safetensors")
    config = {"num_latents": n, "k": k, "d_in": rows.shape[1], "activation": "topk", "normalize_decoder": True}
    (out / "cfg.json").write_text(json.dumps(config))
    return {"lr": 0.5 * settings["factor"], "saved": str(out), "seconds": 1.0, "cpu_seconds": 1.0}
"""


@pytest.fixture(scope="module")
def activations(tiny_lm, tiny_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    data = DataConfig(text=(str(tiny_text),), context=16, cache=str(folder / "cache"))
    out = str(folder / "activations")
    harvest(HarvestConfig(out, str(tiny_lm), tokens=1024, held_out_tokens=256, shard_tokens=512, data=data))
    return out


def asked(activations, *more):
    sizes = "--n 64 --k 4 --tokens 1024 --batch-size 64 --device cpu".split()
    return ["--activations", activations, *sizes, *more]


def test_libraries_are_compared_on_the_same_rows_and_failures_are_named(activations, tmp_path, monkeypatch, capsys):
    (tmp_path / "fake_training.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    for name in ("JAX_PLATFORMS", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JAXSAE_CACHE", str(tmp_path / "cache"))
    fake = Namespace(environment="fake", title="Fake", options={}, module="fake_training")
    monkeypatch.setattr(quality, "PEERS", {"fake": fake})
    monkeypatch.setattr(quality, "python", lambda *_: Path(sys.executable))
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    ran = []

    def call(command):
        ran.append(command)
        assert main([*command, "--mesh", "1", "1"]) == 0
        rows.append(np.load(tmp_path / "work" / "rows.npy"))

    rows = []
    monkeypatch.setattr(quality, "call", call)
    readme = tmp_path / "README.md"
    readme.write_text(f"{quality_table.START}\n{quality_table.END}\n")
    flags = asked(activations, "--work", str(tmp_path / "work"), "--write", str(readme))
    quality.main(flags)

    # Every harvested row once, in another order; and jaxsae is given no rate.
    (seen,), harvested = rows, [read(path) for path in sorted(Path(activations).glob("train-*"))]
    harvested = np.concatenate([next(a[:] for n, a in shard.items() if n != "tokens") for shard in harvested])
    harvested = harvested.reshape(-1, 32)
    assert seen.shape == harvested.shape and not (seen == harvested).all()
    by_value = lambda a: a[np.lexsort(a.T)]
    np.testing.assert_array_equal(by_value(seen), by_value(harvested))
    assert "--lr" not in ran[0]

    (kept,) = (tmp_path / "results").glob("quality-*-n64-k4-1024-cpu.json")
    ours, small, own, large = json.loads(kept.read_text())["rows"]
    assert [ours["peer"], small["factor"], own["factor"], large["factor"]] == ["jaxsae", pytest.approx(1 / 3), 1, 3]
    assert "NaN" in small["trouble"] and "reconstructions differ by" in large["trouble"]
    assert own["difference"] < 1e-5 and own["best"] and own["edge"] is None and own["l0"] <= 4
    # By plain NumPy, from what the fake library itself makes of them: these are all held-out rows.
    x, xhat = np.load(tmp_path / "work" / "check.npy"), np.load(tmp_path / "work" / "fake-1" / "reconstructed.npy")
    assert len(x) == own["eval_tokens"] == 256
    fvu = lambda x, xhat: ((x - xhat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    centred = lambda a: a - a.mean(1, keepdims=True)
    assert own["fvu"] == pytest.approx(fvu(x, xhat), rel=1e-4)
    assert own["nmse"] == pytest.approx(fvu(centred(x), centred(xhat)), rel=1e-4)
    # jaxsae's own evaluation runs the language model on the same tokens, and sees the same rows.
    for row in (ours, own):
        assert row["fvu_of_text"] == pytest.approx(row["fvu"], rel=1e-3) and row["kl"] > 0
    assert own["fvu_ratio"] == own["fvu"] / ours["fvu"]
    lines = readme.read_text().splitlines()
    assert sum(line.startswith("| Fake") for line in lines) == 3 and sum("| failed |" in line for line in lines) == 2

    # What is done is not done again, and another comparison is not mixed with it.
    monkeypatch.setattr(quality, "train_peer", lambda *_: (_ for _ in ()).throw(WorkerFailed("asked again")))
    quality.main([*flags, "--rates", "1"])
    assert len(ran) == 1 and "asked again" not in capsys.readouterr().err
    with pytest.raises(SystemExit, match="another comparison"):
        quality.main([*flags, "--k", "5"])


def test_the_best_of_the_rates_is_marked_and_ratios_are_to_the_default():
    row = {
        "title": "A, plain",
        "version": "1.0",
        "lr": 0.01,
        "dead": 0.25,
        "l0": 16.0,
        "seconds": 5.0,
        "nmse": 0.2,
        "trouble": None,
    }
    rows = [row | {"peer": "jaxsae", "factor": 1, "fvu": 0.1, "delta_ce": 0.5, "kl": 0.5}]
    rows += [row | {"peer": "a", "factor": f, "fvu": v, "delta_ce": -0.1, "kl": 1.0} for f, v in ((0.5, 0.3), (1, 0.2))]
    rows += [row | {"peer": "b", "factor": f, "fvu": v, "delta_ce": 1.0, "kl": None} for f, v in ((1, 0.4), (2, 0.5))]
    ours, a_small, a_own, b_own, b_large = quality_table.compared(rows)
    assert [line.get("best", False) for line in (ours, a_small, a_own, b_own, b_large)] == [True, 0, True, True, 0]
    assert (ours["edge"], a_own["edge"], b_own["edge"]) == (None, "largest", "smallest")
    assert a_own["fvu_ratio"] == 2 and a_own["delta_ce_ratio"] is None and b_own["delta_ce_ratio"] == 2
    assert quality_table.cells(a_own) == (
        [
            "A 1.0, plain",
            "1.00e-02 (default) →",
            "**0.2000**",
            "2.000",
            "0.2000",
            "-0.1000",
            "",
            "1.0000",
            "2.00",
            "16.0",
        ]
        + ["25.0", "5.00"]
    )
    table = quality_table.quality_table([ours, {"title": "B", "factor": 3, "trouble": "it diverged"}]).splitlines()
    assert table[3].startswith("| B | × 3 | failed |") and len({line.count("|") for line in table}) == 1


def test_bad_flags_are_one_line(activations, tmp_path, capsys):
    for flags, said in (
        (["--peers", "unknown"], "invalid choice: 'unknown'"),
        (["--k", "65"], "--k is 65, and there are 64 latents"),
        (["--rates", "0", "1"], "0.0 is none"),
        (["--batch-size", "0"], "--batch-size is 0: give at least 1"),
    ):
        with pytest.raises(SystemExit):
            quality.main(asked(activations, *flags))
        assert said in capsys.readouterr().err
    index = json.loads((Path(activations) / "harvest.json").read_text())
    (tmp_path / "harvest.json").write_text(json.dumps(index | {"tokens": {"train": 1024}}))
    (tmp_path / "no-markers.md").write_text("text\n")
    for flags, said in (
        (asked(str(tmp_path)), "has no held-out part"),
        (asked(str(tmp_path / "absent")), "is no folder that `jaxsae harvest` wrote"),
        (asked(activations, "--tokens", "1025"), "1088 in whole batches, and .* has 1024 for training"),
        (asked(activations, "--write", str(tmp_path / "no-markers.md")), "no-markers.md: put one line"),
    ):
        with pytest.raises(SystemExit, match=said):
            quality.main(flags)


def test_a_command_that_fails_says_why():
    with pytest.raises(WorkerFailed, match=r"status 2: .*there is no command 'nothing'"):
        quality.call(["nothing"])
