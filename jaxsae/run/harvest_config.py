"""What `jaxsae harvest` writes; each field is a flag."""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxsae.data.config import DataConfig
from jaxsae.errors import BadInput
from jaxsae.flags import FLAT
from jaxsae.lm.config import Dtype
from jaxsae.precision import Precision

# Flags of data that say nothing of what is written.
NOT_READ = ("activations", "held_out", "max_norm", "skip_first", "skip_tokens", "buffer_batches")


@dataclass(frozen=True)
class HarvestConfig:
    out: str
    """Folder to write, or one to go on with that the same flags have begun; `jaxsae train --activations OUT` reads it,
    OUT#HOOK if it holds several hook points."""
    lm: str = "embedded"
    """Language model: embedded, a folder in Hugging Face format, or a hub name such as gpt2."""
    hook: tuple[str, ...] = ()
    """Hook points, by TransformerLens's names, all read in one pass; default: the residual stream at three quarters of
    the depth."""
    tokens: int | None = None
    """Tokens to write for training; default: all of the text once."""
    held_out_tokens: int | None = None
    """Tokens of the text's held-out part to write; default: a nineteenth of --tokens, or what there is."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the numbers on disk."""
    shard_tokens: int = 65_536
    """Tokens of a file."""
    seed: int | None = 0
    """Seed of the order in which contexts are taken from the text; None: in the order of the text."""
    lm_precision: Precision = "float32"
    """Precision of the language model's matrix products."""
    lm_dtype: Dtype = "float32"
    """Type in which the language model's weights are kept, as in jaxsae train."""
    lm_shard: bool = False
    """Split the language model's weights over all devices, as in jaxsae train."""
    process_weights: bool = False
    """Apply TransformerLens's weight processing (folded norms, centred writes) to the language model."""
    data: Annotated[DataConfig, FLAT] = field(default_factory=DataConfig)

    def __post_init__(self):
        for name, least in (("tokens", 1), ("held_out_tokens", 0), ("shard_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadInput(f"--{name.replace('_', '-')} is {value}: give at least {least}")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise BadInput(f"--seed is {self.seed}: allowed is 0 to 2^32 - 1, or None for the order of the text")
        if twice := {name for name in self.hook if self.hook.count(name) > 1}:
            raise BadInput(f"--hook names {min(twice)} twice: give each hook point once")
        default = DataConfig()
        for f in dataclasses.fields(self.data):
            if f.name in NOT_READ and getattr(self.data, f.name) != getattr(default, f.name):
                raise BadInput(
                    f"--{f.name.replace('_', '-')} is of training, and a harvest writes every token's activations: "
                    "leave it out here, and give it to `jaxsae train`"
                )
