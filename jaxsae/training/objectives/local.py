"""local: the squared error of the activation itself (Gao et al. 2024, sec. 2)."""

from jaxsae.errors import BadInput
from jaxsae.sae.normalise import normalise_pair
from jaxsae.training.objectives.interface import Batch, Objective, squared_error
from jaxsae.training.objectives.type import Context, ObjectiveType


def make(config, context: Context) -> Objective:
    """Batches are (x,) or, of transcoders, (x, y): activations [B@data, d] in the units of their source."""
    del config
    if len(context.sites) != 1:
        raise BadInput(f"--objective local trains one autoencoder, not {len(context.sites)}: give an end-to-end one")
    ((_, sae),) = context.sites

    def prepare(batch, lm, scale_out=None):
        del lm
        return Batch(*normalise_pair(batch, sae.normalise, sae.sections, scale_out))

    def terms(xhat, batch: Batch, lm, mse_scale, variances, later=()):
        del lm, variances, later
        return {"reconstruction": squared_error(xhat, batch.y, mse_scale)}

    return Objective(prepare, terms, lambda terms, batch_terms: terms["reconstruction"])


TYPE = ObjectiveType(make, reads="rows", auxk=True)
