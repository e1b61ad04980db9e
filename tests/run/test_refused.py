"""Bad input is refused with one line, before anything is written."""

from types import SimpleNamespace

import pytest

from jaxsae.config import Config, from_json, with_fields
from jaxsae.errors import BadInput
from jaxsae.run.checks import check_data
from jaxsae.run.folder import default_folder, written_by_this_run
from tests.run.commands import refused


@pytest.mark.parametrize(
    "extra, said",
    [
        ("--sae.k 65", ("65", "64", "--sae.k")),
        ("--sae.n 62 --mesh 2 4", ("62", "4", "multiple")),
        ("--mesh 4 4", ("16 devices", "8")),
        ("--batch-size 100 --mesh 8 1", ("100", "multiple of 8")),
        ("--hook blocks.0.hook_resid", ("hook_resid", "blocks.L.hook_resid_post")),
        ("--hook blocks.2.hook_resid_post", ("blocks.2", "2 blocks")),
        ("--context 65", ("65", "64 positions")),
        ("--context 1", ("1", "at least 2")),
        ("--tokens 0", ("--tokens", "0")),
        ("--batch-size 1000000", ("1000000", "--batch-size")),
        ("--text nowhere/*.txt", ("nowhere/*.txt", "no file")),
        ("--lm ./nowhere", ("./nowhere", "embedded")),
        ("--ema 1", ("--ema", "1.0")),
        ("--lr -1", ("--lr", "-1.0")),
        ("--activations nowhere", ("nowhere", ".npy")),
        ("--objective e2e --hook blocks.0.hook_mlp_out", ("hook_mlp_out", "residual stream")),
        ("--objective e2e --batch-size 250", ("250", "--context 32", "multiple")),
        ("--objective e2e --mesh 8 1 --batch-size 128", ("4 contexts", "8 devices")),
        ("--objective e2e --skip-first", ("--skip-first", "e2e")),
        ("--objective e2e --skip-tokens eos", ("--skip-tokens", "e2e")),
        ("--skip-tokens sep", ("--skip-tokens", "sep", "bos, eos, pad")),
        ("--skip-tokens 400", ("--skip-tokens 400", "0 to")),
        ("--init-from nowhere", ("nowhere", "no autoencoder")),
        ("--resample-every 500", ("--resample-every", "500", "--dead-after")),
        ("--sae.activation relu --sae.exponent 0.5", ("--sae.exponent", "0.5", "--sae.penalty lp")),
        ("--sae.activation jumprelu --sae.target-l0 8 --sae.penalty tanh", ("--sae.target-l0", "tanh")),
        ("--sae.activation relu --sae.target-l0 8", ("--sae.target-l0", "relu", "jumprelu has")),
        ("--preset nothing", ("nothing", "braun-gpt2-small-l6-e2e")),
    ],
)
def test_bad_input(flags, tmp_path, capsys, extra, said):
    refused(capsys, ["train", "--run", str(tmp_path / "run"), *flags, *extra.split()], *said)
    assert not (tmp_path / "run").exists(), "nothing is written for a run that cannot start"


def test_an_objective_that_reads_whole_contexts_refuses_padded_ones(tmp_path):
    source = SimpleNamespace(masked=True, count=10**6)
    with pytest.raises(BadInput, match="--objective e2e trains on contexts that are full of text"):
        check_data(tmp_path, with_fields(Config(), objective="e2e"), source, 32)


def test_an_objective_is_refused_before_text_is_read(flags, tmp_path, capsys):
    extra = ["--objective", "e2e", "--hook", "blocks.0.hook_mlp_out", "--cache", str(tmp_path / "cache")]
    refused(capsys, ["train", "--run", str(tmp_path / "run"), *flags, *extra], "residual stream")
    assert not (tmp_path / "cache" / "tokens").exists()


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [default_folder(Config()) for _ in range(3)]
    assert len({*folders}) == 3 and all((tmp_path / folder).is_dir() for folder in folders)


def test_existing_run(flags, finished, tmp_path, capsys):
    before = (finished / "sae" / "sae.safetensors").read_bytes()
    refused(capsys, ["train", "--run", str(finished), *flags], "exists", "--resume")
    other = [*flags, "--sae.k", "5", "--lr", "2e-3"]
    refused(capsys, ["train", "--run", str(finished), "--resume", *other], "--sae.k was 4, not 5", "--lr was 0.001")
    refused(capsys, ["train", "--resume", *flags], "--resume needs --run")
    with written_by_this_run(finished, with_fields(from_json(finished / "config.json"), resume=True)):
        refused(capsys, ["train", "--run", str(finished), "--resume", *flags], "written by another process")
    (tmp_path / "file").write_text("")
    refused(capsys, ["train", "--run", str(tmp_path / "file"), *flags], "is a file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    refused(capsys, ["train", "--run", str(tmp_path / "other"), "--resume", *flags], "not a run")
    refused(capsys, ["eval", str(tmp_path / "other")], "holds no autoencoder")
    assert (finished / "sae" / "sae.safetensors").read_bytes() == before


def test_a_start_must_be_of_the_same_kind(flags, finished, tmp_path, capsys):
    refused(
        capsys,
        ["train", "--run", str(tmp_path / "a"), *flags, "--init-from", str(finished), "--sae.k", "5"],
        "k 4, not 5",
    )
    refused(
        capsys, ["train", "--run", str(tmp_path / "b"), *flags, "--init-from", str(finished), "--sae.n", "32"], "n 64"
    )
    wide = ["--init-from", str(finished), "--hook", "blocks.0.mlp.hook_post"]
    refused(capsys, ["train", "--run", str(tmp_path / "c"), *flags, *wide], "width 32", "128")
    assert not any(tmp_path.iterdir()), "nothing is written for a run that cannot start"
