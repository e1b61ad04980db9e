"""The settings of the subject model; each field is a flag of `jaxsae train`."""

from dataclasses import dataclass
from typing import Literal

from jaxsae.errors import BadInput
from jaxsae.precision import Precision

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LMConfig:
    lm: str = "embedded"
    """Language model: embedded, a folder in Hugging Face format, or a hub name such as gpt2."""
    hook: str | tuple[str, ...] | None = None
    """Hook point, by TransformerLens's name: blocks.L. and hook_resid_pre, hook_resid_mid, hook_resid_post,
    hook_attn_out, hook_mlp_out, attn.hook_z, mlp.hook_in or mlp.hook_post; default: the residual stream at three
    quarters of the depth. `jaxsae train` takes several: it trains one autoencoder at each, from one pass of the model,
    in folders of their own under --run, or with --sae.crosscoder one code of all."""
    hook_out: str | None = None
    """A later hook point: train a transcoder, which reads at --hook and reconstructs the activation here, such as
    blocks.3.mlp.hook_in and blocks.3.hook_mlp_out. With --activations DIR#KEY: the array of the same files that is to
    be reconstructed."""
    lm_precision: Precision = "float32"
    """Precision of the language model's matrix products."""
    lm_dtype: Dtype = "float32"
    """Type in which the language model's weights are kept. Half precision takes half the memory; they are widened to
    float32 where they are read, so the results are those of a float32 model whose weights (and Gemma's scale of the
    embedding) are rounded so."""
    lm_shard: bool = False
    """Split the language model's weights over all devices of the mesh, and gather them layer by layer: for a model that
    one device cannot hold."""
    process_weights: bool = False
    """Apply TransformerLens's weight processing (folded norms, centred writes) to the language model."""

    def __post_init__(self):
        # Files may list the one hook point of an autoencoder.
        if isinstance(self.hook, tuple | list):
            object.__setattr__(self, "hook", self.hook[0] if len(self.hook) == 1 else tuple(self.hook))
        names = self.hook if isinstance(self.hook, tuple) else (self.hook,)
        if not all(isinstance(name, str | None) for name in names):
            raise BadInput(f"--hook is {self.hook!r}: give the name of a hook point")
