"""Where the hook points of a block lie: attention and then the MLP (serial), or both beside each other (parallel).

In a serial block the MLP reads the stream that attention has written to: two sublayers, and `hook_resid_mid` between
them. In a parallel block both read what enters the block: one sublayer, and no `hook_resid_mid`.
"""

from jaxsae.lm.hooks import RESIDUAL, Hook

ATTENTION = ("attn.hook_z", "hook_attn_out")
MLP = ("mlp.hook_in", "mlp.hook_post", "hook_mlp_out")

Groups = tuple[tuple[Hook, ...], ...]


def cuts(n_layer: int, parallel: bool = False) -> Groups:
    """For each cut of the stream the hook points that name it, as a family's record says them."""
    kinds = ("hook_resid_pre", "hook_resid_post") if parallel else RESIDUAL
    steps = len(kinds) - 1
    names: list[list[Hook]] = [[] for _ in range(steps * n_layer + 1)]
    for layer in range(n_layer):
        for i, kind in enumerate(kinds):
            names[steps * layer + i].append(Hook(layer, kind))
    return tuple(map(tuple, names))


def inside(n_layer: int, parallel: bool = False) -> Groups:
    """For each sublayer the hook points inside it, as a family's record says them."""
    sublayers = (ATTENTION + MLP,) if parallel else (ATTENTION, MLP)
    return tuple(tuple(Hook(layer, kind) for kind in kinds) for layer in range(n_layer) for kinds in sublayers)
