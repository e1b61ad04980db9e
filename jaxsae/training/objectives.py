"""What a reconstruction is held against. B tokens of b contexts of length T, d width.

    local           squared error of the activation itself
    e2e             KL(original || substituted) of the model's predictions
    e2e_downstream  that, and squared errors of the residual stream at later hook points
    finetune_kl     KL and squared error in equal parts (Karvonen 2025), to finish a locally trained autoencoder

An objective knows no code: its arrays are global, and the language model's are frozen. The prefix of the language model
runs once, its suffix once for the original and once for each reconstruction (finetune_kl in pieces: twice).
(Braun et al. 2024, sec. 2, in the form of their code.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxsae.errors import BadInput
from jaxsae.lm.divergence import kl_of_streams
from jaxsae.lm.gpt2 import GPT2Config, halves_before
from jaxsae.lm.hooks import Hook, parse
from jaxsae.lm.model import LM, advance, final, prefix
from jaxsae.mesh import on_contexts
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.training.config import SAEConfig, TrainingConfig

FINAL = "final"


@partial(jax.tree_util.register_dataclass, data_fields=["x", "y", "mean", "scale", "original"], meta_fields=[])
@dataclass(frozen=True)
class Task:
    """A batch made ready: what goes in, what should come out, and what else the objective looks at. No gradient."""

    x: Any  # [B@data, d] normalised
    y: Any  # [B@data, d] normalised
    mean: Any = None  # [B@data] subtracted from each token
    scale: Any = None  # [B@data] by which each token was divided
    original: Any = None  # {hook or FINAL: [b, T, d]}, the streams of the original pass


@dataclass(frozen=True)
class Objective:
    prepare: Callable  # (batch, lm) -> Task
    parts: Callable  # (xhat [B@data, d] normalised, task, lm, mse_scale, units) -> {name: mean over tokens}
    loss: Callable  # (parts, parts of the whole batch without gradient) -> scalar
    balanced: bool = False  # whether `loss` looks at the whole batch
    end_to_end: bool = False  # whether batches are token ids [b@data, T]
    # (task of the whole batch, in one piece or in several) -> what `parts` measures errors in
    units: Callable = lambda task: None


def squared_error(xhat, y, mse_scale):
    """Over B and d, times `mse_scale` (Gao et al. 2024, app. A.6: about 1 for predicting the mean)."""
    return mse_scale * jnp.mean((xhat - y) ** 2)


# Batches are pairs (x, y) of normalised activations.
LOCAL = Objective(
    prepare=lambda batch, lm: Task(*batch),
    parts=lambda xhat, task, lm, mse_scale, units: {"reconstruction": squared_error(xhat, task.y, mse_scale)},
    loss=lambda parts, whole: parts["reconstruction"],
)


def make_objective(sae: SAEConfig, training: TrainingConfig, config: GPT2Config | None = None, hook: str = ""):
    """The objective of a run; those that look at a language model need its configuration and the hook point.

    Raises BadInput where it cannot be computed there.
    """
    paper = training.form == "paper"
    if training.objective == "local":
        return _summed(LOCAL) if paper else LOCAL
    if config is None:
        raise BadInput(f"--objective {training.objective} needs a language model: leave out --activations")
    hook = parse(hook, config.n_layer)
    if not hook.residual:
        raise BadInput(f"--objective {training.objective} at {hook}: it needs a hook point in the residual stream")
    trained = downstream_weights(training, config, hook)
    # Every later place is looked at, trained or not; what is trained keeps the name that it was given.
    places = [str(Hook(layer, "hook_resid_post")) for layer in range(hook.layer, config.n_layer)]
    places = {_depth(place, config): place for place in (*places, *trained)}
    places = [places[depth] for depth in sorted(places) if depth > halves_before(hook)]
    step = partial(jax.checkpoint, static_argnums=(2, 3))(advance) if training.remat else advance

    def streams(lm: LM, raw):
        """{hook or FINAL: [b, T, d]} from the stream at the autoencoder's hook point."""
        out, at = {}, hook
        for place in places:
            out[place] = raw = step(lm, raw, at, place)
            at = place
        return out | {FINAL: final(lm, raw, at)}

    def prepare(tokens, lm: LM) -> Task:
        def run(lm, tokens):
            raw = prefix(lm, tokens, hook)
            return {str(hook): raw} | streams(lm, raw)

        original = lax.stop_gradient(on_contexts(run, lm, tokens))
        x, mean, scale = normalise(flat(original[str(hook)]), sae.normalise)
        return Task(x, x, mean, scale, original)

    def units(task: Task):
        """The variance of the original stream at every place whose error is trained."""
        tokens = lambda a: tuple(range(a.ndim - 1))
        variance = lambda a: jnp.mean((a - a.mean(tokens(a))) ** 2)
        return {place: variance(task.original[place]) for place in trained}

    def parts(xhat, task: Task, lm: LM, mse_scale, units):
        b, T, d = task.original[FINAL].shape
        raw = lax.reshape(denormalise(xhat, task.mean, task.scale), (b, T, d), out_sharding=P("data"))

        def compare(lm, raw, original):
            new = {str(hook): raw} | streams(lm, raw)
            flat = lambda a: a.reshape(-1, d)
            kl = kl_of_streams(lm, flat(original[FINAL]), flat(new[FINAL]), training.kl_chunk, reverse=paper)
            error = lambda place: ((new[place] - original[place]) ** 2).mean((1, 2))
            return {"kl": kl.reshape(-1, T).mean(1)} | {f"mse/{place}": error(place) for place in (str(hook), *places)}

        means = jax.tree.map(jnp.mean, on_contexts(compare, lax.stop_gradient(lm), raw, task.original))
        means |= {f"fvu/{place}": means[f"mse/{place}"] / unit for place, unit in units.items()}
        return means | {"reconstruction": squared_error(xhat, task.y, mse_scale)}

    factor = config.n_embd if paper else 1

    def balanced(parts, whole):
        # Recomputed at every step: the value stays that of the squared error, and with it what was tuned for it.
        alpha = whole["reconstruction"] / (whole["kl"] + 1e-8)
        return (alpha * parts["kl"] + parts["reconstruction"]) / 2

    def loss(parts, whole):
        total = training.kl_weight() * parts["kl"] + factor * training.reconstruction_coef * parts["reconstruction"]
        error = "mse" if training.error_unit == "one" else "fvu"
        return total + factor * sum(weight * parts[f"{error}/{place}"] for place, weight in trained.items())

    if training.objective == "finetune_kl":
        return Objective(prepare, parts, balanced, balanced=True, end_to_end=True, units=units)
    return Objective(prepare, parts, loss, end_to_end=True, units=units)


def downstream_weights(training: TrainingConfig, config: GPT2Config, hook: Hook) -> dict[str, float]:
    """{hook: weight} of the later squared errors that are trained.

    Unless given, the streams that later blocks read; the last one, which none reads, only where there is no other.
    """
    if training.objective != "e2e_downstream":
        return {}
    later = [Hook(layer, "hook_resid_pre") for layer in range(config.n_layer)]
    later = [str(place) for place in later if halves_before(place) > halves_before(hook)]
    end = Hook(config.n_layer - 1, "hook_resid_post")
    if halves_before(hook) == halves_before(end):
        raise BadInput(f"--objective e2e_downstream at {hook}: nothing comes behind it, give an earlier --hook")
    places = training.downstream_hooks or later or [str(end)]
    if len({_depth(place, config) for place in places}) < len(places):
        raise BadInput(f"--downstream-hooks {' '.join(places)}: two of them are one place, give each once")
    for place in places:
        if _depth(place, config) <= halves_before(hook):
            raise BadInput(f"--downstream-hooks {place} is not behind {hook}, where the autoencoder stands")
    # The paper divides by the number of blocks behind, its code by the number of places.
    count = len(places) if training.form == "code" else max(1, config.n_layer - -(-halves_before(hook) // 2))
    return dict.fromkeys(places, training.downstream_coef / count)


def _depth(place: str, config: GPT2Config) -> int:
    place = parse(place, config.n_layer)
    if not place.residual:
        raise BadInput(f"--downstream-hooks {place}: give hook points in the residual stream")
    return halves_before(place)


def _summed(objective: Objective) -> Objective:
    """With squared errors summed over d instead of averaged."""
    return Objective(
        objective.prepare,
        lambda xhat, task, lm, mse_scale, units: objective.parts(xhat, task, lm, mse_scale * xhat.shape[-1], units),
        objective.loss,
    )


def flat(a):
    """[b, T, d] -> [B@data, d]."""
    b, T, d = a.shape
    return lax.reshape(jax.reshard(a, P("data")), (b * T, d), out_sharding=P("data"))
