"""Several autoencoders in the language model at once, trained end to end together or frozen (Braun et al. 2024, 2.1).

They act in series: a later one sees activations that the earlier ones have changed, and what it does to its errors
reaches them. Each place is looked at as it is before an autoencoder there changes it. b contexts, T tokens, d width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from jaxsae.sae import activations
from jaxsae.sae.normalise import denormalise, normalise
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.struct import SAE
from jaxsae.training.config import SAEConfig, TrainingConfig
from jaxsae.training.objectives import downstream_weights, flat
from jaxsae.training.optimizer import make_optimizer, norm
from jaxsae.training.step import Hyper, TrainState, clip, make_update


@dataclass(frozen=True)
class Site:
    """An autoencoder and its place, a residual hook point."""

    hook: str
    sae: SAEConfig


def make_loss(sites: Sequence[Site], training: TrainingConfig, config: GPT2Config) -> Callable:
    """loss(saes, tokens [b@data, T], sparsity, lm, trained) -> (loss, (metrics, firing counts and least of each)).

    The sum of the KL divergence, of every autoencoder's penalty and reconstruction error (of its own input, as it is),
    and of the errors at later places. `trained` says which of them learn, all unless given: others choose their latents
    as they do outside training. Raises BadInput where that is not defined.
    """
    hooks = [_residual(site.hook, config) for site in sites]
    if training.objective not in ("e2e", "e2e_downstream"):
        raise BadInput(f"--objective {training.objective} in series: allowed are e2e and e2e_downstream")
    if not hooks or [*map(halves_before, hooks)] != sorted({*map(halves_before, hooks)}):
        raise BadInput(f"autoencoders at {', '.join(map(str, hooks))}: give places in their order, each once")
    ignored = {
        "error_unit": training.error_unit != "one",
        "micro_batches": training.micro_batches > 1,
        "auxk_coef": bool(training.auxk_coef),
        "remat": training.remat,
        "resample_every": training.resample_every is not None,
        "target_l0": any(site.sae.target_l0 is not None for site in sites),
    }
    for name in [name for name, given in ignored.items() if given]:
        raise BadInput(f"in series there is no {name}: errors have unit one, batches are whole, and the rest is off")
    for site in sites:
        several = {
            "prefixes": len(site.sae.prefixes) > 1,
            site.sae.activation: activations.get(site.sae.activation).views,
        }
        for name in [name for name, given in several.items() if given]:
            raise BadInput(f"{site.hook}: in series an autoencoder has one reconstruction, and {name} has several")
    weights = downstream_weights(training, config, hooks[0])
    places = sorted((parse(name, config.n_layer) for name in weights), key=halves_before)
    factor = config.n_embd if training.form == "paper" else 1

    def loss(saes: Sequence[SAE], tokens, sparsity, lm: LM, trained: Sequence[bool] | None = None):
        for site, sae in zip(sites, saes, strict=True):
            if differ := sae.spec.unlike(site.sae.spec()):
                raise BadInput(f"the autoencoder at {site.hook} has {'; '.join(differ)}: give its settings to its site")
        T = tokens.shape[1]
        original = on_contexts(lambda lm, t: _originals(lm, t, hooks[0], places), lm, tokens)
        original = lax.stop_gradient(original)
        stream, at = original[str(hooks[0])], hooks[0]
        total, metrics, seen = 0.0, {}, []
        for site, hook, sae, learns in zip(sites, hooks, saes, trained or [True] * len(sites)):
            between = [p for p in places if halves_before(at) < halves_before(p) <= halves_before(hook)]
            stream, errors = _segment(lm, stream, original, at, hook, between)
            x, mean, scale = normalise(flat(stream), site.sae.normalise)
            how = site.sae.selection()
            out = autoencode(sae, x, choose(sae, x, how, training=learns), how, site.sae.terms())
            if out.frozen is not None:
                total += factor * jnp.mean((out.frozen - x) ** 2)
            reconstruction = jnp.mean((out.xhat - x) ** 2)
            metrics |= errors | {f"reconstruction/{site.hook}": reconstruction, f"l0/{site.hook}": out.l0.mean()}
            total += factor * training.reconstruction_coef * reconstruction
            if out.penalty is not None:
                metrics[f"penalty/{site.hook}"] = out.penalty.mean() / x.shape[1]
                total += sparsity * metrics[f"penalty/{site.hook}"]
            raw = denormalise(out.xhat, mean, scale)
            stream, at = lax.reshape(raw, (len(tokens), T, raw.shape[1]), out_sharding=P("data")), hook
            seen.append((out.fired, out.least))
        after = [p for p in places if halves_before(p) > halves_before(at)]
        last, errors = _segment(lm, stream, original, at, after[-1] if after else at, after)
        metrics |= errors | {"kl": _divergence(lm, last, original["final"], after[-1] if after else at, training)}
        total += training.kl_weight() * metrics["kl"]
        total += factor * sum(weight * metrics[f"mse/{place}"] for place, weight in weights.items())
        return total, (metrics | {"loss": total}, tuple(seen))

    return loss


def make_series_step(sites: Sequence[Site], training: TrainingConfig, config: GPT2Config) -> Callable:
    """step(states, tokens [b@data, T], hyper, lm) -> (states, metrics), to be jitted.

    A state is a TrainState, whose autoencoder is trained, or an SAE, which stays as it is. The bound of the gradient's
    norm is one for all together.
    """
    loss = make_loss(sites, training, config)
    updates = [
        make_update(site.sae, training, make_optimizer(site.sae.decoder, eps=training.adam_eps)) for site in sites
    ]

    def step(states, tokens, hyper: Hyper, lm: LM):
        is_trained = [isinstance(state, TrainState) for state in states]
        frozen = [None if trained else state for state, trained in zip(states, is_trained)]
        params = [state.params if trained else None for state, trained in zip(states, is_trained)]
        merge = lambda params: [p if trained else f for p, f, trained in zip(params, frozen, is_trained)]
        objective = lambda params: loss(merge(params), tokens, hyper.sparsity, lm, is_trained)
        grads, (metrics, seen) = jax.grad(objective, has_aux=True)(params)
        size = jnp.sqrt(sum(norm(g) ** 2 for g in grads if g is not None))
        grads = clip(grads, size, training.clip)
        states = tuple(
            update(state, g, fired, least, tokens.size, hyper) if trained else state
            for state, g, (fired, least), update, trained in zip(states, grads, seen, updates, is_trained)
        )
        return states, metrics | {"grad_norm": size}

    return step


def _residual(name: str, config: GPT2Config) -> Hook:
    hook = parse(name, config.n_layer)
    if not hook.residual:
        raise BadInput(f"an autoencoder in series at {hook}: give hook points in the residual stream")
    return hook


def _originals(lm: LM, tokens, first: Hook, places: Sequence[Hook]) -> dict:
    """{place: [b, T, d]} of the original pass, with what the unembedding reads as "final"."""
    out, at = {str(first): prefix(lm, tokens, first)}, first
    for place in places:
        out[str(place)] = advance(lm, out[str(at)], at, place)
        at = place
    return out | {"final": final(lm, out[str(at)], at)}


def _segment(lm: LM, stream, original: dict, start: Hook, stop: Hook, places: Sequence[Hook]):
    """The stream at `stop` from that at `start`, and the squared errors at places on the way."""

    def run(lm, x, original):
        at, errors = start, {}
        for place in places:
            x, at = advance(lm, x, at, place), place
            errors[f"mse/{place}"] = ((x - original[str(place)]) ** 2).mean((1, 2))
        return advance(lm, x, at, stop), errors

    stream, errors = on_contexts(run, lax.stop_gradient(lm), stream, {str(p): original[str(p)] for p in places})
    return stream, jax.tree.map(jnp.mean, errors)


def _divergence(lm: LM, stream, original, at: Hook, training: TrainingConfig):
    rows = lambda a: a.reshape(-1, a.shape[-1])

    def run(lm, x, original):
        kl = kl_of_streams(lm, rows(original), rows(final(lm, x, at)), training.kl_chunk, training.form == "paper")
        return kl.reshape(len(x), -1).mean(1)

    return on_contexts(run, lax.stop_gradient(lm), stream, original).mean()
