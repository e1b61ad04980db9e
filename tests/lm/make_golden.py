"""Writes golden/ and golden_neo/: a tiny random GPT-2 and GPT-Neo in Hugging Face format, and what PyTorch computes.

    python -m venv torch-env
    torch-env/bin/pip install torch==2.14.1 transformers==5.24.0 safetensors numpy
    torch-env/bin/python tests/lm/make_golden.py

config.json and model.safetensors are the model; golden.npz holds `tokens` [2, 12], `logits` [2, 12, V] and every hook
point under its TransformerLens name, float32, and as `padded_logits` [2, 12, V] the logits after 4 tokens of padding.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

FOLDER = Path(__file__).parent


def tiny_gpt2():
    config = GPT2Config(
        vocab_size=101,
        n_positions=16,
        n_embd=32,
        n_layer=3,
        n_head=4,
        # Ten times the usual, so that no activation is so small that a wrong one would pass.
        initializer_range=0.2,
        bos_token_id=100,
        eos_token_id=100,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


def tiny_neo():
    config = GPTNeoConfig(
        vocab_size=31,
        max_position_embeddings=16,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        initializer_range=0.4,
        bos_token_id=30,
        eos_token_id=30,
        attn_implementation="eager",
    )
    return GPTNeoForCausalLM(config)


def randomise(model):
    # A fresh model has zero biases and unit gains: a swapped or forgotten one would not show.
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.normal_(std=0.2)
            elif "ln_" in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))


def hooked(model, tokens):
    """Logits of `tokens`, and {TransformerLens's name: activation}, by PyTorch's forward hooks."""
    seen = {}

    def output(module, name):
        def keep(_module, _inputs, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).numpy()

        module.register_forward_hook(keep)

    def first_input(module, name):
        def keep(_module, inputs):
            seen[name] = inputs[0].numpy()

        module.register_forward_pre_hook(keep)

    for layer, block in enumerate(model.transformer.h):
        first_input(block, f"blocks.{layer}.hook_resid_pre")
        # The output matrix reads the heads side by side: GPT-2's is within block.attn, GPT-Neo's one deeper.
        inner = getattr(block.attn, "attention", block.attn)
        first_input(getattr(inner, "out_proj", None) or inner.c_proj, f"blocks.{layer}.attn.hook_z")
        output(block.attn, f"blocks.{layer}.hook_attn_out")
        first_input(block.ln_2, f"blocks.{layer}.hook_resid_mid")
        first_input(block.mlp, f"blocks.{layer}.mlp.hook_in")
        output(block.mlp.act, f"blocks.{layer}.mlp.hook_post")
        output(block.mlp, f"blocks.{layer}.hook_mlp_out")
        output(block, f"blocks.{layer}.hook_resid_post")
    with torch.no_grad():
        return model(tokens).logits.numpy(), seen


def left_padded(model, tokens, padding=4):
    """The logits of `tokens` after so many tokens of padding, with the positions that generation gives them."""
    pad = torch.nn.functional.pad
    mask = pad(torch.ones_like(tokens), (padding, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(pad(tokens, (padding, 0)), attention_mask=mask, position_ids=positions).logits
    return logits[:, padding:].numpy()


def write(folder, make):
    torch.manual_seed(0)
    model = make().eval()
    randomise(model)
    tokens = torch.randint(model.config.vocab_size, (2, 12))
    # First, because the hooks stay.
    padded = left_padded(model, tokens)
    logits, seen = hooked(model, tokens)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    np.savez_compressed(folder / "golden.npz", tokens=tokens.numpy(), logits=logits, padded_logits=padded, **seen)


def main():
    # Sums then have one order, whatever the machine's number of cores.
    torch.set_num_threads(1)
    write(FOLDER / "golden", tiny_gpt2)
    write(FOLDER / "golden_neo", tiny_neo)


if __name__ == "__main__":
    main()
