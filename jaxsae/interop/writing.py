"""What the writers of other libraries' formats share: folds with a note on each, and files of whole arrays."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxsae.errors import BadInput
from jaxsae.io import safetensors_rows
from jaxsae.sae import fold
from jaxsae.sae.activation_functions import jumprelu
from jaxsae.sae.types import SAE

NOTES: dict[Callable, str] = {
    fold.as_jumprelu: "it is written as JumpReLU, which it is outside training",
    fold.decoder_as_used: "decoder rows are divided by their norms",
    fold.decoder_norms: "decoder rows are scaled to norm 1, and latents are as much larger as rows were longer",
    fold.output_scale: "the unit of a transcoder's output is folded into its decoder",
    fold.input_bias: "what is subtracted from the input is folded into the encoder's bias",
    fold.subtracted_bias: "W_enc b_dec is folded into the encoder's bias, because b_dec is always subtracted there",
}


def plain(sae: SAE, library: str) -> tuple[SAE, list[str]]:
    """`sae` with its output in the units of the language model, and what was folded so. BadInput for crosscoders.

    Its `b_in` says whether it is a transcoder.
    """
    if sae.spec.sections > 1:
        raise BadInput(f"{library} has no crosscoders")
    return folded(sae, fold.output_scale)


def folded(sae: SAE, *changes: Callable) -> tuple[SAE, list[str]]:
    """`sae` after changes of fold.py, and a line on each that did change it."""
    notes = []
    for change in changes:
        before, sae = sae, change(sae)
        notes += [] if sae is before else [NOTES[change]]
    return sae, notes


def own_arrays(sae: SAE) -> dict[str, np.ndarray]:
    """The activation function's arrays; of JumpReLU `threshold` [n], not its logarithm."""
    if sae.spec.activation == "jumprelu":
        return {"threshold": np.asarray(jumprelu.thresholds(sae.extra))}
    return dict(sae.extra)


def safetensors(file: Path, arrays: dict):
    """Write arrays, whatever their strides."""
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors_rows.write(file, {name: np.asarray(a, order="C") for name, a in arrays.items()}, {"format": "pt"})


def document(file: Path, value: dict):
    """Write an object as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")
