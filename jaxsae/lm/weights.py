"""GPT-2 and GPT-Neo weights from files: a Hugging Face folder, a hub name, or the embedded model. Safetensors only; no
torch.

The Conv1D of Hugging Face's GPT-2 stores its kernels [in, out], as Flax does, so names change and numbers do not. A
GPT-Neo is brought into GPT-2's form first.
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

# The sizes of a GPT2Config, as each type of model calls them in its config.json.
SIZES = {
    "gpt2": {name: name for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")},
    "gpt_neo": {
        "vocab_size": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_inner": "intermediate_size",
    },
}


def load(name: str = EMBEDDED, products: Products = "float32", dtype=jnp.float32) -> LM:
    """A GPT-2 or GPT-Neo by name: `embedded`, a folder in Hugging Face format, or a hub name such as `gpt2`.

    `products` is the precision of its matrix products. Raises BadInput for anything that is neither or does not load.
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
    """The GPT2Config that the Hugging Face config.json of a GPT-2 or a GPT-Neo states."""
    try:
        hf = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json: {error}") from error
    if not isinstance(hf, dict):
        raise BadInput(f"{folder} is not a model in Hugging Face format, its config.json holds no object: {hf!r}")
    kind = hf.get("model_type")
    if kind not in tuple(SIZES):
        raise BadInput(f"{folder} holds a model of type {kind!r}: only {' and '.join(SIZES)} are supported")
    activation = hf.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise BadInput(f"{folder} uses activation function {activation!r}: allowed are {', '.join(ACTIVATIONS)}")
    sizes, neo = _sizes(hf, SIZES[kind], folder), kind == "gpt_neo"
    return GPT2Config(
        **sizes,
        activation_function=activation,
        layer_norm_epsilon=hf.get("layer_norm_epsilon", 1e-5),
        scale_attn_weights=not neo and hf.get("scale_attn_weights", True),
        scale_attn_by_inverse_layer_idx=not neo and hf.get("scale_attn_by_inverse_layer_idx", False),
        windows=_windows(hf, sizes["n_layer"], folder) if neo else (),
        tied=hf.get("tie_word_embeddings", True),
        products=products,
    )


def _sizes(hf: dict, names: dict[str, str], folder: Path) -> dict[str, int]:
    """{the name in GPT2Config: size}, from {the name in GPT2Config: the name in config.json}."""
    sizes = {}
    for ours, theirs in names.items():
        value = hf.get(theirs)
        if ours == "n_inner" and not value:
            value = 4 * sizes["n_embd"]
        if theirs not in hf and value is None:
            raise BadInput(f"{folder}/config.json does not say {theirs!r}")
        if type(value) is not int or value < 1:
            raise BadInput(f"{folder}/config.json says {theirs} is {value!r}: it must be a positive whole number")
        sizes[ours] = value
    if (d := sizes["n_embd"]) % (heads := sizes["n_head"]):
        raise BadInput(f"{folder}/config.json: {names['n_embd']} {d} is not a multiple of {names['n_head']} {heads}")
    return sizes


def _windows(hf: dict, n_layer: int, folder: Path) -> tuple[int | None, ...]:
    """The attention window of each layer of a GPT-Neo."""
    layers, window = hf.get("attention_layers"), hf.get("window_size", 256)
    if not isinstance(layers, list) or len(layers) != n_layer:
        raise BadInput(f"{folder}/config.json says attention_layers is {layers!r}: it must list all {n_layer} layers")
    for layer in layers:
        if layer not in ("global", "local"):
            raise BadInput(f"{folder} uses attention of type {layer!r}: only global and local are supported")
    if "local" not in layers:
        return ()
    if type(window) is not int or window < 1:
        raise BadInput(f"{folder}/config.json says window_size is {window!r}: it must be a positive whole number")
    return tuple(window if layer == "local" else None for layer in layers)


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of one or sharded safetensors files."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    index = folder / "model.safetensors.index.json"
    if not index.exists() and not (folder / "model.safetensors").exists():
        raise BadInput(
            f"{folder} has no model.safetensors, and nothing else is read: convert the checkpoint by transformers' "
            "AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER, safe_serialization=True) and "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER), and give --lm FOLDER"
        )
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
    if any(".attn.attention." in name for name in tensors):
        tensors = _from_neo(tensors, config, shown)
    params: dict = {}
    for name, path in hf_names(config).items():
        tensor = _named(tensors, name, shown)
        *parents, leaf = path
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    if not config.tied:
        if "lm_head.weight" not in tensors:
            raise BadInput(f"{shown} has no weights called lm_head.weight, but its config.json says that it is untied")
        head = tensors["lm_head.weight"]
        params["lm_head"] = {"kernel": head.T, "bias": np.zeros(config.vocab_size, head.dtype)}
    _check_shapes(params, config, shown)
    return params


def _named(tensors, name, shown):
    if name not in tensors:
        raise BadInput(f"{shown} has no weights called {name}: it does not fit its config.json")
    return tensors[name]


def _from_neo(tensors, config: GPT2Config, shown):
    """A GPT-Neo's tensors under GPT-2's names and in its layout.

    Its kernels are those of nn.Linear, [out, in]; queries, keys and values are three of them, without biases.
    """
    d, tensors = config.n_embd, dict(tensors)
    for h in (f"h.{layer}" for layer in range(config.n_layer)):
        qkv = []
        for name in (f"{h}.attn.attention.{part}_proj.weight" for part in "qkv"):
            qkv.append(_named(tensors, name, shown))
            if (shape := qkv[-1].shape) != (d, d):
                raise BadInput(f"{shown} has weights {name} of shape {list(shape)}, but its config.json says {[d, d]}")
        kernel = np.concatenate(qkv).T
        tensors |= {f"{h}.attn.c_attn.weight": kernel, f"{h}.attn.c_attn.bias": np.zeros(3 * d, kernel.dtype)}
        tensors[f"{h}.attn.c_proj.weight"] = _named(tensors, f"{h}.attn.attention.out_proj.weight", shown).T
        tensors[f"{h}.attn.c_proj.bias"] = _named(tensors, f"{h}.attn.attention.out_proj.bias", shown)
        for name in (f"{h}.mlp.{part}.weight" for part in ("c_fc", "c_proj")):
            tensors[name] = _named(tensors, name, shown).T
    return tensors


def to_hf(params: dict, config: GPT2Config) -> dict[str, np.ndarray]:
    """The tensors of a GPT-2 that `from_hf` reads. Raises BadInput for an untied model, whose unembedding has no place
    there, and for one with attention windows, which would be read without them.
    """
    if not config.tied:
        raise BadInput("only a model whose unembedding is its token embedding can be written in this format")
    if config.windows:
        raise BadInput("a model whose attention has windows, a GPT-Neo, cannot be written as a GPT-2, which has none")
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
