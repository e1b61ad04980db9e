"""Write coders_golden.npz: losses and gradients of transcoders and crosscoders by PyTorch's autograd, in float64.

    python tests/sae/make_coders_golden.py      # needs torch and numpy, nothing of this package

Each case is written out from the papers' formulas: skip transcoders (Paulo et al. 2025), crosscoders (Lindsey et al.
2024; Minder et al. 2025). B tokens, d and e widths of input and output, n latents.
"""

from pathlib import Path

import numpy as np
import torch

B, D, E, N, K, K_AUX = 16, 6, 10, 32, 3, 4
S = 2  # sections of the crosscoders, of width E / S
MSE, SPARSITY, AUXK, UNIT, BANDWIDTH = 0.7, 0.3, 1 / 32, 3.0, 0.5
rng = np.random.default_rng(0)
normal = lambda *shape: torch.tensor(rng.normal(size=shape))


def unit_norm(x):
    x = x - x.mean(-1, keepdim=True)
    return x / x.norm(dim=-1, keepdim=True)


def top(scores, k):
    """Which entries of each row are among its k largest."""
    return torch.zeros_like(scores, dtype=bool).scatter(1, scores.topk(k, 1).indices, True)


class Window(torch.autograd.Function):
    """z where z > theta (`jump`), or 1 there: thresholds learn as if the step were a ramp of width BANDWIDTH."""

    @staticmethod
    def forward(ctx, z, theta, jump):
        ctx.save_for_backward(z, theta)
        ctx.jump = jump
        on = z > theta
        return torch.where(on, z, 0.0) if jump else on.to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        z, theta = ctx.saved_tensors
        near = ((z - theta).abs() < BANDWIDTH / 2) / BANDWIDTH
        if ctx.jump:
            return torch.where(z > theta, g, 0.0), -theta * near * g, None
        return None, -near * g, None


class Prolu(torch.autograd.Function):
    """m where m > 0 and m + b > 0; gradients 1 + m to m, m to b."""

    @staticmethod
    def forward(ctx, m, b):
        on = (m > 0) & (m + b > 0)
        ctx.save_for_backward(m, on)
        return torch.where(on, m, 0.0)

    @staticmethod
    def backward(ctx, g):
        m, on = ctx.saved_tensors
        return torch.where(on, (1 + m) * g, 0.0), torch.where(on, m * g, 0.0)


def values(family, z, p, norms):
    """(values of each view, its weights, the penalty of each token) of pre-activations z [B, n]."""
    none = torch.zeros(B)
    if family in ("topk", "multi_topk"):
        views = (K,) if family == "topk" else (K, 4 * K)
        weights = (1.0,) if family == "topk" else (1.0, 1 / 8)
        return [torch.where(top(z * norms, k), z.relu(), 0.0) for k in views], weights, none
    if family == "batch_topk":
        scores = (z * norms).detach()
        least = scores.flatten().topk(B * K).values.min()
        return [torch.where((scores >= least) & (z > 0), z, 0.0)], (1.0,), none
    if family == "relu":
        return [z.relu()], (1.0,), (z.relu() * norms).sum(1)
    if family == "prolu_ste":
        v = Prolu.apply(z - p["b_enc"], p["b_enc"].expand_as(z))
        return [v], (1.0,), (v * norms).sum(1)
    if family == "jumprelu":
        theta = p["extra.log_threshold"].exp().expand_as(z)
        return [Window.apply(z, theta, True)], (1.0,), Window.apply(z.detach(), theta, False).sum(1)
    u = z - p["b_enc"]
    v = torch.where(z > 0, (p["extra.r_mag"].exp() * u + p["extra.b_mag"]).relu(), 0.0)
    return [v], (1.0,), (z.relu() * norms.detach()).sum(1)


def loss(family, p, x, y, dead, sections=1, free=False):
    parts = p["W_dec"].reshape(N, sections, -1)
    norms = parts.norm(dim=2).sum(1) if free or sections > 1 else torch.ones(N, dtype=torch.float64)
    centre = p["b_in"] if "b_in" in p else p["b_dec"]
    skip = x @ p["W_skip"] if "W_skip" in p else 0
    z = (x - centre) @ p["W_enc"].T + p["b_enc"]
    views, weights, penalty = values(family, z, p, norms)
    outputs = [v @ p["W_dec"] + p["b_dec"] + skip for v in views]
    total = sum(w * MSE * ((out - y) ** 2).mean() for w, out in zip(weights, outputs))
    total = total + SPARSITY * penalty.mean() / y.shape[1]
    if family == "gated":
        frozen = z.relu() @ p["W_dec"].detach() + p["b_dec"].detach() + skip.detach()
        total = total + MSE * ((frozen - y) ** 2).mean()
    if dead.any():
        e = (y - outputs[0]).detach()
        a = torch.where(dead & (z > 0), z, -torch.inf)
        a = torch.where(top(a, K_AUX) & torch.isfinite(a), z, 0.0)
        total = total + AUXK * ((e - a @ p["W_dec"]) ** 2).sum() / ((e - e.mean(0)) ** 2).sum()
    return total, outputs[0], views[0]


def case(family, crosscoder):
    d = E if crosscoder else D
    p = {"W_enc": normal(N, d), "b_enc": 0.1 * normal(N), "W_dec": normal(N, E), "b_dec": 0.1 * normal(E)}
    if not crosscoder:
        p |= {"b_in": 0.1 * normal(D), "W_skip": 0.3 * normal(D, E)}
        p["W_dec"] = p["W_dec"] / p["W_dec"].norm(dim=1, keepdim=True)
    if family == "gated":
        p |= {"extra.r_mag": 0.2 * normal(N), "extra.b_mag": 0.1 * normal(N)}
    if family == "jumprelu":
        p |= {"extra.log_threshold": 0.3 * normal(N) - 1}
    x = 2 * normal(B, d) + 1
    dead = torch.tensor(np.arange(N) % 4 == 0) & (family == "topk")
    if crosscoder:
        x_n = y_n = unit_norm(x.reshape(B, S, -1)).reshape(B, -1)
        y = x
    else:
        y = UNIT * normal(B, E) + 0.5
        x_n, y_n = unit_norm(x), y / UNIT
    p = {name: a.requires_grad_() for name, a in p.items()}
    total, out, code = loss(family, p, x_n, y_n, dead, S if crosscoder else 1, crosscoder)
    total.backward()
    arrays = {"x": x, "y": y, "dead": dead, "loss": total, "out": out, "code": code}
    arrays |= {f"param/{name}": a for name, a in p.items()} | {f"grad/{name}": a.grad for name, a in p.items()}
    return {name: a.detach().numpy() for name, a in arrays.items()}


def main():
    cases = [
        (family, False) for family in ("topk", "multi_topk", "batch_topk", "jumprelu", "gated", "relu", "prolu_ste")
    ]
    cases += [(family, True) for family in ("relu", "topk", "batch_topk")]
    arrays = {}
    for family, crosscoder in cases:
        name = f"{'crosscoder' if crosscoder else 'transcoder'}_{family}"
        arrays |= {f"{name}/{key}": a for key, a in case(family, crosscoder).items()}
    np.savez_compressed(Path(__file__).with_name("coders_golden.npz"), **arrays)


if __name__ == "__main__":
    main()
