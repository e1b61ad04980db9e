"""Hugging Face transformers: the residual stream after some blocks, the later ones left out."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from benchmarks.peers.protocol import Built

PACKAGES = ("transformers", "torch")


def build(settings: dict) -> Built:
    torch.set_num_threads(settings["cores"])
    folder = Path(settings["folder"])
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        facts = dict(settings["model"])
        config = AutoConfig.for_model(facts.pop("model_type"), **facts)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    model = AutoModel.from_pretrained(folder, num_hidden_layers=settings["blocks"], dtype=torch.float32).eval()
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == settings["blocks"])
    seen = []
    blocks[-1].register_forward_hook(lambda *parts: seen.append(parts[2][0] if type(parts[2]) is tuple else parts[2]))
    ids = torch.arange(settings["tokens"]) * 7919 % model.config.vocab_size
    ids = ids.reshape(-1, settings["context"]).split(settings["at_once"] // settings["context"])

    def step() -> float:
        seen.clear()
        with torch.inference_mode():
            for some in ids:
                model(input_ids=some, use_cache=False)
            return torch.stack([x.square().mean() for x in seen]).mean().item()

    return Built(step, "cpu")
