"""The settings of the subject model; each field is a flag of `jaxsae train`."""

from dataclasses import dataclass

from jaxsae.precision import Precision


@dataclass(frozen=True)
class LMConfig:
    lm: str = "embedded"
    """Language model: embedded, a folder in Hugging Face format, or a hub name such as gpt2."""
    hook: str | None = None
    """Hook point, by TransformerLens's name: blocks.L. and hook_resid_pre, hook_resid_mid, hook_resid_post,
    hook_attn_out, hook_mlp_out, attn.hook_z, mlp.hook_in or mlp.hook_post; default: the residual stream at three
    quarters of the depth."""
    lm_precision: Precision = "float32"
    """Precision of the language model's matrix products."""
    process_weights: bool = False
    """Apply TransformerLens's weight processing (folded norms, centred writes) to the language model."""
