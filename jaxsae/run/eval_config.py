"""What a run or an autoencoder is evaluated on; each field is a flag of `jaxsae eval`."""

from dataclasses import dataclass
from typing import Literal

from jaxsae.config import Config, with_fields
from jaxsae.data.config import is_synthetic
from jaxsae.errors import BadInput

# Of the run's own data.
TOKENS = 262_144


@dataclass(frozen=True)
class EvalConfig:
    lm: str | None = None
    """Language model: embedded, a folder in Hugging Face format, or a hub name; default: that of the run."""
    lm_shard: bool | None = None
    """Split the language model's weights over all devices; default: as the run."""
    text: tuple[str, ...] = ()
    """Text sources; default: those of the run."""
    hook: str | None = None
    """Hook point of an autoencoder that does not say it, as those of other libraries may not."""
    hook_out: str | None = None
    """Of a transcoder that does not say it: the hook point of what it makes."""
    activations: str | None = None
    """Activations from files, DIR or DIR#KEY, or synthetic:NAME, instead of a language model's."""
    documents: int | None = None
    """Take only the first so many documents of the text; default: as many as the run, or all of --text."""
    context: int | None = None
    """Tokens of a context; default: as in the run."""
    tokens: int | None = None
    """Tokens to evaluate on, if there are so many; default: 262,144 of what the run was trained on, all of what --text
    or --activations gives."""
    split: Literal["held_out", "all"] | None = None
    """held_out, every twentieth document, or all; default: held_out of what the run was trained on, all of what --text
    or --activations gives."""
    step: int | None = None
    """Step of the run's checkpoint; default: the newest."""
    mesh: tuple[int, int] | None = None
    """Devices along `data` and along `latent`; default: all on `data`, or on `latent` if the weights need it."""

    def __post_init__(self):
        for name in ("tokens", "documents"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"--{name} is {getattr(self, name)}: give at least 1")
        if self.activations and (self.text or self.lm or self.documents or self.context):
            raise BadInput("--activations are read instead of text: leave out --lm, --text, --documents and --context")

    def data_of(self, config: Config) -> Config:
        """`config` with the language model and data of these flags.

        Raises BadInput if neither says what to read the text with.
        """
        if self.activations:
            return _on_files(config, self.activations)
        changes = {name: getattr(self, name) for name in ("lm", "documents", "context") if getattr(self, name)}
        if self.lm_shard is not None:
            config = with_fields(config, lm_shard=self.lm_shard)
        if self.text:
            # The documents of another text are not those of this one.
            changes |= {"text": self.text, "documents": self.documents}
        if config.data.activations is not None and changes:
            if not (self.lm and self.text and config.lm.hook):
                raise BadInput(
                    "the autoencoder was trained on activations from files: give --activations, or --lm and --text if "
                    "it says at which hook point they were taken"
                )
            changes |= {"activations": None, "held_out": None, "max_norm": None}
        return with_fields(config, **changes)

    @property
    def brings_data(self) -> bool:
        """Whether it is evaluated on other data than the run's own."""
        return bool(self.text or self.activations)

    @property
    def split_read(self) -> str:
        """The split that is read."""
        return self.split or ("all" if self.brings_data else "held_out")

    @property
    def tokens_read(self) -> int | None:
        """How many tokens are read if there are so many; None: all."""
        # There is no end of synthetic activations.
        return self.tokens or (None if self.brings_data and not is_synthetic(self.activations) else TOKENS)


def _on_files(config: Config, activations: str) -> Config:
    """`config` with other activations. What they do not say cannot be left out: positions, tokens."""
    from jaxsae.data.arrays.folder import open_shards

    shard = None if is_synthetic(activations) else open_shards(activations, out=config.lm.hook_out)[0]
    changes = {} if shard and shard.context is not None else {"skip_first": False}
    changes |= {} if shard and shard.tokens is not None else {"skip_tokens": ()}
    return with_fields(config, activations=activations, held_out=None, **changes)
