"""All neuron models. A new one is declared in its own file, listed here and called by the tick."""

from neuromod.engine.models.adex import ADEX
from neuromod.engine.models.fitzhugh_nagumo import FITZHUGH_NAGUMO
from neuromod.engine.models.hodgkin_huxley import HODGKIN_HUXLEY
from neuromod.engine.models.izhikevich import IZHIKEVICH
from neuromod.engine.models.lapicque import LAPICQUE
from neuromod.engine.models.lif import LIF
from neuromod.engine.models.model import Model
from neuromod.engine.models.pospischil import POSPISCHIL

MODELS: tuple[Model, ...] = (LIF, LAPICQUE, IZHIKEVICH, FITZHUGH_NAGUMO, HODGKIN_HUXLEY, POSPISCHIL, ADEX)
"""In the order of their numbers."""

N_PARAMETERS = max(len(model.parameters) for model in MODELS)
N_VARIABLES = max(len(model.variables) for model in MODELS)
N_DERIVED = max(len(model.derived) for model in MODELS)

NO_MODEL = 0
"""Model number of a channel that is no neuron: the coincidence detector."""


def model_named(name: str) -> Model:
    """The model called `name` in the configuration."""
    return next(model for model in MODELS if model.name == name)
