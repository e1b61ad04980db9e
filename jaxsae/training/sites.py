"""Training autoencoders in series, at sites of one language model (Braun et al. 2024, sec. 2.1).

A later one reads activations that the earlier ones have changed. Each is trained, or stays as it is. The objective is
the end-to-end one of a single autoencoder, made for several sites.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxsae.errors import BadInput
from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.normalise import denormalise, normalise, variance
from jaxsae.sae.sharded import autoencode, choose
from jaxsae.sae.types import SAE
from jaxsae.training.config import TrainingConfig
from jaxsae.training.gradient import make_loss, own_terms
from jaxsae.training.objectives import Objective, squared_error
from jaxsae.training.objectives.end_to_end import as_contexts, as_rows
from jaxsae.training.optimizer import clip, norm
from jaxsae.training.records import Hyper, Seen, Whole
from jaxsae.training.step import TrainState, make_update


def make_gradient_of_sites(
    configs: Sequence[SAEConfig], training: TrainingConfig, objective: Objective, learns: Sequence[bool] | None = None
) -> Callable:
    """gradient(saes, tokens [b@data, T], hyper, lm) -> (gradients, metrics, Seen of each), one of each at each site.

    `hyper.mse_scale` has a number for each site. `learns`: which are trained, default all; the others choose their
    latents as outside training and get no gradient. Raises BadInput for what is not defined in series.
    """
    learns = [True] * len(configs) if learns is None else learns
    hooks = objective.sites
    _check(configs, training, hooks)
    loss_of_first = make_loss(configs[0], training, objective, k_aux=1)

    def choose_at(i: int, sae: SAE, x):
        return choose(sae, x, configs[i].selection(), training=learns[i])

    def loss(saes, batch, chosen, hyper: Hyper, lm, whole: Whole):
        saes = [sae if trained else lax.stop_gradient(sae) for sae, trained in zip(saes, learns)]
        of_site = lambda i: replace(hyper, mse_scale=hyper.mse_scale[i])
        later = []

        def substitute(i: int, stream):
            x, mean, scale = normalise(as_rows(stream), configs[i].normalise)
            out = autoencode(saes[i], x, choose_at(i, saes[i], x), configs[i].options())
            later.append((i, x, out))
            raw = as_contexts(denormalise(out.xhat, mean, scale), stream.shape)
            return raw, squared_error(out.xhat, x, hyper.mse_scale[i])

        substitutes = tuple(partial(substitute, i) for i in range(1, len(configs)))
        total, (metrics, seen) = loss_of_first(saes[0], batch, chosen, of_site(0), lm, whole, later=substitutes)
        own = ("l0", "penalty", *activation_functions.get(configs[0].activation).counts)
        metrics |= {f"{name}/{hooks[0]}": metrics.pop(name) for name in own if name in metrics}
        seen = [seen]
        for i, x, out in later:
            own, of_own = own_terms(configs[i], out, x, of_site(i))
            total += own
            metrics |= {f"{name}/{hooks[i]}": value for name, value in of_own.items()}
            seen.append(Seen(out.fired, out.min_active))
        return total, (metrics | {"loss": total}, tuple(seen))

    def gradient(saes: Sequence[SAE], tokens, hyper: Hyper, lm):
        for hook, sae, config in zip(hooks, saes, configs, strict=True):
            if differ := sae.spec.differences(config.spec()):
                raise BadInput(f"the autoencoder at {hook} has {'; '.join(differ)}: give its settings to its site")
        batch = objective.prepare(tokens, lm)
        chosen, whole = choose_at(0, saes[0], batch.x), Whole(objective.variances(batch))
        grads, (metrics, seen) = jax.grad(loss, has_aux=True)(tuple(saes), batch, chosen, hyper, lm, whole)
        return grads, metrics | {"nmse": metrics.pop("error") / variance(batch.y)}, seen

    return gradient


def make_step_of_sites(configs: Sequence[SAEConfig], training: TrainingConfig, objective: Objective) -> Callable:
    """step(states, tokens [b@data, T], hyper, lm) -> (states, metrics).

    A state is a TrainState, whose autoencoder is trained, or an SAE, which stays as it is. The bound of the gradient's
    norm is one for all together.
    """
    updates = [make_update(sae, training) for sae in configs]

    def step(states, tokens, hyper: Hyper, lm):
        learns = [isinstance(state, TrainState) for state in states]
        if not all(learns) and training.mse_scale != "none":
            raise BadInput(
                f"--mse-scale is {training.mse_scale}, and an autoencoder that is not trained here has no scale of its "
                "own: give none"
            )
        saes = [state.params if trained else state for state, trained in zip(states, learns)]
        scales = jnp.stack([state.mse_scale if trained else jnp.ones(()) for state, trained in zip(states, learns)])
        gradient = make_gradient_of_sites(configs, training, objective, learns)
        grads, metrics, seen = gradient(saes, tokens, replace(hyper, mse_scale=scales), lm)
        size = norm([g for g, trained in zip(grads, learns) if trained])
        grads = clip(grads, size, training.optimizer.grad_clip)
        states = tuple(
            update(state, g, of_site, hyper) if trained else state
            for state, update, g, of_site, trained in zip(states, updates, grads, seen, learns)
        )
        return states, metrics | {"grad_norm": size}

    return step


def _check(configs: Sequence[SAEConfig], training: TrainingConfig, hooks: Sequence[str]):
    if not hooks:
        raise BadInput(f"--objective {training.objective} knows no sites: in series it must be e2e or e2e_downstream")
    for hook, sae in zip(hooks, configs, strict=True):
        if len(sae.prefixes) > 1 or activation_functions.get(sae.activation).views is not None:
            raise BadInput(
                f"the autoencoder at {hook} has several reconstructions (--sae.prefixes, or multi_topk), and in series "
                "each has one: give another --sae.activation, or train it alone"
            )
    if training.batch.micro_batches > 1:
        raise BadInput(f"--micro-batches is {training.batch.micro_batches}: in series batches are whole, give 1")
    if training.dead.resample_every is not None:
        raise BadInput(f"--resample-every is {training.dead.resample_every}: in series dead latents are not resampled")
    if training.dead.auxk_coef:
        raise BadInput(f"--auxk-coef is {training.dead.auxk_coef}: in series there is no AuxK, give 0")
