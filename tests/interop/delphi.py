"""Caches that jaxsae writes for delphi, as delphi's own code reads them, beside plain code on the same tokens."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import jaxsae
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import open_subject

WORKER = Path(__file__).parent / "their_own/delphi_reader.py"
# delphi's defaults: tokens of a window, windows that a latent needs to be explained, silent ones that are drawn.
WINDOW, LEAST, SILENT = 32, 200, 50
# One value in so many may be of another latent: the last one kept, where two are equal but for rounding.
PER_TIE = 100_000


@dataclass(frozen=True)
class Case:
    """Flags of `jaxsae train` and of `jaxsae activations`; what delphi's constructor is told beside its defaults."""

    train: str
    write: str
    construct: dict

    def make(self, root: Path):
        (root / "job.json").write_text(json.dumps(self.construct))
        command = lambda *flags: subprocess.run(
            [sys.executable, "-m", "jaxsae.cli", *flags], check=True, stdout=sys.stderr
        )
        command("train", "--run", str(root / "run"), "--context", "128", "--eval-tokens", "2048", *self.train.split())
        command("activations", str(root / "run"), str(root / "latents"), "--to", "delphi", *self.write.split())


SMALL = "--tokens 65536 --sae.n 512 --sae.k 16"
CASES = {
    "512 latents, 65,536 tokens": Case(SMALL, "--tokens 65536", {}),
    "transcoder, BatchTopK": Case(
        f"{SMALL} --hook blocks.3.mlp.hook_in --hook-out blocks.3.hook_mlp_out --sae.activation batch_topk",
        "--tokens 32768 --delphi.splits 3",
        {"min_examples": 50},
    ),
    "documents with padding, without position 0": Case(
        f"{SMALL} --pack documents --skip-first", "--tokens 32768", {"min_examples": 50}
    ),
    "70,000 latents in one file": Case(
        "--tokens 2048 --sae.n 70000 --sae.k 16", "--tokens 4096 --delphi.splits 1", {"min_examples": 1}
    ),
}


@dataclass(frozen=True)
class Ours:
    """Activations by plain code, one context after the other, of N values."""

    tokens: np.ndarray  # [C, T]
    location: np.ndarray  # [N, 3] context, position, latent, sorted by latent
    value: np.ndarray  # [N]
    n: int

    @classmethod
    def of(cls, run: Path, contexts: int) -> "Ours":
        sae, hook, lm = jaxsae.load(run), jaxsae.describe(run)["hook"], jaxsae.lm.load("embedded")
        source = open_subject(run, EvalConfig()).source
        host = source.host(0, contexts)
        kept, tokens, parts = np.asarray(source.kept(host)), np.maximum(host, 0).astype(np.int64), []
        for start in range(0, contexts, 32):
            some = slice(start, start + 32)
            code = jaxsae.encode(sae, lm.prefix(tokens[some], hook))
            value, latent = np.asarray(code.values), np.asarray(code.indices)
            at = np.nonzero((value > 1e-5) & kept[some][..., None])
            parts.append((np.stack([start + at[0], at[1], latent[at]], 1), value[at]))
        location, value = map(np.concatenate, zip(*parts))
        return cls(tokens, location, value, sae.n).in_order()

    def in_order(self) -> "Ours":
        order = np.lexsort(self.location.T[[1, 0, 2]])
        return replace(self, location=self.location[order], value=self.value[order])

    def with_ties(self, location: np.ndarray, value: np.ndarray) -> tuple["Ours", int]:
        """(these, with the latents of `location` [N, 3] where the last one kept at a token is another, how many are).

        The two must be of equal `value` [N] in half precision; AssertionError if not, or if there are many.
        """
        number = lambda of: np.ravel_multi_index(of.T, (*self.tokens.shape, self.n))
        mine, theirs = number(self.location), number(location)
        here, there = np.nonzero(~np.isin(mine, theirs))[0], np.nonzero(~np.isin(theirs, mine))[0]
        assert len(here) == len(there) <= len(mine) / PER_TIE, f"{len(here)} and {len(there)} other locations"
        here, there = here[np.argsort(mine[here])], there[np.argsort(theirs[there])]
        assert np.array_equal(self.location[here, :2], location[there, :2]), "other locations"
        np.testing.assert_allclose(value[there], self.value[here], rtol=1e-3)
        ours = replace(self, location=self.location.copy())
        ours.location[here] = location[there]
        return ours.in_order(), len(here)

    def windows(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(number of each window of all tokens in which a latent is active, its values there [w, WINDOW])."""
        mine = slice(*np.searchsorted(self.location[:, 2], [latent, latent + 1]))
        place = self.location[mine, 0] * self.tokens.shape[1] + self.location[mine, 1]
        active, of = np.unique(place // WINDOW, return_inverse=True)
        values = np.zeros((len(active), WINDOW), np.float32)
        values[of, place % WINDOW] = self.value[mine]
        return active, values


def compared(folder: Path) -> str:
    """The cells of a row of the table, of what delphi read of the cache in `folder`."""
    theirs = np.load(folder / "theirs.npz")
    ours = Ours.of(folder / "run", len(theirs["tokens"]))
    assert np.array_equal(theirs["tokens"], ours.tokens), "other tokens"
    ours, ties = ours.with_ties(theirs["locations"], theirs["activations"])
    order = np.lexsort(theirs["locations"].T[[1, 0, 2]])
    assert np.array_equal(theirs["locations"][order], ours.location), "other locations"
    apart = np.abs(theirs["activations"][order] - ours.value).max() / ours.value.max()
    explained, windows = _check_examples(theirs, ours, json.loads((folder / "job.json").read_text()))
    living = len(np.unique(ours.location[:, 2]))
    return f"{len(ours.value):,} | {ties} | {apart:.0e} | {explained:,} of {living:,} | {windows:,}"


def _check_examples(theirs, ours: Ours, construct: dict) -> tuple[int, int]:
    """(latents that delphi explains, examples that it makes), all of which are what `ours` says; AssertionError if not.

    A latent's examples are all windows in which it is active, strongest first, silent ones are among the others.
    """
    least, text = construct.get("min_examples", LEAST), ours.tokens.reshape(-1, WINDOW)
    latents, tokens, values = theirs["latents"], theirs["examples_tokens"], theirs["examples_activations"]
    counts = {latent: len(ours.windows(latent)[0]) for latent in np.unique(ours.location[:, 2])}
    assert sorted(latents) == sorted(latent for latent, count in counts.items() if count >= least)
    silent_of = {kind: dict(_groups(theirs, kind, "not_active_tokens", 3)) for kind in ("", "neighbours_")}
    strings = jaxsae.lm.load_tokenizer(jaxsae.lm.load("embedded")).backend
    ends = np.cumsum(theirs["counts"][:, 0])
    for i, latent in enumerate(latents):
        active, expected = ours.windows(latent)
        mine = slice(ends[i] - theirs["counts"][i, 0], ends[i])
        _same_windows(tokens[mine], values[mine], text[active], expected)
        strongest = values[mine].max(1)
        assert (np.diff(strongest) <= 0).all()
        frequencies = (ours.location[:, 2] == latent).sum() / text.size, len(active) / len(text)
        np.testing.assert_allclose(theirs["frequencies"][i], frequencies, rtol=1e-6)
        silent = np.delete(text, active, axis=0)
        assert theirs["counts"][i, 3] == (SILENT if len(silent) >= SILENT else 0)
        for of in silent_of.values():
            drawn = of.get(latent, text[:0])
            assert {*map(bytes, drawn)} <= {*map(bytes, silent)}
    trained = theirs["counts"][:, 1]
    first = (np.cumsum(trained) - trained)[trained > 0]
    for words, ids in zip(theirs["texts"], theirs["train_tokens"][first], strict=True):
        assert list(words) == [strings.decode([i], skip_special_tokens=False) for i in ids]
    # Centred windows lie across the borders of windows, inside one context.
    contexts = {bytes(row) for row in np.lib.stride_tricks.sliding_window_view(ours.tokens, WINDOW, 1).reshape(-1, 32)}
    assert {*map(bytes, theirs["centred_examples_tokens"].astype(np.int64))} <= contexts
    return len(latents), len(tokens)


def _groups(theirs, kind: str, array: str, column: int):
    """(latent, its rows of an array of windows)."""
    if f"{kind}latents" in theirs:
        counts, rows = theirs[f"{kind}counts"][:, column], theirs[f"{kind}{array}"].astype(np.int64)
        yield from zip(theirs[f"{kind}latents"].tolist(), np.split(rows, np.cumsum(counts)[:-1]))


def _same_windows(tokens, values, expected_tokens, expected_values):
    """Raises AssertionError if two lists of windows are not the same, in any order."""
    assert len(tokens) == len(expected_tokens)
    half = expected_values.astype(np.float16).astype(np.float32)
    key = lambda ids, x: np.lexsort([*x.T[::-1], *ids.T[::-1]])
    mine, theirs = key(expected_tokens, half), key(tokens, values)
    assert np.array_equal(tokens[theirs], expected_tokens[mine])
    np.testing.assert_allclose(values[theirs], half[mine], rtol=2e-3, atol=1e-6)


def table(python: Path) -> list[str]:
    """Lines of the table; `python` is the interpreter of delphi's environment."""
    lines = [
        "| cache | values | other latent, a tie | largest difference | latents with enough examples | their examples |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, case in enumerate(CASES.values()):
            (root / str(number)).mkdir()
            case.make(root / str(number))
        subprocess.run([python, WORKER, root], check=True, stdout=sys.stderr)
        return lines + [f"| {name} | {compared(root / str(number))} |" for number, name in enumerate(CASES)]
