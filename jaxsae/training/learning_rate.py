"""Learning rates by default: that of a fixed number of steps, and the paper's for training to convergence."""

# By experiments/default_rate.py, which fits it to sweeps of two language models: n 256 to 16,384, k 4 to 64, 0.3 to 10
# million tokens, batches of 512 to 8192.
SCALE = 0.4
# No shorter run was measured; larger rates kill latents within the first steps.
LARGEST = 0.01


def paper(n: int) -> float:
    """2e-4 / sqrt(n / 2^14): for training n latents to convergence, read off fig. 3 of Gao et al. 2024."""
    return 2e-4 / (n / 2**14) ** 0.5


def for_steps(n: int, active: float, steps: int) -> float:
    """0.4 (active / n)^(1/4) / sqrt(steps), for n latents of which so many are active per token; never below `paper`.

    The best constant rate if the weights are averaged over the end of the run. The number of tokens and the batch size
    matter only by the number of steps.
    """
    return max(min(SCALE * (active / n) ** 0.25 / steps**0.5, LARGEST), paper(n))
