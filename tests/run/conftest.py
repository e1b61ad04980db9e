"""A run that takes seconds."""

import pytest

from jaxsae.cli import main


@pytest.fixture(scope="session")
def flags(tiny_lm, tiny_text, tmp_path_factory):
    """Flags of a run that takes seconds."""
    cache = tmp_path_factory.mktemp("cache")
    run = f"--lm {tiny_lm} --text {tiny_text} --cache {cache} --context 32 --sae.n 64 --sae.k 4 --batch-size 256"
    return (
        f"{run} --tokens 14848 --checkpoint-every 10 --buffer-batches 4 --eval-tokens 2048 --lr 1e-3 --mesh 1 1".split()
    )


@pytest.fixture(scope="session")
def finished(flags, tmp_path_factory):
    """A finished run folder."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", "--run", str(folder), *flags]) == 0
    return folder
