"""Activations of a crosscoder: those at several hook points of a language model, side by side."""

from collections.abc import Sequence

import jax.numpy as jnp

from jaxsae.data.activations import HooksSource
from jaxsae.lm.architecture import width
from jaxsae.lm.model import LM


class SectionsSource(HooksSource):
    """One array [c@data, T, S d] of the activations at S hook points, a section for each, from one pass."""

    def __init__(self, lm: LM, hooks: Sequence[str], *args):
        super().__init__(lm, hooks, *args)
        self.width = sum(width(lm.config, hook) for hook in self.hooks)

    def activations(self, host):
        return (jnp.concatenate(super().activations(host), -1),)
