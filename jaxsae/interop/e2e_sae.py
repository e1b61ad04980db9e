"""ApolloResearch/e2e_sae, both layouts: `samples_N.pt` with `final_config.yaml`, and the hub's NAME.pt with NAME.yaml.

    u = relu(W_enc x + b_enc);   xhat = u W_dec + b_dec        rows of W_dec divided by their norms where they are used

A file of a run may hold several autoencoders, one for each position: `--hook` says which. The language model is one
that TransformerLens has processed.
"""

from pathlib import Path

from jaxsae.errors import BadInput
from jaxsae.interop import reading
from jaxsae.interop.interface import Format, Given
from jaxsae.io import torch_files
from jaxsae.sae.types import SAE, Spec

RUN = ("encoder.0.weight", "encoder.0.bias", "decoder.weight", "decoder.bias")
HUB = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def recognises(path: Path) -> Path | None:
    file = reading.only_file(path, "*.pt")
    return file if file is not None and _config(file) is not None and _is_one(reading.keys(file)) else None


def _config(file: Path) -> Path | None:
    return next((c for c in (file.with_suffix(".yaml"), file.parent / "final_config.yaml") if c.is_file()), None)


def _is_one(names: set[str]) -> bool:
    return names == set(HUB) or any(name.endswith(RUN[0]) for name in names)


def read(file: Path, given: Given) -> tuple[SAE, dict]:
    state, config = torch_files.load(file), reading.document(_config(file))
    (positions,) = reading.need(config, ("saes.sae_positions",), _config(file))
    positions = [positions] if isinstance(positions, str) else positions
    if len(positions) > 1 and given.hook not in positions:
        raise BadInput(f"{file} holds autoencoders of {', '.join(positions)}: give --hook, one of them")
    hook = given.hook if given.hook in positions else positions[0]
    names = HUB if set(state) == set(HUB) else tuple(f"{hook.replace('.', '-')}.{name}" for name in RUN)
    others = tuple(name for name in state if any(str(name).startswith(f"{at.replace('.', '-')}.") for at in positions))
    W_enc, b_enc, W_dec, b_dec, *_ = reading.take(state, names, file, tuple(set(others) - set(names)))
    sae = reading.made(Spec("relu", 1, "none", "normalised", False), file, W_enc, b_enc, W_dec.T, b_dec)
    places = given.places(hook, None, reading.hub_name(config.get("tlens_model_name")), file)
    return sae, reading.about(sae, "e2e_sae", places, process_weights=True, source=config)


FORMAT = Format(recognises, read, files=("final_config.yaml",))
