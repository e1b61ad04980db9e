"""What a file format is to the rest of the package."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any

import tyro

from jaxsae.errors import BadInput
from jaxsae.sae.normalise import Normalise


def _flag(name: str):
    return tyro.conf.arg(name=name)


@dataclass(frozen=True)
class Given:
    """What a file may leave open, as the user says it; None: it is not said."""

    hook: str | None = None
    """Hook point of the activations that the autoencoder reads, by TransformerLens's name."""
    hook_out: str | None = None
    """Of a transcoder: hook point of the activations that it makes."""
    lm: str | None = None
    """Language model: a folder in Hugging Face format, or a hub name."""
    k: Annotated[int | None, _flag("sae.k")] = None
    """Latents kept per token."""
    normalise: Annotated[Normalise | None, _flag("sae.normalise")] = None
    """Per-token normalisation."""
    subtract_b_dec: Annotated[bool | None, _flag("sae.subtract-b-dec")] = None
    """Whether the encoder sees x - b_dec."""
    input_scale: Annotated[float | None, _flag("sae.input-scale")] = None
    """Constant that activations are multiplied by first; 1: nothing is."""
    unit_norm_decoder: Annotated[bool | None, _flag("sae.unit-norm-decoder")] = None
    """Of dictionary_learning's AutoEncoder: whether rows of the decoder are scaled to norm 1, as its own loader does by
    default."""

    def resolve(self, name: str, said: Any, file) -> Any:
        """What the user says of `name`, or what the file says. Raises BadInput if neither does, or if they differ."""
        given = getattr(self, name)
        if given is not None and said is not None and given != said:
            raise BadInput(f"{file} says that {name} is {said}, and {FLAGS[name]} is {given}: leave it out")
        if given is None and said is None:
            raise BadInput(
                f"{file} does not say {name}, and nothing is guessed: give {FLAGS[name]} (in Python: {name}=...)"
            )
        return said if given is None else given

    def scale(self, applies: bool, said: float | None, file) -> float:
        """The constant to fold into the weights if one `applies`, as the file says or the user; else 1."""
        if applies:
            return self.resolve("input_scale", said, file)
        if self.input_scale not in (None, 1):
            raise BadInput(f"{FLAGS['input_scale']} is {self.input_scale}, and {file} scales nothing: leave it out")
        return 1

    def check(self, spec, about: dict, file):
        """Raises BadInput if the user says of the mathematics what was not read from `file`: it must not be ignored."""
        for name in ("k", "normalise", "subtract_b_dec"):
            given, read = getattr(self, name), getattr(spec, name)
            if given is not None and given != read:
                raise BadInput(f"{file} has {name} {read}, and {FLAGS[name]} is {given}: leave it out")
        if self.unit_norm_decoder is not None and about.get("dict_class") != "AutoEncoder":
            raise BadInput(f"{FLAGS['unit_norm_decoder']} is of dictionary_learning's AutoEncoder: leave it out")

    def places(self, hook=None, hook_out=None, lm=None, file=None) -> dict:
        """The hook points and the language model of `about`: as the file says, or the user; None if nobody does.

        The user may say another place of the language model.
        """
        hooks = {"hook": hook, "hook_out": hook_out}
        known = [name for name, said in hooks.items() if said is not None or getattr(self, name) is not None]
        return hooks | {name: self.resolve(name, hooks[name], file) for name in known} | {"lm": self.lm or lm}


NOTHING = Given()

FLAGS = {f.name: f"--{f.name.replace('_', '-')}" for f in fields(Given)}
FLAGS |= {
    name: f"--sae.{name.replace('_', '-')}"
    for name in ("k", "normalise", "subtract_b_dec", "input_scale", "unit_norm_decoder")
}


@dataclass(frozen=True)
class Format:
    """A format of saved autoencoders.

    recognises(path)        -> the file or folder to read, by what is there and never by guess; None if it is not one
    read(file, given)       -> (SAE, about): arrays that are read when they are sliced by rows (with `shape`, `dtype`,
                            `ndim`), and what the file says of itself, its spec included; `given` (a `Given`) says what
                            the file leaves open. Raises BadInput
    write(sae, about, folder)
                            writes an autoencoder of NumPy arrays, and returns what had to be folded, in lines; raises
                            BadInput before anything is written if the format cannot say it. None: it is only read
    files                   names of the files that it may have in its folder: all that is fetched of one on the hub
    """

    recognises: Callable
    read: Callable
    write: Callable | None = None
    files: tuple[str, ...] = ()
