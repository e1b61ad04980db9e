"""Activations of latents in the form that other tools read: formats by name. Adding one is one file beside this one and
one line here; its flags are `--NAME.FLAG`.

delphi        the activation cache that delphi explains latents from
neuronpedia   a folder that a Neuronpedia instance imports
"""

from pathlib import Path

import jax

from jaxsae.errors import BadInput
from jaxsae.evals.subject import Subject
from jaxsae.flags import NoFlags, groups
from jaxsae.handover import delphi, neuronpedia
from jaxsae.handover.interface import Handover

FORMATS: dict[str, Handover] = {"delphi": delphi.FORMAT, "neuronpedia": neuronpedia.FORMAT}

HandoverConfigs = groups("HandoverConfigs", FORMATS, __name__)


def write(name: str, subject: Subject, folder: Path, configs=None) -> list[str]:
    """Write the activations of `subject` into the new `folder`; returns what was written, in lines to print.

    `configs` are HandoverConfigs (default: all defaults). Raises BadInput, before anything is written, for what the
    format cannot hold.
    """
    if name not in FORMATS:
        raise BadInput(f"--to is {name}: allowed are {', '.join(FORMATS)}")
    if folder.exists():
        raise BadInput(f"{folder} is there already: give another folder to write")
    if subject.lm is None or subject.tokenizer is None:
        raise BadInput("activations are handed over with their tokens, and these come from files: give --lm and --text")
    config = getattr(HandoverConfigs() if configs is None else configs, name, NoFlags())
    FORMATS[name].check(subject, config)
    with jax.set_mesh(subject.mesh):
        return FORMATS[name].write(subject, config, folder)
