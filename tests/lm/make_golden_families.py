"""Writes families/: tiny random models of each rotary family, as save_pretrained writes them, and PyTorch's numbers.

    python -m venv torch-env
    torch-env/bin/pip install torch==2.14.1 transformers==5.24.0 safetensors numpy pillow torchvision
    torch-env/bin/python tests/lm/make_golden_families.py [NAME ...]

Each folder is one variant. Contexts are longer than windows and than `original_max_position_embeddings`, so that those
act. golden.npz holds `tokens` [2, 12], `logits` [2, 12, V] and every hook point under its TransformerLens name, but for
those `hook_resid_pre` that are the `hook_resid_post` of the block before. All is float64: transformers computes norms,
softmax and angles in float32 whatever the weights, so here that name means float64. The script itself checks that
transformers as it is, in float32, gives the same to 1e-4.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers as hf
from transformers import AutoModelForCausalLM

FOLDER = Path(__file__).parent / "families"

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    # Ten times the usual, so that no activation is so small that a wrong one would pass.
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GQA = SIZES | {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 5, "num_hidden_layers": 3}
# Of the four or eight pairs of a head some are kept, some slowed, and some lie between.
LLAMA3 = {"rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 0.1, "high_freq_factor": 0.5}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "beta_fast": 0.8, "beta_slow": 0.05}
TRAINED = {"original_max_position_embeddings": 6}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0}


def gemma3_text(**changes):
    blocks = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 10.0}}
    pattern = ["sliding_attention", "sliding_attention", "full_attention"]
    facts = GQA | WINDOW | {"head_dim": 16, "query_pre_attn_scalar": 11, "rope_parameters": blocks}
    return hf.Gemma3TextConfig(**facts | {"layer_types": pattern} | changes)


def gemma3():
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = hf.SiglipVisionConfig(**vision, image_size=8, patch_size=4)
    text = gemma3_text(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    tokens = {"image_token_index": 94, "boi_token_index": 95, "eoi_token_index": 96}
    return hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **tokens)


VARIANTS = {
    "llama": lambda: hf.LlamaConfig(**GQA, rope_parameters=LLAMA3 | TRAINED),
    "llama_biased": lambda: hf.LlamaConfig(
        **SIZES, head_dim=16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=LINEAR
    ),
    "mistral": lambda: hf.MistralConfig(**GQA | {"sliding_window": 5}),
    "qwen2": lambda: hf.Qwen2Config(
        **GQA | WINDOW,
        use_sliding_window=True,
        max_window_layers=2,
        tie_word_embeddings=True,
        rope_parameters=YARN | TRAINED,
    ),
    "qwen3": lambda: hf.Qwen3Config(
        **GQA,
        head_dim=16,
        rope_parameters=YARN | TRAINED | {"truncate": False, "attention_factor": 1.3},
    ),
    "gpt_neox": lambda: hf.GPTNeoXConfig(
        **SIZES | {"num_attention_heads": 2},
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.25},
    ),
    "gpt_neox_serial": lambda: hf.GPTNeoXConfig(
        **SIZES,
        use_parallel_residual=False,
        attention_bias=False,
        tie_word_embeddings=True,
        rope_parameters=LINEAR | {"partial_rotary_factor": 0.5},
    ),
    "gemma": lambda: hf.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(
        **GQA | WINDOW,
        head_dim=16,
        query_pre_attn_scalar=11,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gemma3_text": gemma3_text,
    "gemma3": gemma3,
}

# Weights that are written in several files, and in float32; the others are in one, in bfloat16.
SHARDED = "qwen3"


def randomise(model):
    # A fresh model has zero biases and unit gains: a swapped or forgotten one would not show.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.normal_(std=0.2)
            elif "norm" in name:
                p.add_(0.3 * torch.randn_like(p))
            p.copy_(p.bfloat16())


def hooked(model, tokens):
    """Logits of `tokens`, and {TransformerLens's name: activation}, by PyTorch's forward hooks."""
    seen, handles = {}, []

    def output(module, name):
        def keep(_module, _inputs, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).numpy()

        handles.append(module.register_forward_hook(keep))

    def first_input(module, name):
        def keep(_module, inputs, named):
            seen[name] = (inputs[0] if inputs else named["hidden_states"]).numpy()

        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    neox = model.config.model_type == "gpt_neox"
    body = model.gpt_neox if neox else getattr(model.model, "language_model", model.model)
    for layer, block in enumerate(body.layers):
        at = lambda kind, layer=layer: f"blocks.{layer}.{kind}"
        if layer == 0:
            first_input(block, at("hook_resid_pre"))
        attention, mlp = (block.attention if neox else block.self_attn), block.mlp
        first_input(attention.dense if neox else attention.o_proj, at("attn.hook_z"))
        first_input(mlp, at("mlp.hook_in"))
        first_input(mlp.dense_4h_to_h if neox else mlp.down_proj, at("mlp.hook_post"))
        if hasattr(block, "post_feedforward_layernorm"):
            output(block.post_attention_layernorm, at("hook_attn_out"))
            first_input(block.pre_feedforward_layernorm, at("hook_resid_mid"))
            output(block.post_feedforward_layernorm, at("hook_mlp_out"))
        else:
            output(attention, at("hook_attn_out"))
            if not (neox and model.config.use_parallel_residual):
                first_input(block.post_attention_layernorm, at("hook_resid_mid"))
            output(mlp, at("hook_mlp_out"))
        output(block, at("hook_resid_post"))
    with torch.no_grad():
        seen["logits"] = model(tokens).logits.numpy()
    for handle in handles:
        handle.remove()
    return seen


class Float64:
    """What transformers computes in float32 whatever the weights, it computes in float64."""

    names = ((torch, "float32"), (torch, "float"), (torch.Tensor, "float"))

    def __enter__(self):
        self.before = [getattr(owner, name) for owner, name in self.names]
        for (owner, name), value in zip(self.names, (torch.float64, torch.float64, torch.Tensor.double)):
            setattr(owner, name, value)
        torch.set_default_dtype(torch.float64)

    def __exit__(self, *_):
        for (owner, name), value in zip(self.names, self.before):
            setattr(owner, name, value)
        torch.set_default_dtype(torch.float32)


def in_float64(model, tokens):
    """`hooked` of the model in float64 throughout."""
    model.double()
    with Float64():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if "RotaryEmbedding" in type(child).__name__:
                    setattr(module, name, type(child)(child.config))
            if hasattr(module, "scalar_embed_scale"):
                module.embed_scale = torch.tensor(module.scalar_embed_scale)
        return hooked(model, tokens)


def write(name):
    folder = FOLDER / name
    torch.manual_seed(0)
    config = VARIANTS[name]()
    config._attn_implementation = "eager"
    kind = hf.Gemma3ForConditionalGeneration if name == "gemma3" else AutoModelForCausalLM
    model = kind.from_config(config) if kind is AutoModelForCausalLM else kind(config)
    model.eval()
    randomise(model)
    tokens = torch.randint(97, (2, 12))
    if name == SHARDED:
        model.save_pretrained(folder, max_shard_size="40KB")
    else:
        model.bfloat16().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    # As the files have it.
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    usual, exact = hooked(model, tokens), in_float64(model, tokens)
    assert usual.keys() == exact.keys()
    worst = max(np.abs(usual[key] - exact[key]).max() for key in exact)
    largest = max(np.abs(exact[key]).max() for key in exact)
    assert worst < 1e-4 and all(x.dtype == np.float64 for x in exact.values()), worst
    kept = {"logits": exact["logits"]} if name == "gemma3" else exact
    np.savez_compressed(folder / "golden.npz", tokens=tokens.numpy(), **kept)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{name}: float32 differs by {worst:.1e} at most, largest {largest:.3g}, {size / 1e3:.0f} kB", flush=True)


def main():
    # Sums then have one order, whatever the machine's number of cores.
    torch.set_num_threads(1)
    for name in sys.argv[1:] or VARIANTS:
        write(name)


if __name__ == "__main__":
    main()
