"""The settings of the data; each field is a flag of `jaxsae train`."""

from dataclasses import dataclass

from jaxsae.errors import BadInput


@dataclass(frozen=True)
class DataConfig:
    text: tuple[str, ...] = ("stdlib",)
    """Text sources: stdlib, files and globs (.txt, .jsonl, compressed or in archives), tfds:NAME, hf:NAME."""
    documents: int | None = None
    """Take only the first so many documents of the text; default: all."""
    activations: str | None = None
    """Train on activations from a folder of .npy or .safetensors shards [rows, d] instead of a language model's."""
    context: int = 64
    """Tokens of a context."""
    skip_first: bool = False
    """Leave out position 0 of each context."""
    buffer_batches: int = 16
    """Batches whose activations are computed, and shuffled, together."""
    cache: str | None = None
    """Folder for tokenised text; default: $JAXSAE_CACHE or ~/.cache/jaxsae."""

    def __post_init__(self):
        if self.context < 2:
            raise BadInput(f"--context is {self.context}: give at least 2 tokens")
        if self.documents is not None and self.documents < 1:
            raise BadInput(f"--documents is {self.documents}: give at least 1")
        if self.buffer_batches < 1:
            raise BadInput(f"--buffer-batches is {self.buffer_batches}: give at least 1 batch")
        if not self.text and self.activations is None:
            raise BadInput("--text is empty: give at least one source")
