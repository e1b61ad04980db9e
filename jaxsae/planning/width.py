"""The widths of the activations of a run and the shape of its language model, from files' headers alone."""

from pathlib import Path

from jaxsae.config import Config
from jaxsae.data.arrays.opened import widths_of
from jaxsae.data.config import is_synthetic
from jaxsae.data.synthetic import world_of
from jaxsae.errors import BadInput
from jaxsae.lm import architecture, weights
from jaxsae.lm.hooks import default_hook


def widths(config: Config) -> tuple[int, int | None]:
    """(d, d_out) of a run's activations; d_out is None but for a transcoder.

    Raises BadInput if neither files nor a language model say them.
    """
    out = config.lm.hook_out
    if is_synthetic(config.data.activations):
        return world_of(config.data.activations).width, None
    if config.data.activations is not None:
        return widths_of(config.data.activations, out)
    lm = lm_config(config)
    if out is not None:
        architecture.check_order(lm, config.lm.hook, out)
    d = sum(architecture.width(lm, hook) for hook in config.hooks or [default_hook(lm.n_layer)])
    return d, None if out is None else architecture.width(lm, out)


def lm_config(config: Config):
    """The language model's shape; of a model on the hub nothing but its config.json is fetched."""
    name = config.lm.lm
    if name == weights.EMBEDDED or Path(name).is_dir() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return weights.read_config(weights.find_folder(name))
    from huggingface_hub import hf_hub_download

    try:
        return weights.read_config(Path(hf_hub_download(name, "config.json")).parent)
    except BadInput:
        raise
    except Exception as error:  # no network, no such name, no permission
        raise BadInput(
            f"--lm {name} is neither {weights.EMBEDDED} nor a folder, and its config.json could not be had from the "
            f"hub; give --d-model, the width of its activations: {error}"
        ) from error
