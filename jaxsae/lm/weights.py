"""GPT-2 weights from files: a Hugging Face folder, a hub name, or the embedded model. Safetensors only; no torch.

Hugging Face's Conv1D stores its kernels [in, out], as Flax does, so names change and numbers do not.
"""

import json
import zlib
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm.gpt2 import ACTIVATIONS, GPT2Config
from jaxsae.lm.model import LM
from jaxsae.precision import Products

EMBEDDED = "embedded"


def load(name: str = EMBEDDED, products: Products = "float32", dtype=jnp.float32) -> LM:
    """A GPT-2 by name: `embedded`, a folder in Hugging Face format, or a hub name such as `gpt2` or `distilgpt2`.

    `products` is the precision of its matrix products. Raises BadInput for anything that is not a GPT-2 that loads.
    """
    folder = find_folder(name)
    config = read_config(folder, products)
    tensors = _read_tensors(folder)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), from_hf(tensors, config, folder))
    return LM(params, config, str(folder))


def find_folder(name: str) -> Path:
    if name == EMBEDDED:
        return Path(str(resources.files("jaxsae.lm") / "embedded"))
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BadInput(f"--lm {name}: there is no such folder; allowed are {EMBEDDED}, a folder, or a hub name")
    from huggingface_hub import snapshot_download

    # The formats of other frameworks lie beside the weights on the hub.
    wanted = ["config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*.json", "vocab.json", "merges.txt"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # huggingface_hub, httpx and OSError: no network, no such name, no permission
        raise BadInput(
            f"--lm {name} is neither {EMBEDDED} nor a folder, and could not be had from the hub: {error}"
        ) from error


def read_config(folder: Path, products: Products = "float32") -> GPT2Config:
    """The GPT2Config that a Hugging Face config.json states."""
    try:
        hf = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json: {error}") from error
    if not isinstance(hf, dict):
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json holds no object: {hf!r}")
    if hf.get("model_type") != "gpt2":
        raise BadInput(f"{folder} holds a model of type {hf.get('model_type')!r}: only gpt2 is supported")
    activation = hf.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise BadInput(f"{folder} uses activation function {activation!r}: allowed are {', '.join(ACTIVATIONS)}")
    try:
        config = GPT2Config(
            vocab_size=hf["vocab_size"],
            n_positions=hf["n_positions"],
            n_embd=hf["n_embd"],
            n_layer=hf["n_layer"],
            n_head=hf["n_head"],
            n_inner=hf.get("n_inner") or 4 * hf["n_embd"],
            activation_function=activation,
            layer_norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
            scale_attn_weights=hf.get("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=hf.get("scale_attn_by_inverse_layer_idx", False),
            tied=hf.get("tie_word_embeddings", True),
            products=products,
        )
    except KeyError as error:
        raise BadInput(f"{folder}/config.json does not say {error}") from error
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"):
        if type(value := getattr(config, name)) is not int or value < 1:
            raise BadInput(f"{folder}/config.json says {name} is {value!r}: it must be a positive whole number")
    if config.n_embd % config.n_head:
        raise BadInput(f"{folder}/config.json: n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
    return config


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of one or sharded safetensors files."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    index = folder / "model.safetensors.index.json"
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
        tensors = {}
        for name in sorted(names):
            tensors |= load_file(folder / name)
        return tensors
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadInput(f"the weights in {folder} cannot be read (safetensors files are needed): {error}") from error


def checksum(lm: LM) -> int:
    """A number that changes when a model's weights do."""
    crc = 0
    for leaf in jax.tree.leaves(lm.params):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc


def hf_names(config: GPT2Config) -> dict[str, tuple[str, ...]]:
    """Hugging Face's tensor names (without `transformer.`) -> paths in the Flax parameters."""
    names = {
        "wte.weight": ("wte", "embedding"),
        "wpe.weight": ("wpe", "embedding"),
        "ln_f.weight": ("ln_f", "scale"),
        "ln_f.bias": ("ln_f", "bias"),
    }
    for layer in range(config.n_layer):
        for norm in ("ln_1", "ln_2"):
            names[f"h.{layer}.{norm}.weight"] = (f"h_{layer}", norm, "scale")
            names[f"h.{layer}.{norm}.bias"] = (f"h_{layer}", norm, "bias")
        dense = {"attn.c_attn": ("attn", "c_attn"), "attn.c_proj": ("attn", "c_proj")}
        dense |= {"mlp.c_fc": ("c_fc",), "mlp.c_proj": ("c_proj",)}
        for theirs, ours in dense.items():
            names[f"h.{layer}.{theirs}.weight"] = (f"h_{layer}", *ours, "kernel")
            names[f"h.{layer}.{theirs}.bias"] = (f"h_{layer}", *ours, "bias")
    return names


def from_hf(tensors: dict[str, np.ndarray], config: GPT2Config, shown="the model") -> dict:
    """Flax parameters from tensors under Hugging Face's names. Raises BadInput where one is missing or misshapen."""
    # The hub's original gpt2 has no prefix, and carries causal masks as `h.*.attn.bias` (not `c_attn.bias`).
    tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    if any(name.startswith(f"h.{config.n_layer}.") for name in tensors):
        raise BadInput(f"{shown} has weights of more layers than the {config.n_layer} of its config.json")
    params: dict = {}
    for name, path in hf_names(config).items():
        if name not in tensors:
            raise BadInput(f"{shown} has no weights called {name}: it does not fit its config.json")
        *parents, leaf = path
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensors[name]
    if not config.tied:
        if "lm_head.weight" not in tensors:
            raise BadInput(f"{shown} has no weights called lm_head.weight, but its config.json says that it is untied")
        head = tensors["lm_head.weight"]
        params["lm_head"] = {"kernel": head.T, "bias": np.zeros(config.vocab_size, head.dtype)}
    _check_shapes(params, config, shown)
    return params


def to_hf(params: dict, config: GPT2Config) -> dict[str, np.ndarray]:
    """The tensors that `from_hf` reads. Raises BadInput for an untied model, whose unembedding has no place there."""
    if not config.tied:
        raise BadInput("only a model whose unembedding is its token embedding can be written in this format")
    tensors = {}
    for name, path in hf_names(config).items():
        node = params
        for part in path:
            node = node[part]
        tensors[f"transformer.{name}"] = np.asarray(node)
    return tensors


def _check_shapes(params, config: GPT2Config, shown):
    from jaxsae.lm.gpt2 import GPT2

    wanted = jax.eval_shape(GPT2(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))["params"]
    for path, want in jax.tree.leaves_with_path(wanted):
        have = params
        for part in path:
            have = have[part.key]
        if have.shape != want.shape:
            name = ".".join(part.key for part in path)
            raise BadInput(
                f"{shown} has weights {name} of shape {list(have.shape)}, but its config.json says {list(want.shape)}"
            )
