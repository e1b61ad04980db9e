"""Absorption and splitting of first letters."""

from jaxsae.evals.first_letter.evaluation import EVALUATION, Config, run

__all__ = ["EVALUATION", "Config", "run"]
