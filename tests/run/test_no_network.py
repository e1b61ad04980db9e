"""Nothing asks the network unless a name needs it: in a network namespace without routes, TensorFlow installed too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# In a process that starts with it, what asks for a name or a connection, or imports TensorFlow, is noted.
WATCH = """
import os, sys

def watch(event, args):
    asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto")
    if asks or (event == "import" and args[0] == "tensorflow"):
        with open(os.environ["WATCHED"], "a") as file:
            print(event, args, file=file)

sys.addaudithook(watch)
"""
# What tensorflow-datasets looks at, of a TensorFlow that reads from buckets.
TENSORFLOW = '__version__ = "2.19.0"\n'
OPENING = """
import jaxsae.cli, jaxsae.run.evaluate, jaxsae.run.train
from jaxsae import lm
from jaxsae.data.config import DataConfig
from jaxsae.distributed.mesh import make_mesh
from jaxsae.lm.config import LMConfig
from jaxsae.run.inputs import open_inputs

lm.load_tokenizer(lm.load("embedded"))
data = DataConfig(text=("{text}",), documents=25, cache="{cache}")
open_inputs(LMConfig("{lm}"), data, lambda d: make_mesh(1, 1)).source("held_out", 0).host(0, 1)
"""


@pytest.fixture
def alone(tmp_path):
    """alone(arguments) runs Python where there is no network; what it asked for."""
    unshare = [shutil.which("unshare") or "unshare", "-rn"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces are not permitted here")
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(TENSORFLOW)
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    watched = tmp_path / "watched"
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    env = {**os.environ, "PYTHONPATH": paths, "WATCHED": str(watched), "JAXSAE_CACHE": str(tmp_path / "cache")}

    def run(*arguments):
        done = subprocess.run([*unshare, sys.executable, *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return watched.read_text() if watched.exists() else ""

    return run


def test_nothing_asks_the_network(alone, tiny_lm, tiny_text, tmp_path):
    assert alone("-c", OPENING.format(lm=tiny_lm, text=tiny_text, cache=tmp_path / "cache")) == ""
    asked = "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass"
    assert "example.invalid" in alone("-c", asked), "what does ask is noticed"


@pytest.mark.slow
def test_a_run_and_its_evaluation_ask_nothing(alone, tmp_path):
    run = f"--run {tmp_path / 'run'} --documents 40 --context 32 --tokens 2048 --batch-size 256 --eval-tokens 512"
    assert alone("-m", "jaxsae.cli", "train", *run.split(), "--sae.n", "64", "--sae.k", "4", "--mesh", "1", "1") == ""
    assert alone("-m", "jaxsae.cli", "eval", str(tmp_path / "run"), "--tokens", "512", "--mesh", "1", "1") == ""
