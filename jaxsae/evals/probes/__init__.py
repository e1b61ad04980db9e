"""Probes of single latents: the pure functions, and the evaluation that uses them.

probes = fit(z, y)                # z [N, m], y [N] of 0 and 1 -> Probes(w [m], b [m], loss [m])
loss(probes, z_test, y_test)      # [m], in nats
"""

from jaxsae.evals.probes.evaluation import EVALUATION, Config, run
from jaxsae.evals.probes.newton import Probes, fit, loss

__all__ = ["EVALUATION", "Config", "Probes", "fit", "loss", "run"]
