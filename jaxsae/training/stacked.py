"""Programs of autoencoders that are trained side by side: those that differ in numbers alone share what is compiled.

    programs = make_programs([Site(sae, training, d) for sae, training in configurations])

What a step takes as arguments may differ: the learning rate, the weights of AuxK and of the sparsity term, the idle
tokens of dead latents, k, and, at the start, the seed. k has a static bound, the largest of all: a step chooses so many
latents and leaves out those that its member does not have, so that each has the numbers of a step of its own.

Each member keeps a state of its own, and a step is one call of the program for each. So AuxK runs for those alone that
have dead latents, loops end where a member's latents do, no state is copied into a stack and out of it, and members
need not be of one shape. The loop (loop.py) makes steps of several members at once where that is faster.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax

from jaxsae.sae import activation_functions
from jaxsae.sae.config import SAEConfig
from jaxsae.sae.types import SAE, Spec
from jaxsae.training.config import TrainingConfig
from jaxsae.training.init_state import abstract_state, make_init
from jaxsae.training.program import Program, make_program
from jaxsae.training.step import TrainState, hyper

# The fields of a configuration that a compiled step takes as numbers, by the names of their flags.
TRACED = ("seed", "data_seed", "lr", "auxk_coef", "sparsity", "dead_after", "auxk_after", "sae.k")


@dataclass(frozen=True)
class Site:
    """An autoencoder with how it is trained, and the width and hook point of the activations that it reads."""

    sae: SAEConfig
    training: TrainingConfig
    d: int
    hook: str | tuple[str, ...] = ""
    hook_out: str | None = None  # of a transcoder, whose output has the width d_out
    d_out: int | None = None

    def compiled_for(self) -> "Site":
        """What of it is static: equal for two that share a compiled step, up to k."""
        training, local = self.training, self.training.type.reads == "rows"
        auxk_coef = None if local else training.auxk_weight(self.sae.activation)
        dead = replace(training.dead, dead_after=1, auxk_after=None, auxk_coef=auxk_coef)
        static = replace(
            training,
            sparsity=None,
            dead=dead,
            batch=replace(training.batch, seed=0, data_seed=None),
            optimizer=replace(training.optimizer, lr=None),
        )
        sae = self.sae if _k_is_static(self.sae) else replace(self.sae, k=1)
        # The local objective does not ask where activations come from.
        return Site(sae, static, self.d, *(("", None) if local else (self.hook, self.hook_out)), self.d_out)


def make_programs(sites: Sequence[Site], lm: Any = None) -> list[Program]:
    """The program of each autoencoder; `lm` as in `make_program`. Raises BadInput if an objective cannot be computed.

    A state is that of the autoencoder's own configuration, with any of them.
    """
    together: dict[Site, list[Site]] = {}
    for site in sites:
        together.setdefault(site.compiled_for(), []).append(site)
    shared = {static: _shared(static, members, lm) for static, members in together.items()}
    inits: dict[tuple, Callable] = {}
    return [_of_member(site, *shared[site.compiled_for()], inits) for site in sites]


def _shared(static: Site, members: list[Site], lm: Any) -> tuple[Program, Spec, bool]:
    """(the program, the spec that it is compiled for, whether its k is traced) of members that share one."""
    ks = {site.sae.k for site in members}
    sae = replace(static.sae, k=max(ks))
    places = {"hook": static.hook, "hook_out": static.hook_out, "d_out": static.d_out}
    return make_program(sae, static.training, static.d, lm, **places), sae.spec(), len(ks) > 1


def _of_member(site: Site, shared: Program, spec: Spec, traced_k: bool, inits: dict) -> Program:
    sae, training, own = site.sae, site.training, site.sae.spec()
    numbers = hyper(sae, training)
    numbers = replace(numbers, k=sae.k) if traced_k else numbers
    key = sae, site.compiled_for()
    if key not in inits:
        inits[key] = jax.jit(make_init(sae, training))

    def step(state: TrainState, *args):
        state, metrics = shared.step(_with_spec(state, spec), *args)
        return _with_spec(state, own), metrics

    def resample(state: TrainState, *args):
        return _with_spec(shared.resample(_with_spec(state, spec), *args), own)

    return replace(
        shared,
        hyper=numbers,
        seed=training.batch.seed,
        init=inits[key],
        abstract_state=partial(abstract_state, sae, training, site.d, d_out=site.d_out),
        step=step if own != spec else shared.step,
        resample=resample if own != spec else shared.resample,
    )


def _k_is_static(sae: SAEConfig) -> bool:
    """Whether a family makes more of k than a number of latents kept."""
    return activation_functions.get(sae.activation).views is not None


def _with_spec(state: TrainState, spec: Spec) -> TrainState:
    """The same arrays as those of autoencoders of another spec."""
    is_sae = lambda leaf: isinstance(leaf, SAE)
    return jax.tree.map(lambda leaf: leaf.replace(spec=spec) if is_sae(leaf) else leaf, state, is_leaf=is_sae)
