"""A folder that a Neuronpedia instance imports: one source, which is an autoencoder at a hook point.

    DIR/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     one object each
    DIR/features/batch-I.jsonl.gz       an object for each latent: density, histograms, tokens that it promotes
    DIR/activations/batch-I.jsonl.gz    an object for each of its strongest contexts: tokens and values

Numbers have four decimals, as Neuronpedia's own exports do. Tokens promoted are those whose logits rise most with the
latent's decoder row, without what later layers and the final norm make of it.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.evals.explaining import token_strings
from jaxsae.evals.subject import Subject
from jaxsae.handover.interface import Activations, Handover, collect
from jaxsae.lm import hooks
from jaxsae.lm.model import unembed
from jaxsae.sae.layout import REPLICATED

FEATURES, BINS, TOP_TOKENS = 1024, 50, 10
# Latents whose logits exist at once.
AT_ONCE = 256


@dataclass(frozen=True)
class Config:
    model_id: str | None = None
    """Neuronpedia's name of the language model, such as gpt2-small; default: the name of its folder."""
    source_set: str = "jaxsae"
    """Name of the source set; the source is called LAYER-SOURCE_SET."""
    release: str = "jaxsae"
    """Name of the release."""
    creator: str = "jaxsae"
    """Who made the autoencoder."""
    creator_id: str = "clkht01d40000jv08hvalcvly"
    """Id of the user in the instance; default: the one that a new instance has."""
    examples: int = 20
    """Contexts of a latent, those with its largest values."""

    def __post_init__(self):
        if self.examples < 1:
            raise BadInput(f"--neuronpedia.examples is {self.examples}: give at least 1")


def check(subject: Subject, config: Config):
    """Raises BadInput for crosscoders, which are of no one layer."""
    if subject.kind == "crosscoder":
        raise BadInput("a source of Neuronpedia has one hook point, and a crosscoder several: give another --to")


def write(subject: Subject, config: Config, folder: Path) -> list[str]:
    hook = hooks.parse(subject.hook, subject.lm.config.n_layer)
    model, source = config.model_id or Path(subject.lm.folder).name, f"{hook.layer}-{config.source_set}"
    found, strings = collect(subject), token_strings(subject.tokenizer(), subject.lm.config.vocab_size)
    common = {"creatorId": config.creator_id, "createdAt": datetime.now(UTC).isoformat()}
    for name in ("features", "activations"):
        (folder / name).mkdir(parents=True)
    for name, facts in _headers(subject, config, model, source, found.tokens.shape, common).items():
        (folder / f"{name}.jsonl").write_text(json.dumps(facts) + "\n")
    # By latent; `starts` says where each one's values begin.
    order = np.argsort(found.latent, kind="stable")
    starts = np.searchsorted(found.latent[order], np.arange(subject.sae.n + 1))
    ids = {"modelId": model, "layer": source}
    count = 0
    for number, first in enumerate(range(0, subject.sae.n, FEATURES)):
        some = range(first, min(first + FEATURES, subject.sae.n))
        promoted = _promoted(subject, some)
        features, examples = [], []
        for latent in some:
            mine = order[starts[latent] : starts[latent + 1]]
            own = [_example(found, strings, c, mine) for c in _strongest(found, mine, config.examples)]
            of = ids | {"index": str(latent)}
            examples += [of | {"id": _id(*of.values(), str(i))} | example | common for i, example in enumerate(own)]
            features.append(of | _feature(found, mine, promoted[latent - first], strings, subject.hook) | common)
        _lines(folder / "features" / f"batch-{number}.jsonl.gz", features)
        _lines(folder / "activations" / f"batch-{number}.jsonl.gz", examples)
        count += len(examples)
    return [f"{subject.sae.n:,} latents and {count:,} contexts of source {source} of {model} in {folder}"]


def _headers(subject: Subject, config: Config, model: str, source: str, shape, common: dict) -> dict[str, dict]:
    """{file: what it says} of the release, the language model, the source set and the source."""
    names = {"creatorName": config.creator, "releaseName": config.release}
    return {
        "release": common
        | {"name": config.release, "description": config.release, "descriptionShort": config.release, "urls": []}
        | {"creatorName": config.creator, "creatorNameShort": config.creator},
        "model": common
        | {"id": model, "instruct": False, "displayName": model, "displayNameShort": model}
        | {"updatedAt": common["createdAt"]},
        "sourceset": common
        | names
        | {"modelId": model, "name": config.source_set, "description": config.source_set, "visibility": "PUBLIC"},
        "source": common
        | {"modelId": model, "setName": config.source_set, "id": source, "visibility": "PUBLIC"}
        | {"dataset": " ".join(subject.facts.get("eval_text") or []), "num_prompts": shape[0]}
        | {"num_tokens_in_prompt": shape[1], "hfRepoId": None, "hfFolderId": None},
    }


def _strongest(found: Activations, mine: np.ndarray, count: int) -> np.ndarray:
    """The contexts with the largest values among the activations numbered `mine`, those first."""
    by_value = found.context[mine[np.argsort(-found.value[mine], kind="stable")]]
    _, first = np.unique(by_value, return_index=True)
    return by_value[np.sort(first)[:count]]


def _example(found: Activations, strings: list[str], context: int, mine: np.ndarray) -> dict:
    """What a latent, whose activations are numbered `mine`, does in one context."""
    here = mine[found.context[mine] == context]
    values = np.zeros(found.tokens.shape[1])
    values[found.position[here]] = found.value[here]
    return {
        "tokens": [strings[token] for token in found.tokens[context]],
        "values": _rounded(values),
        "maxValue": _rounded(values.max()),
        "maxValueTokenIndex": int(values.argmax()),
        "minValue": _rounded(values.min()),
        "dataIndex": str(context),
        "binMin": None,
        "binMax": None,
        "binContains": None,
        "lossValues": [],
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "logitContributions": None,
        "qualifyingTokenIndex": None,
        "dataSource": None,
    }


def _feature(found: Activations, mine: np.ndarray, promoted: dict, strings: list[str], hook: str) -> dict:
    values = found.value[mine]
    heights, edges = np.histogram(values, BINS, (0, values.max())) if len(values) else (np.zeros(0), np.zeros(1))
    words = lambda indices: [strings[i] for i in indices]
    empty = ("vector", "topkCosSimIndices", "topkCosSimValues", "decoder_weights_dist")
    empty += tuple(f"neuron_alignment_{name}" for name in ("indices", "values", "l1"))
    empty += tuple(
        f"correlated_{kind}_{name}" for kind in ("neurons", "features") for name in ("indices", "pearson", "l1")
    )
    return {
        "maxActApprox": _rounded(values.max(initial=0)),
        "frac_nonzero": len(values) / found.tokens.size,
        "pos_str": words(promoted["pos"]),
        "pos_values": _rounded(promoted["pos_values"]),
        "neg_str": words(promoted["neg"]),
        "neg_values": _rounded(promoted["neg_values"]),
        "freq_hist_data_bar_heights": heights.tolist(),
        "freq_hist_data_bar_values": _rounded((edges[1:] + edges[:-1]) / 2),
        "logits_hist_data_bar_heights": promoted["heights"],
        "logits_hist_data_bar_values": _rounded(promoted["middles"]),
        "hookName": hook,
        "hasVector": False,
        "vectorLabel": None,
        **{name: [] for name in empty},
    }


NOTHING = {"pos": [], "pos_values": [], "neg": [], "neg_values": [], "heights": [], "middles": []}


def _promoted(subject: Subject, some: range) -> list[dict]:
    """Of each of the latents `some`: the tokens whose logits its decoder row raises and lowers most, and a histogram of
    all; empty if the hook point has another width than the stream.
    """
    if subject.sae.d_out != subject.lm.config.d_model:
        return [NOTHING] * len(some)
    out = []
    for start in range(some.start, some.stop, AT_ONCE):
        numbers = np.arange(start, min(start + AT_ONCE, some.stop))
        for row in np.asarray(_logits(subject.lm, subject.sae, numbers), np.float64):
            order = np.argsort(row, kind="stable")
            low, high = order[:TOP_TOKENS], order[::-1][:TOP_TOKENS]
            heights, edges = np.histogram(row, BINS)
            out.append(
                {
                    "pos": high,
                    "pos_values": row[high],
                    "neg": low,
                    "neg_values": row[low],
                    "heights": heights.tolist(),
                    "middles": (edges[1:] + edges[:-1]) / 2,
                }
            )
    return out


@jax.jit
def _logits(lm, sae, numbers):
    """What the decoder rows `numbers` [A] add to the logits, [A, V], on every device."""
    rows = jax.reshard(sae.as_used().W_dec, REPLICATED)[numbers]
    return unembed(lm, rows) - unembed(lm, jnp.zeros_like(rows))


def _rounded(values):
    return np.round(np.asarray(values, np.float64), 4).tolist()


def _id(*parts: str) -> str:
    """25 characters that stand for `parts`, as ids of a database's rows are."""
    return "c" + hashlib.sha256(" ".join(parts).encode()).hexdigest()[:24]


def _lines(path: Path, objects: Iterable[dict]):
    text = "".join(json.dumps(each) + "\n" for each in objects)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


FORMAT = Handover(write, check, Config)
