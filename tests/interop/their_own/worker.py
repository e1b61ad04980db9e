"""Runs in a library's own environment: what its own code computes from files, written beside them.

    python worker.py FOLDER

FOLDER/x.npy holds activations [B, d]; each FOLDER/NAME/job.json says which loader reads the files beside it, and
FOLDER/NAME/theirs.npz gets `acts` [B, n] and `recon` [B, d_out].
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def sae_lens(folder: Path, job: dict):
    from sae_lens import SAE

    return SAE.load_from_disk(folder)


def sae_lens_loader(folder: Path, job: dict):
    """A loader of SAELens for files of others, which wants to fetch them from the hub."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id, filename=None, subfolder=None, **_):
        return str(folder / ("" if job.get("flat") else subfolder or "") / filename)

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = lambda repo, name: {
        key: list(a.shape) for key, a in loaders.load_safetensors_weights(folder / name).items()
    }
    config, state, _ = getattr(loaders, job["loader"])(
        job["repo"], job["folder"], cfg_overrides=job["overrides"] | {"dtype": "float32"}
    )
    if config.get("normalize_activations") == "expected_average_only_in":
        config["normalize_activations"] = "none"
    config = loaders.handle_config_defaulting(config)
    sae = SAE.from_dict(config)
    sae.load_state_dict({name: a.contiguous() for name, a in state.items()})
    if "scale" in job:
        sae.fold_activation_norm_scaling_factor(job["scale"])
    return sae


def sparsify(folder: Path, job: dict):
    from sparsify.sparse_coder import SparseCoder

    coder = SparseCoder.load_from_disk(folder)

    class Dense:
        def encode(self, x):
            values, indices, _ = coder.encode(x)
            return torch.zeros(len(x), coder.num_latents).scatter_(1, indices, values)

        def __call__(self, x):
            # With multi_topk, forward returns the pass of 4 k.
            values, indices, _ = coder.encode(x)
            y = coder.decode(values, indices)
            return y if coder.W_skip is None else y + x @ coder.W_skip.mT

    return Dense()


def dictionary_learning(folder: Path, job: dict):
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(folder), "cpu")[0]


def circuit_tracer(folder: Path, job: dict):
    """By the loader of the package on PyPI, which reads ReLU alone; the others in its own classes, as its newer loader
    puts them together.
    """
    import yaml
    from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, load_relu_transcoder
    from safetensors.torch import load_file

    config, file = yaml.safe_load((folder / "config.yaml").read_text()), folder / "layer_0.safetensors"
    state, cpu = load_file(file), torch.device("cpu")
    if (threshold := state.get("activation_function.threshold")) is not None:
        function = JumpReLU(threshold, 0.1)
    elif config.get("activation") == "topk":
        function = TopK(config["k"])
    else:
        return load_relu_transcoder(str(file), 0, device=cpu, lazy_encoder=False, lazy_decoder=False)
    n, d = state["W_enc"].shape
    sae = SingleLayerTranscoder(d, n, function, 0, skip_connection="W_skip" in state, device=cpu, dtype=torch.float32)
    sae.load_state_dict(state)
    return sae


def torch_module(folder: Path, job: dict):
    """Not a library's: jaxsae's own module for them, which is imported without JAX."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("torch_module", job["file"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return module.TorchSAE.load(folder)
    except ValueError as error:
        print(f"torch_module: {error}", file=sys.stderr)
        return None


LOADERS = {
    f.__name__: f for f in (torch_module, sae_lens, sae_lens_loader, sparsify, dictionary_learning, circuit_tracer)
}


def main(root: Path):
    torch.set_num_threads(1)
    x = torch.from_numpy(np.load(root / "x.npy"))
    for file in sorted(root.glob("*/job.json")):
        job = json.loads(file.read_text())
        with torch.no_grad():
            sae = LOADERS[job["library"]](file.parent, job)
            if sae is None:
                continue
            # A copy: some of them write into what they are given.
            np.savez(file.parent / "theirs.npz", acts=sae.encode(x.clone()).numpy(), recon=sae(x.clone()).numpy())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
