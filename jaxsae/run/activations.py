"""`jaxsae activations`: what the latents of a run or of an exported autoencoder do on a text, for another tool."""

from pathlib import Path

from jaxsae import handover
from jaxsae.distributed import processes
from jaxsae.errors import BadInput
from jaxsae.run.eval_config import EvalConfig
from jaxsae.run.evaluate import open_subject


def activations(source: Path, out: Path, to: str, on: EvalConfig, configs=None) -> list[str]:
    """Write the activations of the autoencoder in `source` on what `on` says into the new folder `out`, in the form
    `to`; returns lines to print. Raises BadInput, with nothing written, for what cannot be written.
    """
    if out.exists():
        raise BadInput(f"{out} is there already: give another folder to write")
    if processes.is_distributed():
        raise BadInput("activations are handed over by one process: leave out --distributed")
    return handover.write(to, open_subject(source, on), out, configs)
