"""GPT-Neo: a GPT-2 whose attention is not scaled and, in some layers, sees only a window of positions.

In files its kernels are those of nn.Linear, [out, in]; queries, keys and values are three of them, without biases.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.lm import gpt2
from jaxsae.lm import hf as files
from jaxsae.lm.gpt2 import GPT2Config
from jaxsae.lm.layers import ACTIVATIONS
from jaxsae.precision import Precision


def read_config(hf: dict, folder: Path, precision: Precision) -> GPT2Config:
    size = lambda name, default=None: files.size(hf, name, folder, default)
    config = GPT2Config(
        architecture="gpt_neo",
        vocab_size=size("vocab_size"),
        n_ctx=size("max_position_embeddings"),
        d_model=(d := size("hidden_size")),
        n_layer=(layers := size("num_layers")),
        n_head=(heads := size("num_heads")),
        n_inner=size("intermediate_size", 4 * d),
        activation_function=files.choice(hf, "activation_function", "gelu_new", ACTIVATIONS, folder),
        layer_norm_epsilon=files.positive(hf, "layer_norm_epsilon", 1e-5, folder),
        scale_attn_weights=False,
        windows=_windows(hf, layers, folder),
        tied=files.flag(hf, "tie_word_embeddings", True, folder),
        precision=precision,
    )
    if d % heads:
        raise BadInput(f"{folder}/config.json: hidden_size {d} is not a multiple of num_heads {heads}")
    return config


def _windows(hf: dict, n_layer: int, folder: Path) -> tuple[int | None, ...]:
    """The attention window of each layer; empty if none has one."""
    layers = _expanded(hf, folder) if hf.get("attention_types") else hf.get("attention_layers")
    if (hf.get("attention_layers") or layers) != layers:
        raise BadInput(
            f"{folder}/config.json has attention_layers {hf['attention_layers']!r}, but attention_types "
            f"{hf['attention_types']!r} means {layers!r}: remove the wrong one"
        )
    if not isinstance(layers, list) or len(layers) != n_layer:
        raise BadInput(f"{folder}/config.json says attention_layers is {layers!r}: it must list all {n_layer} layers")
    for layer in layers:
        if layer not in ("global", "local"):
            raise BadInput(f"{folder} uses attention of type {layer!r}: only global and local are supported")
    if "local" not in layers:
        return ()
    window = files.size({"window_size": 256, **hf}, "window_size", folder)
    return tuple(window if layer == "local" else None for layer in layers)


def _expanded(hf: dict, folder: Path) -> list:
    """The attention of each layer from attention_types, [[types of some layers, how often they are repeated], ...]."""
    try:
        return [kind for kinds, times in hf["attention_types"] for kind in times * list(kinds)]
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{folder}/config.json says attention_types is {hf['attention_types']!r}: give a list such as "
            '[[["global", "local"], 6]]'
        ) from error


def from_hf(tensors: dict[str, np.ndarray], config: GPT2Config, shown="the model") -> dict:
    d, tensors = config.d_model, {name.removeprefix("transformer."): x for name, x in tensors.items()}
    named = lambda name: files.named(tensors, name, shown)
    for h in (f"h.{layer}" for layer in range(config.n_layer)):
        qkv = {name: named(name) for name in (f"{h}.attn.attention.{part}_proj.weight" for part in "qkv")}
        files.check_shapes(qkv, dict.fromkeys(qkv, np.empty((d, d))), shown)
        kernel = np.concatenate([*qkv.values()]).T
        tensors |= {f"{h}.attn.c_attn.weight": kernel, f"{h}.attn.c_attn.bias": np.zeros(3 * d, kernel.dtype)}
        tensors[f"{h}.attn.c_proj.weight"] = named(f"{h}.attn.attention.out_proj.weight").T
        tensors[f"{h}.attn.c_proj.bias"] = named(f"{h}.attn.attention.out_proj.bias")
        for name in (f"{h}.mlp.{part}.weight" for part in ("c_fc", "c_proj")):
            tensors[name] = named(name).T
    return gpt2.from_hf(tensors, config, shown)


ARCHITECTURE = replace(gpt2.ARCHITECTURE, read_config=read_config, from_hf=from_hf)
