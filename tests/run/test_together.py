"""Runs that are trained side by side: each folder is as if the run had been alone."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import jaxsae
from jaxsae.cli import main, parse
from jaxsae.config import with_fields
from jaxsae.errors import BadInput
from jaxsae.run.sites import at_hooks, from_file
from jaxsae.run.together import groups, train
from jaxsae.run.train import say_without_effect
from jaxsae.training import loop
from tests.run.commands import refused


@pytest.fixture
def base(flags):
    """The configuration of the run `finished`."""
    return parse(["train", *flags])[0].settings


def in_folders(folder, **configs):
    return {name: replace(config, run=str(folder / name), resume=True) for name, config in configs.items()}


def weights(folder):
    sae = jaxsae.load(folder)
    return [np.asarray(a) for a in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)]


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stack_that_is_killed_ends_with_the_bytes_of_single_runs(base, finished, tmp_path, monkeypatch):
    """One diverges, one may not write its folder; the others are killed between their saves, and go on."""
    configs = in_folders(
        tmp_path,
        same=base,
        seed=with_fields(base, seed=7, data_seed=0, lr=2e-3),
        wild=with_fields(base, lr=1e30),
    )
    assert groups(configs, "stack") == [["same", "seed", "wild"]]
    configs["other"] = replace(with_fields(base, seed=1), run=str(finished), resume=True)
    keep, saves = loop.Member.keep, []

    def killed(member, number, *args):
        keep(member, number, *args)
        saves.append(number)
        # Of the two that are left one has saved this step.
        if number == 30:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Member, "keep", killed)
        with pytest.raises(KeyboardInterrupt):
            train(configs)
    assert saves[-1] == 30 and saves[-2] == 29
    ended = []
    outcomes = train(configs, lambda name, outcome: ended.append(name))
    assert isinstance(outcomes["wild"], loop.Diverged) and "lower --lr" in str(outcomes["wild"])
    assert isinstance(outcomes["other"], BadInput) and "--seed was 0, not 1" in str(outcomes["other"])
    assert sorted(ended) == sorted(configs) and not (tmp_path / "wild" / "summary.json").exists()
    for file in ("sae/sae.safetensors", "sae/config.json"):
        assert (tmp_path / "same" / file).read_bytes() == (finished / file).read_bytes()
    for name in ("same", "seed"):
        assert steps(tmp_path / name) == steps(finished), "no row twice, none missing"
        assert outcomes[name]["step"] == 58 and math.isfinite(outcomes[name]["nmse"])
    assert not np.allclose(weights(tmp_path / "seed")[0], weights(finished)[0])
    # What is finished is skipped, and not even opened.
    before = (tmp_path / "seed" / "summary.json").read_bytes()
    again = train({name: replace(configs[name], data=replace(base.data, cache=None)) for name in ("same", "seed")})
    assert again["seed"] == json.loads(before) and (tmp_path / "seed" / "summary.json").read_bytes() == before


def test_several_hook_points_and_sizes_from_one_pass(flags, finished, tmp_path, capsys):
    hooks = ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"]
    sites_file = tmp_path / "sites.json"
    small = {"name": "small", "sae.n": 32, "lr": 2e-3, "sae.activation": "batch_topk"}
    sites_file.write_text(
        json.dumps([{"hook": hook} for hook in hooks] + [small, {"name": "lost", "hook": "blocks.9.x"}])
    )
    run = tmp_path / "run"
    assert main(["train", "--run", str(run), *flags, "--sites", str(sites_file)]) == 2
    said = capsys.readouterr()
    assert "lost: unknown hook point 'blocks.9.x'" in said.err and "saved in" in said.out
    for name, hook, n, d in ((hooks[0], hooks[0], 64, 32), (hooks[1], hooks[1], 64, 128), ("small", hooks[0], 32, 32)):
        about = jaxsae.describe(run / name)
        assert (about["hook"], about["n"], about["d"]) == (hook, n, d)
        assert steps(run / name) == steps(finished)
    assert not (run / "lost").exists()
    for a, b in zip(weights(run / hooks[0]), weights(finished)):
        np.testing.assert_allclose(a, b, atol=2e-3)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run / hooks[0], finished)]
    assert summaries[0]["nmse"] == pytest.approx(summaries[1]["nmse"], rel=1e-3)


def test_which_runs_can_share(base):
    change = lambda **values: with_fields(base, **values)
    configs = {
        "a": change(),
        "lr and k": change(lr=0.1, **{"sae.k": 2}),
        "n": change(**{"sae.n": 128}),
        "seed": change(seed=1),
        "seed of weights": change(seed=1, data_seed=0),
        "tokens": change(tokens=99_999),
        "hook": change(hook="blocks.1.hook_resid_post"),
        "schedule": change(schedule="cosine"),
        "e2e": change(objective="e2e"),
        "e2e lr": change(objective="e2e", lr=0.1),
        "multi 2": change(**{"sae.activation": "multi_topk", "sae.k": 2}),
        "multi 3": change(**{"sae.activation": "multi_topk", "sae.k": 3}),
    }
    assert groups(configs, "none") == [[name] for name in configs]
    stacks = [["a", "lr and k", "seed of weights"], ["n"], ["seed"], ["tokens"], ["hook"], ["schedule"]]
    assert groups(configs, "stack") == [*stacks, ["e2e", "e2e lr"], ["multi 2"], ["multi 3"]]
    one_pass = ["a", "lr and k", "n", "seed of weights", "hook", "schedule", "multi 2", "multi 3"]
    assert groups(configs, "pass") == [one_pass, ["seed"], ["tokens"], ["e2e", "e2e lr"]]
    logged = {name: change(wandb="project", lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))}
    assert groups(logged, "pass") == [["a"], ["b"]]
    files = {name: change(activations="f", hook=hook) for name, hook in (("a", None), ("b", "blocks.0.hook_resid_pre"))}
    assert groups(files, "pass") == [["a"], ["b"]]


def test_what_cannot_share_is_refused(flags, tmp_path, capsys):
    command = ["train", "--run", str(tmp_path / "run"), *flags]
    two = ["--hook", "blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]
    asked, flags = parse([*command, *two, "--seed", "1"])
    assert asked.hooks == tuple(two[1:]) and asked.settings.training.batch.seed == 1 and "--hook" in flags
    assert [c.lm.hook for c in at_hooks(asked.settings, asked.hooks).values()] == two[1:]
    assert parse([*command, *two[:2]])[0].hooks == ()
    refused(capsys, [*command, *two, "--objective", "e2e"], "--objective e2e", "one by one", "in series")
    refused(capsys, [*command, "--hook", two[1], two[1]], f"--hook names {two[1]} twice")
    refused(capsys, [*command, *two, "--sites", "x.json"], "give one of them")
    refused(capsys, [*command, "--sites", str(tmp_path / "none.json")], "cannot be read")
    refused(capsys, [*command, *two, "--hook-out", "blocks.1.hook_mlp_out"], "of the same --hook and --hook-out")
    file = tmp_path / "sites.json"
    one = {"name": "one", "hook": two[1:2]}
    transcoder = {"name": "transcoder", "hook": two[1], "hook_out": two[2]}
    crosscoder = {"name": "crosscoder", "hook": two[1:], "sae.crosscoder": True}
    for content, *said in (
        ("{}", "list of objects"),
        ('[{"sae.n": 8}]', "autoencoder 1 has the name None"),
        ('[{"name": "../a"}]', "a name that a folder can have"),
        ('[{"name": ".."}]', "a name that a folder can have"),
        ('[{"name": "a", "run": "elsewhere"}]', "a has a run of its own"),
        ('[{"name": "a", "lr": "fast"}]', "a: --lr is fast: give a positive learning rate, or paper"),
        ('[{"name": "a", "sae.k": 65}]', "a: --sae.k is 65"),
        ('[{"name": "a", "sae.m": 8}]', "has no sae.m"),
        ('[{"name": "a", "tokens": 512}, {"name": "b"}]', "must agree in --tokens"),
        ('[{"name": "a", "seed": 1}, {"name": "b"}]', "must agree in --data-seed"),
        (json.dumps([transcoder, one]), "a transcoder or a crosscoder shares a pass only with others"),
        (json.dumps([crosscoder, one]), "a transcoder or a crosscoder shares a pass only with others"),
        (json.dumps([one, crosscoder]), "a transcoder or a crosscoder shares a pass only with others"),
        ('[{"name": "a", "hook": 3}]', "--hook is 3: give the name of a hook point"),
    ):
        file.write_text(content)
        refused(capsys, [*command, "--sites", str(file)], *said)
    assert not (tmp_path / "run").exists()
    file.write_text(json.dumps([one]))
    assert from_file(asked.settings, file)["one"].lm.hook == two[1]


def test_a_flag_is_without_effect_if_it_is_in_all_of_several_runs(base, capsys):
    relu = with_fields(base, **{"sae.activation": "relu"})
    say_without_effect([base, relu], ["--sparsity", "--lr-end"])
    say_without_effect([base, base], ["--sparsity"])
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["--lr-end", "--sparsity"]


def test_what_none_of_them_can_read_is_said_for_each(base, tmp_path):
    lost = with_fields(base, text=("nowhere.txt",))
    outcomes = train(in_folders(tmp_path, a=lost, b=with_fields(lost, lr=0.1)))
    assert all(isinstance(error, BadInput) and "nowhere.txt" in str(error) for error in outcomes.values())
    assert [*outcomes] == ["a", "b"] and not (tmp_path / "a").exists()
