"""Many runs: lists of configurations, launchers that train them several at a time, one table of results.

A sweep file defines `configs() -> dict[str, Config]`, made with `product`, `zipped`, `override` and `union`; `jaxsae
sweep FILE` and `train_all(configs, out)` train what it returns.
"""

from jaxsae.sweep.grids import override, product, union, zipped

__all__ = ["override", "product", "train_all", "union", "zipped"]


def __getattr__(name):
    # Lists are made without all that training needs.
    if name == "train_all":
        from jaxsae.sweep.command import train_all

        return train_all
    raise AttributeError(f"module 'jaxsae.sweep' has no attribute {name!r}")
