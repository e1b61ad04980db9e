"""What an autoencoder of another library is evaluated with: what its file says, and else the user."""

from jaxsae.config import Config, with_fields
from jaxsae.data.config import DataConfig
from jaxsae.errors import BadInput
from jaxsae.lm.config import LMConfig
from jaxsae.run.eval_config import EvalConfig
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.types import Spec


def config_of(about: dict) -> Config:
    """What `about`, of an autoencoder of another library, says of its model, hook and contexts, as a configuration."""
    spec = Spec(**about["spec"] | {"prefixes": tuple(about["spec"]["prefixes"])})
    sae = SAEConfig(
        about["n"],
        spec.k,
        spec.activation,
        spec.prefixes,
        normalise=spec.normalise,
        decoder=spec.decoder,
        subtract_b_dec=spec.subtract_b_dec,
    )
    lm = {"lm": about["lm"]} if about.get("lm") else {}
    lm = LMConfig(**lm, hook=about.get("hook"), process_weights=about.get("process_weights") or False)
    context = {"context": about["context"]} if about.get("context") else {}
    config = Config(lm=lm, data=DataConfig(bos=about.get("bos") or False, **context), sae=sae)
    return _transcoder(config, about.get("hook_out"), about)


def _transcoder(config: Config, hook_out: str | None, about: dict) -> Config:
    if hook_out is None:
        return config
    return with_fields(config, hook_out=hook_out, **{"sae.skip": about.get("skip", False)})


def completed(config: Config, on: EvalConfig, about: dict, source: str) -> Config:
    """`config` at the hook points that `on` says. Raises BadInput if neither says what to evaluate it on."""
    said = {"hook": about.get("hook"), "lm": about.get("lm"), "text": None}
    said |= {"hook_out": about.get("hook_out")} if about.get("transcoder") else {}
    for name in ("hook", "hook_out"):
        given = getattr(on, name)
        if given and said.get(name) not in (None, given):
            raise BadInput(f"{source} says that {name} is {said[name]}, and {_flag(name)} is {given}: leave it out")
    missing = [_flag(name) for name, value in said.items() if not value and not getattr(on, name)]
    if missing and not on.activations:
        raise BadInput(f"{source} does not say what to evaluate it on: give {', '.join(missing)}, or --activations DIR")
    config = with_fields(config, hook=on.hook) if on.hook else config
    return _transcoder(config, on.hook_out, about)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
