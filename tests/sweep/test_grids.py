"""Lists of configurations and the names of their runs."""

import re
from pathlib import Path

import numpy as np
import pytest

from jaxsae.config import Config, fields_of, with_fields
from jaxsae.errors import BadInput
from jaxsae.sweep import file, override, product, union, zipped

BASE = with_fields(Config(), tokens=1000)


def test_a_product_has_every_combination_named_by_its_values():
    configs = product(BASE, {"sae.n": [64, 128], "sae.k": range(1, 3), "lr": [1e-3, None]})
    assert list(configs)[:3] == ["n=64-k=1-lr=0.001", "n=64-k=1-lr=default", "n=64-k=2-lr=0.001"] and len(configs) == 8
    for config in configs.values():
        changed = {key for key, value in fields_of(config).items() if value != fields_of(BASE)[key]}
        assert changed <= {"sae.n", "sae.k", "lr"}
    config = configs["n=128-k=2-lr=0.001"]
    assert (config.sae.n, config.sae.k, config.training.optimizer.lr) == (128, 2, 1e-3)


def test_a_name_does_not_depend_on_the_other_runs():
    few, many = product(BASE, {"sae.n": [64], "seed": [1]}), product(BASE, {"sae.n": [32, 64], "seed": [0, 1, 2]})
    assert few.keys() <= many.keys() and few["n=64-seed=1"] == many["n=64-seed=1"]


def test_lists_are_combined():
    """Zips within products, lists of named configurations, and unions that share runs."""
    sizes = zipped(BASE, {"sae.n": np.array([64, 128]), "lr": [2e-3, 1e-3]})
    assert list(sizes) == ["n=64-lr=0.002", "n=128-lr=0.001"]
    assert sizes["n=64-lr=0.002"].sae.n == 64
    assert list(product(sizes, {"seed": [0, 1]}))[1] == "n=64-lr=0.002-seed=1"
    both = union(sizes, zipped({"half": BASE}, {"tokens": [500]}), zipped(BASE, {"sae.n": [64], "lr": [2e-3]}))
    assert list(both) == [*sizes, "half-tokens=500"] and both["half-tokens=500"].training.batch.tokens == 500
    longer = override(sizes, {"tokens": 5000, "sae.k": lambda config: config.sae.n // 32})
    assert list(longer) == list(sizes)
    assert [(c.training.batch.tokens, c.sae.k) for c in longer.values()] == [(5000, 2), (5000, 4)]


def test_names_can_be_folders_and_differ():
    texts = [
        ("a/text.txt",),
        ("b/text.txt",),
        ("x.txt", "y z.txt"),
        ("stdlib",),
        tuple(f"part{i}.txt" for i in range(99)),
    ]
    names = list(product(BASE, {"text": texts, "mesh": [None, (1, 2)], "bos": [False]}))
    assert len({name.lower() for name in names}) == 10 and "text=stdlib-mesh=1+2-bos=false" in names
    assert all(file.NAME.fullmatch(name) and len(name) < 100 for name in names)
    both = product(BASE, {"e2e.kl_coef": [1.0], "e2e_downstream.kl_coef": [0.5]})
    assert list(both) == ["e2e.kl_coef=1-e2e_downstream.kl_coef=0.5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: product(BASE, {"sae.m": [1]}), "no sae.m"),
        (lambda: zipped(BASE, {"n": [1]}), "no n: it has run"),
        (lambda: product(BASE, {"sae.n": 64}), r"sae.n is 64: give a list of values, \[64\]"),
        (lambda: product(BASE, {"lm": "gpt2"}), "lm is 'gpt2': give a list"),
        (lambda: product(BASE, {"sae.n": []}), "sae.n has no values"),
        (lambda: product(BASE, {}), "no fields to vary"),
        (lambda: product(BASE, {"seed": [0, 1, 0]}), "seed=0 is there twice"),
        (lambda: product(BASE, {"sae.n": [16], "sae.k": [8, 32]}), "n=16-k=32: --sae.k is 32: allowed is 1 to"),
        (lambda: product(BASE, {"sae.n": [64.5]}), "give a whole number"),
        (lambda: product(BASE, {"lr": ["fast"]}), "lr=fast: --lr is fast: give a positive learning rate, or paper"),
        (lambda: product(BASE, {"run": ["here"]}), "run cannot be set here"),
        (lambda: zipped(BASE, {"sae.n": [64, 128], "lr": [1e-3]}), "sae.n has 2, lr has 1"),
        (lambda: override(product(BASE, {"sae.n": [64]}), {"sae.n": 128}), "the run n=64 is named by its n=64"),
        (lambda: union({"a": BASE}, {"a": with_fields(BASE, tokens=5, seed=1)}), "a and differ in tokens, seed"),
    ],
)
def test_what_cannot_be_a_list_of_runs_is_refused(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def written(tmp_path, text):
    path = tmp_path / "sizes.py"
    path.write_text("from jaxsae.config import Config\nfrom jaxsae.sweep import product\n" + text)
    return path


def test_a_sweep_file_is_run_as_a_script_is(tmp_path):
    (tmp_path / "beside_the_sweep.py").write_text("SIZES = [64, 128]\n")
    text = """
from dataclasses import dataclass
from beside_the_sweep import SIZES

@dataclass(frozen=True)
class Settings:
    seeds: int = 2

def configs(preset="small"):
    return product(Config(), {"sae.n": SIZES if preset == "small" else [4096], "seed": range(Settings().seeds)})

if __name__ == "__main__":
    raise SystemExit("this is no script")
"""
    path = written(tmp_path, text)
    assert list(file.read(path)) == ["n=64-seed=0", "n=64-seed=1", "n=128-seed=0", "n=128-seed=1"]
    assert "n=4096-seed=0" in file.read(path, "large")
    assert not list(tmp_path.glob("__pycache__/sizes*"))


@pytest.mark.parametrize(
    ("text", "preset", "message"),
    [
        ("config = {}", None, r"defines no configs\(\)"),
        ("def configs(): return {}", None, "returns {}: return {name: Config} of at least one run"),
        ("def configs(): return {'a': 5}", None, "returns 5 as a: return a jaxsae.config.Config"),
        ("def configs(): return {'a/b': Config()}", None, "calls a run 'a/b': allowed are"),
        ("def configs(): return {'..': Config()}", None, "calls a run '..'"),
        ("def configs(): return {'sweep': Config()}", None, "but not sweep, results.csv"),
        ("def configs(): return {'a': Config(), 'A': Config()}", None, "but for upper and lower case"),
        ("def configs(): return {'a': Config()}", "gpt2", "--preset is gpt2, but .* takes no preset"),
        ("def configs(preset): return {'a': Config()}", None, "give --preset NAME"),
        ("def configs(): return product(Config(), {'sae.m': [1]})", None, "sizes.py: .*no sae.m"),
        ("\nx = 1\ndef configs(): return x.y", None, "sizes.py, line 5: AttributeError"),
        ("def configs() return", None, "sizes.py, line 3: SyntaxError"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, preset, message):
    with pytest.raises(BadInput, match=message):
        file.read(written(tmp_path, text), preset)
    with pytest.raises(BadInput, match="is not a file"):
        file.read(tmp_path / "absent.py")


def test_the_files_of_the_documentation_are_sweeps(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = []
    for block in blocks:
        path = tmp_path / "sweep.py"
        path.write_text(block)
        names.append(list(file.read(path)))
    assert len(names) == 3 and names[0][0] == "n=1024-k=16"
    assert "n=512-seed=0" in names[1] and "n=2048-lr=0.003" in names[1]
