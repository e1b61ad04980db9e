"""An autoencoder of jaxsae as a torch module, for tools that take one (SAEBench's custom SAEs, say).

    sae = TorchSAE.load("runs/demo/sae")        # a folder with sae.safetensors, or the file
    z = sae.encode(x)                           # [..., n], x [..., d] in the units of the language model
    xhat = sae.decode(z)                        # [..., d]

Only torch, NumPy and safetensors are needed, so it runs in an environment of such a tool, without JAX: see
docs/formats.md. Per-token normalisation is undone with the mean and scale of the tokens that were encoded last, as
SAELens does. Everything is float32.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import safe_open

ARRAYS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Config(SimpleNamespace):
    """What tools ask of an autoencoder's `cfg`."""

    def to_dict(self) -> dict:
        # `metadata` is what SAEBench adds, and is not for JSON.
        return {name: value for name, value in vars(self).items() if name != "metadata"}


class TorchSAE(torch.nn.Module):
    """W_enc [d, n] and W_dec [n, d], as torch libraries have them; `spec` is that of jaxsae."""

    def __init__(self, arrays: dict[str, torch.Tensor], spec: dict, about: dict):
        super().__init__()
        if spec["activation"] not in ACTIVATIONS or set(arrays) - {*ARRAYS} - {f"extra.{name}" for name in EXTRA}:
            raise ValueError(
                f"{spec['activation']} with {', '.join(arrays)}: allowed are autoencoders with {', '.join(ACTIVATIONS)}"
            )
        if spec.get("sections", 1) > 1:
            raise ValueError(f"a crosscoder of {spec['sections']} sections: allowed are autoencoders of one activation")
        self.spec, extra = spec, {name: arrays.get(f"extra.{name}") for name in EXTRA}
        rows = arrays["W_dec"]
        rows = rows / rows.norm(dim=1, keepdim=True) if spec["decoder"] == "normalised" else rows
        tensors = {"W_enc": arrays["W_enc"].T, "b_enc": arrays["b_enc"], "W_dec": rows, "b_dec": arrays["b_dec"]}
        for name, tensor in tensors.items():
            setattr(self, name, torch.nn.Parameter(tensor.contiguous(), requires_grad=False))
        threshold, logs = extra["threshold"], extra["log_threshold"]
        self.register_buffer("threshold", _at_least_0(threshold) if logs is None else logs.exp())
        self.register_buffer("r_mag", extra["r_mag"])
        self.register_buffer("b_mag", extra["b_mag"])
        self.cfg = self._config(about)

    @classmethod
    def load(cls, path: str | Path, **facts) -> "TorchSAE":
        """The autoencoder in a folder or file; `facts` (hook, lm, ...) go before what it says of itself.

        Raises ValueError for one that is not an autoencoder of these families.
        """
        path = Path(path)
        file = path if path.is_file() else path / "sae.safetensors"
        with safe_open(file, framework="pt") as opened:
            document = json.loads((opened.metadata() or {}).get("jaxsae", "{}"))
            if "spec" not in document:
                raise ValueError(f"{file} does not say what its arrays mean: give an export of jaxsae")
            arrays = {name: opened.get_tensor(name).float() for name in opened.keys()}
        return cls(arrays, document["spec"], document.get("about", {}) | facts)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        x, self._mean, self._scale = _normalised(x.to(self.dtype), self.spec["normalise"])
        x = x - self.b_dec if self.spec["subtract_b_dec"] else x
        return ACTIVATIONS[self.spec["activation"]](self, x @ self.W_enc + self.b_enc)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.W_dec + self.b_dec) * self._scale + self._mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(x))

    @property
    def device(self) -> torch.device:
        return self.W_enc.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_enc.dtype

    def _config(self, about: dict) -> Config:
        hook, (n, d) = str(about.get("hook") or ""), self.W_dec.shape
        layer = hook.split(".")[1] if hook.startswith("blocks.") else "0"
        said = {"model_name": about.get("lm"), "hook_name": hook, "hook_layer": int(layer), "hook_head_index": None}
        said |= {"d_in": d, "d_sae": n, "context_size": about.get("context"), "architecture": self.spec["activation"]}
        said |= {"apply_b_dec_to_input": self.spec["subtract_b_dec"], "normalize_activations": self.spec["normalise"]}
        said |= {"prepend_bos": bool(about.get("bos")), "dtype": "float32", "device": "cpu", "seqpos_slice": (None,)}
        processing = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed"), True)
        said |= {"model_from_pretrained_kwargs": processing if about.get("process_weights") else {}}
        said |= {"dataset_trust_remote_code": False, "exclude_special_tokens": False}
        said |= {"dataset_path": "", "training_tokens": about.get("tokens") or -1, "neuronpedia_id": None}
        return Config(**said, sae_lens_training_version=None, activation_fn_str=self.spec["activation"])


def _at_least_0(threshold):
    return None if threshold is None else threshold.clamp(min=0)


def _normalised(x: torch.Tensor, kind: str):
    """(normalised x [..., d], mean [..., 1], what the output is multiplied by [..., 1])."""
    mean = x.mean(-1, keepdim=True) * (kind in ("unit_norm", "ln_std"))
    x, ones = x - mean, torch.ones_like(x[..., :1])
    if kind == "none":
        return x, mean, ones
    if kind == "ln_std":
        scale = x.std(-1, keepdim=True)
        return x / (scale + 1e-5), mean, scale
    scale = x.norm(dim=-1, keepdim=True) * (x.shape[-1] ** -0.5 if kind == "norm" else 1)
    return x / torch.where(scale > 0, scale, ones), mean, scale


def _topk(sae: TorchSAE, u: torch.Tensor) -> torch.Tensor:
    values, indices = u.topk(sae.spec["k"], dim=-1)
    return torch.zeros_like(u).scatter_(-1, indices, values.relu())


def _above(sae: TorchSAE, u: torch.Tensor) -> torch.Tensor:
    return torch.where(u > sae.threshold, u, 0)


def _gated(sae: TorchSAE, u: torch.Tensor) -> torch.Tensor:
    return torch.where(u > 0, (sae.r_mag.exp() * (u - sae.b_enc) + sae.b_mag).relu(), 0)


def _prolu(sae: TorchSAE, u: torch.Tensor) -> torch.Tensor:
    m = u - sae.b_enc
    return torch.where((m > 0) & (m + sae.b_enc > 0), m, 0)


# Of pre-activations u [..., n]. BatchTopK is what it is outside training.
ACTIVATIONS = {"topk": _topk, "multi_topk": _topk, "relu": lambda sae, u: u.relu(), "jumprelu": _above, "gated": _gated}
ACTIVATIONS |= {"batch_topk": _above, "prolu_relu": _prolu, "prolu_ste": _prolu}
# The arrays of activation functions.
EXTRA = ("threshold", "log_threshold", "r_mag", "b_mag")
