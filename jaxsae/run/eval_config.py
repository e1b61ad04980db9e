"""What a run or an autoencoder is evaluated on; each field is a flag of `jaxsae eval`."""

from dataclasses import dataclass
from typing import Literal

from jaxsae.config import Config, with_fields
from jaxsae.errors import BadInput


@dataclass(frozen=True)
class EvalConfig:
    lm: str | None = None
    """Language model: embedded, a folder in Hugging Face format, or a hub name; default: that of the run."""
    text: tuple[str, ...] = ()
    """Text sources; default: those of the run."""
    activations: str | None = None
    """Activations from a folder of .npy or .safetensors shards [rows, d], instead of a language model's."""
    documents: int | None = None
    """Take only the first so many documents of the text; default: as many as the run, or all of --text."""
    context: int | None = None
    """Tokens of a context; default: as in the run."""
    tokens: int = 262_144
    """Tokens to evaluate on, if there are so many."""
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
            return with_fields(config, activations=self.activations)
        changes = {name: getattr(self, name) for name in ("lm", "documents", "context") if getattr(self, name)}
        if self.text:
            # The documents of another text are not those of this one.
            changes |= {"text": self.text, "documents": self.documents}
        if config.data.activations is not None and changes:
            if not (self.lm and self.text and config.lm.hook):
                raise BadInput(
                    "the autoencoder was trained on activations from files: give --activations, or --lm and --text if "
                    "it says at which hook point they were taken"
                )
            changes["activations"] = None
        return with_fields(config, **changes)

    @property
    def split_read(self) -> str:
        """The split that is read."""
        return self.split or ("all" if self.text or self.activations else "held_out")
