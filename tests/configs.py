"""Configurations by flat names, as flags have them: `training(objective="e2e", tokens=1000, kl_chunk=7)`."""

from jaxsae.config import fields_of, with_fields
from jaxsae.sae.config import SAEConfig
from jaxsae.training.config import TrainingConfig


def training(**values) -> TrainingConfig:
    """A TrainingConfig; an objective's own flag may leave out its name, and then is that of the chosen one."""
    names, objective = fields_of(TrainingConfig()), values.get("objective", "local")
    full = {name if name in names else f"{objective}.{name}": value for name, value in values.items()}
    return with_fields(TrainingConfig(), **full)


def sae(n: int = 64, k: int = 4, **values) -> SAEConfig:
    """An SAEConfig; a family's own flag may leave out its name."""
    names, family = fields_of(SAEConfig()), values.get("activation", "topk")
    full = {name if name in names else f"{family}.{name}": value for name, value in values.items()}
    return with_fields(SAEConfig(), n=n, k=k, **full)
