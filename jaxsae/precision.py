"""How matrix products are computed. Everything that is not a product stays in the dtype of its arrays.

`float32` asks for full float32 products on every platform (GPUs and TPUs would otherwise round the operands).
`tf32` allows the platform's fast float32 (TF32 on GPUs, three bfloat16 passes on TPUs, plain float32 on CPUs).
`bfloat16` rounds the operands to bfloat16 and accumulates in float32, in the gradient's products too.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

Precision = Literal["float32", "tf32", "bfloat16"]

# The nearest that `jax.default_matmul_precision` can say, for products that are computed inside a library.
PRECISION = {"float32": "highest", "tf32": "high", "bfloat16": "default"}


def matmul(x, w, products: Precision = "float32"):
    """x [..., K] times w [K, N] -> [..., N], accumulated and returned in float32 (float64 operands stay float64)."""
    if products == "bfloat16":
        return _rounded_matmul(*_vary_alike(x, w))
    precision = PRECISION[products]
    return jnp.matmul(x, w, precision=precision)


def times_rows(x, W, products: Precision = "float32"):
    """x [B, K] times the rows of W [N, K] -> [B, N], as `matmul(x, W.T)`, without gradient."""
    x, W = lax.stop_gradient((x, W))
    if products != "bfloat16":
        return matmul(x, W.T, products)

    def cpu(x, W):
        # XLA:CPU is fast at bfloat16 only where the second operand lies row by row.
        by_rows = Layout(major_to_minor=(0, 1))
        return _dot(_rounded(x), with_layout_constraint(_rounded(W).T, by_rows))

    return lax.platform_dependent(x, W, cpu=cpu, default=lambda x, W: matmul(x, W.T, products))


def dense_dot(products: Precision):
    """`matmul` in the shape of `lax.dot_general`, for the `dot_general` argument of `flax.linen.Dense`."""

    def dot(x, w, dimensions, precision=None, preferred_element_type=None):
        del precision, preferred_element_type
        assert dimensions == (((x.ndim - 1,), (0,)), ((), ())), dimensions
        return matmul(x, w, products)

    return dot


def varying(a) -> frozenset:
    """The mesh axes over which `a` is typed as varying, inside shard_map."""
    kind = jax.typeof(a)
    if hasattr(kind, "manual_axis_type"):  # jax >= 0.11
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(kind.vma)


def _vary_alike(*arrays):
    # The gradients of a custom_vjp have the types of its arguments, and nothing sums them over the mesh but this.
    axes = frozenset().union(*map(varying, arrays))
    missing = [tuple(axes - varying(a)) for a in arrays]
    return [lax.pcast(a, some, to="varying") if some else a for a, some in zip(arrays, missing)]


def _rounded(x):
    return x.astype(jnp.bfloat16)


_dot = partial(jnp.matmul, preferred_element_type=jnp.float32)


# By hand, because AD would multiply the float32 cotangent with a bfloat16 operand: no platform is fast at that.
@jax.custom_vjp
def _rounded_matmul(x, w):
    return _dot(_rounded(x), _rounded(w))


def _rounded_matmul_fwd(x, w):
    xr, wr = _rounded(x), _rounded(w)
    # The empty arrays remember the dtypes of the operands for their gradients.
    return _dot(xr, wr), (xr, wr, jnp.zeros(0, x.dtype), jnp.zeros(0, w.dtype))


def _rounded_matmul_bwd(residuals, g):
    x, w, like_x, like_w = residuals
    g = _rounded(g)
    rows = lambda a: a.reshape(-1, a.shape[-1])
    return _dot(g, w.T).astype(like_x.dtype), _dot(rows(x).T, rows(g)).astype(like_w.dtype)


_rounded_matmul.defvjp(_rounded_matmul_fwd, _rounded_matmul_bwd)


def as_here(function):
    """`function` for another thread, with the precisions of this one: JAX keeps them by thread."""
    wide, precision = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision

    def call(*args):
        with jax.enable_x64(wide), jax.default_matmul_precision(precision):
            return function(*args)

    return call
