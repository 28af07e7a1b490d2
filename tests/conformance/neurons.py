"""What a test must know of a neuron model beyond what the model declares: usual neurons, allowed ones, and bounds.

A model that is not named here is tested as well: with parameters around its presets, all combinations of parameters
allowed, starting at rest, and with variables that need no more than be finite.
"""

from collections.abc import Callable, Mapping

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from neuromod.engine.config import ChannelOverride
from neuromod.engine.models.model import Model, Parameter

Parameters = dict[str, float]
Bounds = tuple[tuple[float, float], ...]

NOT_AT_REST = {
    "izhikevich": None,  # starts at its reset, as the paper does
    "adex": {"delayed_regular_bursting"},  # has no rest, and drifts
}
"""Presets that do not start at rest; None stands for all, and for a neuron without a preset."""

QUICK = {"fitzhugh_nagumo": {"time_unit_ms": 0.25}}
"""Parameters of a neuron of a test, where the model's own would seldom fire within its length."""

_ANY = (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
_GATE = (0.0, 1.000001)  # by its rounding


def starts_at_rest(model: Model, preset: str | None) -> bool:
    """Whether a neuron without drive stays where it starts."""
    exceptions = NOT_AT_REST.get(model.name, set())
    return exceptions is not None and preset not in exceptions


def bounds(model: Model, p: Mapping[str, float], threshold_gain: float) -> Bounds:
    """The range that each variable keeps to, of a neuron with the parameters `p`."""
    match model.name:
        case "lif":
            # below threshold, or at reset
            return (p["v_min_mv"], p["v_threshold_mv"] * threshold_gain), (0, p["refractory_ms"])
        case "lapicque":
            return ((_ANY[0], p["v_threshold_mv"] * threshold_gain),)
        case "izhikevich":
            return (-1000, 1000), _ANY
        case "fitzhugh_nagumo":
            return (-4, 4), (-100, 100)
        case "hodgkin_huxley":
            return (-150, 200), _GATE, _GATE, _GATE
        case "pospischil":
            return (-120, 150), *[_GATE] * 6
        case "adex":
            return (-200, p["v_peak_mv"]), (-1e7, 1e7), (0, p["refractory_ms"])
    return (_ANY,) * len(model.variables)


def _ordered(p: Parameters, *names: str) -> None:
    p.update(zip(names, sorted(p[name] for name in names), strict=True))


def _lif(p: Parameters) -> None:
    _ordered(p, "v_min_mv", "v_reset_mv", "v_threshold_mv")


def _izhikevich(p: Parameters) -> None:
    _ordered(p, "c_mv", "v_peak_mv")


def _adex(p: Parameters) -> None:
    _ordered(p, "e_l_mv", "v_t_mv", "v_peak_mv")
    p["v_t_mv"] = min(p["v_t_mv"], p["v_peak_mv"] - 0.01)
    p["e_l_mv"] = min(p["e_l_mv"], p["v_t_mv"] - 0.01)
    p["v_reset_mv"] = min(p["v_reset_mv"], p["v_peak_mv"] - 0.01)
    p["g_l_ns"] = min(p["g_l_ns"], p["c_pf"] * 2)


_MENDERS: dict[str, Callable[[Parameters], None]] = {"lif": _lif, "izhikevich": _izhikevich, "adex": _adex}
"""They bring parameters, each within its range, into combinations that are seldom refused."""


def mended(model: Model, choose: Callable[[Parameter], float]) -> Parameters | None:
    """Parameters as `choose` has them, nearly; None if the model refuses them."""
    chosen = {p.name: choose(p) for p in model.parameters}
    if model.name in _MENDERS:
        _MENDERS[model.name](chosen)
    chosen = {p.name: min(max(chosen[p.name], p.low), p.high) for p in model.parameters}
    return None if model.complaint(chosen) else chosen


@st.composite
def any_parameters(draw: st.DrawFn, model: Model) -> Parameters:
    """All that the model allows, ends of the ranges and defaults often among them."""

    def number(p: Parameter) -> float:
        x = draw(st.sampled_from([p.low, p.high, p.default]) | st.floats(p.low, p.high))
        return x if abs(x) > 1e-30 else 0.0  # where the reset is a subnormal number, so is the membrane

    found = mended(model, number)
    assume(found)
    assert found is not None
    return found


def neuron_like(model: Model, preset: str | None, rng: np.random.Generator) -> ChannelOverride:
    """A neuron around a preset: every parameter up to 15 % off it, one that is 0 by so much of 1 % of its range."""
    usual = model.complete(QUICK.get(model.name, {}), preset)
    found = None
    while found is None:
        found = mended(
            model,
            lambda p: usual[p.name] + rng.uniform(-0.15, 0.15) * (abs(usual[p.name]) or (p.high - p.low) / 100),
        )
    return _channel(model, preset, found, rng)


def strange_neuron(model: Model, rng: np.random.Generator) -> ChannelOverride:
    """A neuron with parameters from anywhere within their ranges."""
    found = None
    while found is None:
        found = mended(model, lambda p: rng.uniform(p.low, p.high))
    return _channel(model, None, found, rng)


def _channel(model: Model, preset: str | None, found: Parameters, rng: np.random.Generator) -> ChannelOverride:
    gain, bias = model.input(preset)
    return ChannelOverride(
        model=model.name, preset=preset, parameters=found, gain=gain * rng.uniform(0.5, 2), bias=bias
    )
