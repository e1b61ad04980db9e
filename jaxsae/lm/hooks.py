"""Names of the places in a language model where activations are read and replaced.

The names are TransformerLens's. `blocks.L.` is followed by one of

    hook_resid_pre    residual stream entering block L                     d     input of B
    hook_resid_mid    ... after the block's attention                      d     (not in parallel blocks)
    hook_resid_post   ... leaving block L                                  d     output of B (before the final norm)
    hook_attn_out     what attention adds to the stream                    d     output of B.self_attn
    hook_mlp_out      what the MLP adds to the stream                      d     output of B.mlp
    attn.hook_z       attention's heads, side by side                      H K   input of B.self_attn.o_proj
    mlp.hook_in       what the MLP reads, after the norm and its gain      d     input of B.mlp
    mlp.hook_post     what the MLP's output matrix reads                   F     input of B.mlp.down_proj

of d the width of the stream, H heads of width K, F neurons. The last column is where Hugging Face's Llama has the same
activation, with B for `model.layers.L`; docs/language-models.md has it for every family. In families that normalise
what a sublayer writes, `hook_attn_out` and `hook_mlp_out` come after that norm. `attn.hook_z` is TransformerLens's
[..., H, K] flattened.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxsae.errors import BadInput

RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
KINDS = (*RESIDUAL, "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_in", "mlp.hook_post")


@dataclass(frozen=True)
class Hook:
    """A parsed hook point: `kind` (one of KINDS) inside block `layer`."""

    layer: int
    kind: str

    @property
    def residual(self) -> bool:
        return self.kind in RESIDUAL

    def __str__(self):
        return f"blocks.{self.layer}.{self.kind}"


def parse(name: str, n_layer: int, kinds: Sequence[str] = KINDS) -> Hook:
    """The hook point called `name` of a model with `n_layer` blocks, each with hook points of these `kinds`.

    Raises BadInput for any other name.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not match or match[2] not in kinds:
        allowed = ", ".join(f"blocks.L.{kind}" for kind in kinds)
        raise BadInput(f"unknown hook point {name!r}: allowed are {allowed}, with L from 0 to {n_layer - 1}")
    layer = int(match[1])
    if layer >= n_layer:
        raise BadInput(
            f"hook point {name!r} is outside the model: it has {n_layer} blocks, so L goes from 0 to {n_layer - 1}"
        )
    return Hook(layer, match[2])


def default_hook(n_layer: int) -> str:
    """The residual stream at three quarters of the depth (Gao et al. 2024, sec. 2.1: block 8 of GPT-2 small's 12)."""
    return f"blocks.{max(1, n_layer * 3 // 4) - 1}.hook_resid_post"
