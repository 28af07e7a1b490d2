"""From 16 spike trains to commands: the decoders, compiled into the loop right after the network.

All kinds of decoder share one record of fixed size, parameters and running state together, so that the loop swaps one
for another at a tick boundary, a checkpoint copies it and a replay repeats it. Three kernels do the work: a matrix on
exponentially filtered rates (`rates`, `population_vector`, `linear` on rates), a matrix on binned counts with lags
(`linear`), and a Kalman filter on binned counts. Events are thresholds on what came out.
"""

import hashlib
import math
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from neuromod.adapters.decoder_config import (
    MAX_EVENTS,
    MAX_LAGS,
    MAX_STATES,
    N_OUTPUTS,
    DecoderConfig,
    DecoderFileConfig,
    EventConfig,
    KalmanConfig,
    LinearConfig,
    PopulationVectorConfig,
    RatesConfig,
)
from neuromod.adapters.decoder_file import load_decoder
from neuromod.engine.compiled import jit
from neuromod.engine.errors import ConfigError
from neuromod.engine.exponential import one_minus_exp
from neuromod.engine.layout import N_CHANNELS

KINDS = ("none", "rates", "population_vector", "linear", "kalman")
"""What the field `kind` of a decoder says, by number."""

_KALMAN = KINDS.index("kalman")

# A state or covariance beyond these is a filter that ran away, not an estimate. With them, and with the limits on the
# parameters (decoder_config.py), no product of a step comes near the largest float64.
_LARGEST_STATE = 1e9
_LARGEST_COVARIANCE = 1e18
_LARGEST_INFORMATION = 1e24

_D = MAX_STATES
DECODER = np.dtype(
    [
        # parameters
        ("version", "u8"),  # of the decoder's file; 0 where the session file holds the decoder
        ("kind", "i8"),  # index into KINDS
        ("n_outputs", "i8"),
        ("n_lags", "i8"),
        ("n_states", "i8"),
        ("n_events", "i8"),
        ("bin_ticks", "i8"),  # ticks of a bin of counts; 0 = the decoder reads filtered rates, each tick
        ("settle_ticks", "i8"),  # first ticks, while rates are not yet known: outputs are 0
        ("state_id", "u8"),  # hash over the names of the states: equal where they mean the same
        ("dt_ms", "f8"),
        ("rate_decay", "f8"),  # exp(-dt / tau)
        ("rate_step", "f8"),  # spikes/s that one spike adds to a filtered rate
        ("weights", "f8", (MAX_LAGS * N_CHANNELS, N_OUTPUTS)),  # row = lag * 16 + channel; lag 0 is the newest bin
        ("bias", "f8", (N_OUTPUTS,)),
        ("limit", "f8", (N_OUTPUTS,)),
        ("output_state", "i8", (N_OUTPUTS,)),  # entry of the Kalman state that an output shows
        ("state_mean", "f8", (_D,)),
        ("count_mean", "f8", (N_CHANNELS,)),
        ("transition", "f8", (_D, _D)),  # A
        ("transition_noise", "f8", (_D, _D)),  # W
        ("projection", "f8", (_D, N_CHANNELS)),  # C' Q^-1
        ("information", "f8", (_D, _D)),  # S = C' Q^-1 C
        ("root", "f8", (_D, _D)),  # L, lower, with L L' = S
        ("initial_covariance", "f8", (_D, _D)),
        ("event_channel", "i8", (MAX_EVENTS,)),  # channel whose spikes are the event; -1 = an output is watched
        ("event_output", "i8", (MAX_EVENTS,)),
        ("event_above", "f8", (MAX_EVENTS,)),
        ("event_below", "f8", (MAX_EVENTS,)),
        ("event_refractory", "i8", (MAX_EVENTS,)),  # ticks
        # running state
        ("n_ticks", "i8"),  # since the filters started
        ("in_bin", "i8"),  # ticks of the bin that is filling
        ("newest", "i8"),  # row of `counts` that holds the newest whole bin
        ("n_bins", "i8"),  # whole bins since the filters started
        ("runaways", "i8"),  # times that a Kalman filter had to start anew, or an output was not a number
        ("rates_hz", "f8", (N_CHANNELS,)),
        ("filling", "f8", (N_CHANNELS,)),  # counts of the bin that is filling
        ("counts", "f8", (MAX_LAGS, N_CHANNELS)),  # ring of whole bins
        ("state", "f8", (_D,)),  # less state_mean
        ("covariance", "f8", (_D, _D)),
        ("event_level", "i8", (MAX_EVENTS,)),  # 1 from an upward crossing to the downward one
        ("event_wait", "i8", (MAX_EVENTS,)),  # ticks of the refractory period that are left
        ("held", "f4", (N_OUTPUTS,)),  # what the outputs were last
        # working memory of a tick
        ("values", "f8", (N_OUTPUTS,)),
        ("predicted", "f8", (_D,)),
        ("innovation", "f8", (_D,)),
        ("prior", "f8", (_D, _D)),
        ("first", "f8", (_D, _D)),
        ("second", "f8", (_D, _D)),
    ],
    align=True,
)
"""One decoder: parameters, running state and working memory, in one record of fixed size."""

PARAMETERS = tuple(DECODER.names or ())[: (DECODER.names or ()).index("n_ticks")]
"""Fields that `install` takes over; the others are running state and working memory."""


@jit
def decode(decoder: Any, spikes: np.uint32, outputs: NDArray[np.float32]) -> np.int64:
    """Take the spikes of one tick; give the outputs and the events.

    Parameters
    ----------
    decoder : record of DECODER
        Changed in place.
    spikes : uint32
        Bit i = channel i spiked in this tick.
    outputs : ndarray of float32, shape (8,)
        Overwritten. Always finite and within the decoder's limits; 0 beyond `n_outputs`. A decoder on binned counts
        moves them at the end of a bin and holds them in between.

    Returns
    -------
    int64
        Bit j = event j happened in this tick.
    """
    if decoder["n_outputs"] == 0 and decoder["n_events"] == 0:
        for o in range(N_OUTPUTS):
            outputs[o] = 0.0
        return np.int64(0)
    bits = np.int64(spikes)
    decoder["n_ticks"] += 1
    if decoder["n_outputs"] > 0:
        if decoder["bin_ticks"] == 0:
            _filter_rates(decoder, bits)
            _weigh_rates(decoder)
            _hold(decoder, decoder["n_ticks"] > decoder["settle_ticks"])
        elif _fill_bin(decoder, bits):
            if decoder["kind"] == _KALMAN:
                _kalman(decoder)
            else:
                _weigh_counts(decoder)
            _hold(decoder, decoder["n_bins"] >= decoder["n_lags"])
    held = decoder["held"]
    for o in range(N_OUTPUTS):
        outputs[o] = held[o]
    return _find_events(decoder, bits)


@jit
def _filter_rates(decoder: Any, bits: np.int64) -> None:
    """Causal exponential filter, exact for spikes that stand at the end of their tick; unit gain for a steady rate."""
    rates, decay, step = decoder["rates_hz"], decoder["rate_decay"], decoder["rate_step"]
    for c in range(N_CHANNELS):
        rates[c] = rates[c] * decay + step * np.float64((bits >> c) & 1)


@jit
def _weigh_rates(decoder: Any) -> None:
    rates, weights, values, bias = decoder["rates_hz"], decoder["weights"], decoder["values"], decoder["bias"]
    for o in range(N_OUTPUTS):
        values[o] = bias[o]
    for c in range(N_CHANNELS):
        for o in range(N_OUTPUTS):
            values[o] += rates[c] * weights[c, o]


@jit
def _fill_bin(decoder: Any, bits: np.int64) -> bool:
    """Count spikes; say whether a bin is whole, and then move it into the ring."""
    filling, counts = decoder["filling"], decoder["counts"]
    for c in range(N_CHANNELS):
        filling[c] += np.float64((bits >> c) & 1)
    decoder["in_bin"] += 1
    if decoder["in_bin"] < decoder["bin_ticks"]:
        return False
    newest = (decoder["newest"] + 1) % MAX_LAGS
    for c in range(N_CHANNELS):
        counts[newest, c] = filling[c]
        filling[c] = 0.0
    decoder["newest"] = newest
    decoder["in_bin"] = 0
    decoder["n_bins"] += 1
    return True


@jit
def _weigh_counts(decoder: Any) -> None:
    """Wiener filter: a weight for each channel, lag and output."""
    counts, weights, values, bias = decoder["counts"], decoder["weights"], decoder["values"], decoder["bias"]
    for o in range(N_OUTPUTS):
        values[o] = bias[o]
    for lag in range(decoder["n_lags"]):
        row = (decoder["newest"] + MAX_LAGS - lag) % MAX_LAGS
        for c in range(N_CHANNELS):
            if counts[row, c] == 0.0:  # most are
                continue
            for o in range(N_OUTPUTS):
                values[o] += counts[row, c] * weights[lag * N_CHANNELS + c, o]


@jit
def _kalman(decoder: Any) -> None:
    """One step of the Kalman filter on the newest bin.

    Notes
    -----
    With S = C' Q^-1 C = L L', the update of 16 observations is one of d states: the covariance after it is
    P+ = P - P L (1 + L' P L)^-1 L' P. The matrix to be inverted is symmetric with eigenvalues of at least 1, so its
    Cholesky factor always exists; P itself may be singular, as it is where a position moves by its velocity alone.
    The difference loses digits, and may lose positivity. Joseph's form, F P F' + P+ S P+ with F = 1 - P+ S, mends
    both: it is a sum of two products that are symmetric and positive for whatever P+ was put in, and an error of P+
    enters it squared.
    """
    n = decoder["n_states"]
    a, s, root, projection = decoder["transition"], decoder["information"], decoder["root"], decoder["projection"]
    x, p, predicted, innovation = decoder["state"], decoder["covariance"], decoder["predicted"], decoder["innovation"]
    prior, first, second = decoder["prior"], decoder["first"], decoder["second"]
    counts, newest, mean = decoder["counts"], decoder["newest"], decoder["count_mean"]

    # predict: x- = A x, P- = A P A' + W
    for i in range(n):
        total = 0.0
        for k in range(n):
            total += a[i, k] * x[k]
        predicted[i] = total
    _multiply(n, a, p, first)
    _multiply_transposed(n, first, a, prior)
    _add(n, prior, decoder["transition_noise"])
    _symmetrise(n, prior)

    # what the counts say beyond the prediction: C' Q^-1 (z - mean) - S x-
    for i in range(n):
        total = 0.0
        for c in range(N_CHANNELS):
            total += projection[i, c] * (counts[newest, c] - mean[c])
        for k in range(n):
            total -= s[i, k] * predicted[k]
        innovation[i] = total

    # P+ = P- - Y Y', with Y R' = P- L and R R' = 1 + L' P- L
    _multiply(n, prior, root, first)
    for i in range(n):
        for j in range(n):
            total = 1.0 if i == j else 0.0
            for k in range(n):
                total += root[k, i] * first[k, j]
            second[i, j] = total
    _factorise(n, second)
    _divide(n, first, second)
    _multiply_transposed(n, first, first, second)
    for i in range(n):
        for j in range(n):
            p[i, j] = prior[i, j] - second[i, j]
    _symmetrise(n, p)

    # Joseph's form, by way of F P-, F P- F', P+ S, P+ S P+
    _multiply(n, p, s, first)
    for i in range(n):
        for j in range(n):
            total = prior[i, j]
            for k in range(n):
                total -= first[i, k] * prior[k, j]
            second[i, j] = total
    for i in range(n):
        for j in range(n):
            total = second[i, j]
            for k in range(n):
                total -= second[i, k] * first[j, k]
            prior[i, j] = total
    _multiply_transposed(n, first, p, second)
    _add(n, prior, second)
    bounded = True
    for i in range(n):
        for j in range(n):
            p[i, j] = prior[i, j]
            bounded = bounded and abs(p[i, j]) <= _LARGEST_COVARIANCE  # a NaN is not
    _symmetrise(n, p)
    for i in range(n):
        total = predicted[i]
        for k in range(n):
            total += p[i, k] * innovation[k]
        x[i] = total
        bounded = bounded and abs(total) <= _LARGEST_STATE
    if not bounded:
        decoder["runaways"] += 1
        _start_kalman(decoder)
    values, shown, state_mean, bias = decoder["values"], decoder["output_state"], decoder["state_mean"], decoder["bias"]
    for o in range(decoder["n_outputs"]):
        values[o] = x[shown[o]] + state_mean[shown[o]] + bias[o]


@jit
def _multiply(n: int, a: Any, b: Any, product: Any) -> None:
    """Product = a b."""
    for i in range(n):
        for j in range(n):
            total = 0.0
            for k in range(n):
                total += a[i, k] * b[k, j]
            product[i, j] = total


@jit
def _multiply_transposed(n: int, a: Any, b: Any, product: Any) -> None:
    """Product = a b'."""
    for i in range(n):
        for j in range(n):
            total = 0.0
            for k in range(n):
                total += a[i, k] * b[j, k]
            product[i, j] = total


@jit
def _add(n: int, a: Any, b: Any) -> None:
    for i in range(n):
        for j in range(n):
            a[i, j] += b[i, j]


@jit
def _symmetrise(n: int, a: Any) -> None:
    for i in range(n):
        for j in range(i):
            mean = 0.5 * (a[i, j] + a[j, i])
            a[i, j] = mean
            a[j, i] = mean


@jit
def _factorise(n: int, a: Any) -> None:
    """Cholesky factor in place, lower; the upper half is left as it was. Pivots below 1 are rounding: held to 1."""
    for j in range(n):
        total = a[j, j]
        for k in range(j):
            total -= a[j, k] * a[j, k]
        pivot = math.sqrt(total) if total > 1.0 else 1.0
        a[j, j] = pivot
        for i in range(j + 1, n):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            a[i, j] = total / pivot


@jit
def _divide(n: int, a: Any, lower: Any) -> None:
    """Replace a by the y of y lower' = a, row by row."""
    for i in range(n):
        for j in range(n):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * lower[j, k]
            a[i, j] = total / lower[j, j]


@jit
def _start_kalman(decoder: Any) -> None:
    x, p, p0 = decoder["state"], decoder["covariance"], decoder["initial_covariance"]
    for i in range(MAX_STATES):
        x[i] = 0.0
        for j in range(MAX_STATES):
            p[i, j] = p0[i, j]


@jit
def _hold(decoder: Any, known: bool) -> None:
    """Clip the values and keep them as the outputs; 0 as long as too little is known."""
    values, held, limit = decoder["values"], decoder["held"], decoder["limit"]
    for o in range(decoder["n_outputs"]):
        value = values[o] if known else 0.0
        if value > limit[o]:
            value = limit[o]
        elif value < -limit[o]:
            value = -limit[o]
        elif value != value:  # limits on the parameters keep it from being NaN; nothing may rely on that alone
            value = 0.0
            decoder["runaways"] += 1
        held[o] = value


@jit
def _find_events(decoder: Any, bits: np.int64) -> np.int64:
    """Spikes of a channel, or upward crossings of an output, outside the refractory period."""
    level, wait, held = decoder["event_level"], decoder["event_wait"], decoder["held"]
    events = np.int64(0)
    for j in range(decoder["n_events"]):
        if wait[j] > 0:
            wait[j] -= 1
        channel = decoder["event_channel"][j]
        if channel >= 0:
            happened = ((bits >> channel) & 1) == 1
        else:
            # of what is published, so that a subscriber can find the same events
            value = np.float64(held[decoder["event_output"][j]])
            happened = False
            if level[j] == 0:
                if value > decoder["event_above"][j]:
                    level[j] = 1
                    happened = True
            elif value < decoder["event_below"][j]:
                level[j] = 0
        if happened and wait[j] == 0:
            events |= np.int64(1) << np.int64(j)
            wait[j] = decoder["event_refractory"][j]
    return events


@jit
def decode_all(decoder: Any, spikes: NDArray[np.uint32], outputs: NDArray[np.float32], events: NDArray[Any]) -> None:
    """Decode many ticks, as the loop decodes one after another.

    Parameters
    ----------
    decoder : record of DECODER
        Changed in place.
    spikes : ndarray of uint32, shape (n_ticks,)
        Bit i = channel i spiked.
    outputs : ndarray of float32, shape (n_ticks, 8)
        Overwritten.
    events : ndarray of int64, shape (n_ticks,)
        Overwritten; bit j = event j.
    """
    for t in range(spikes.shape[0]):
        events[t] = decode(decoder, spikes[t], outputs[t])


@jit
def reset(decoder: Any) -> None:
    """Back to the state of a new decoder: filters empty, outputs 0, no event pending."""
    decoder["n_ticks"] = 0
    decoder["runaways"] = 0
    _start_filters(decoder)
    level, wait = decoder["event_level"], decoder["event_wait"]
    for j in range(MAX_EVENTS):
        level[j] = 0
        wait[j] = 0


@jit
def _start_filters(decoder: Any) -> None:
    rates, filling, counts, held = decoder["rates_hz"], decoder["filling"], decoder["counts"], decoder["held"]
    decoder["n_ticks"] = 0
    decoder["in_bin"] = 0
    decoder["newest"] = 0
    decoder["n_bins"] = 0
    for c in range(N_CHANNELS):
        rates[c] = 0.0
        filling[c] = 0.0
        for lag in range(MAX_LAGS):
            counts[lag, c] = 0.0
    for o in range(N_OUTPUTS):
        held[o] = 0.0
    _start_kalman(decoder)


@jit
def install(decoder: Any, other: Any) -> None:
    """Let `decoder` be `other` from the next tick on, without forgetting what both would remember alike.

    Parameters
    ----------
    decoder : record of DECODER
        The running decoder. Changed in place.
    other : record of DECODER
        The new one, of the same `dt_ms`. Only its parameters are read.

    Notes
    -----
    Filtered rates are kept where both decoders read rates with the same time constant; whole bins and the one that is
    filling where both count in bins of the same length. Then the outputs hold too, within the new limits, until the
    new decoder moves them. A Kalman state and its covariance are kept where both have the same states in bins of the
    same length. Everything else starts anew, outputs at 0. An event that watches
    the same output or channel as the one of its number before keeps its level and what is left of its refractory
    period; any other begins with its full refractory period. Where an output was above the new threshold already,
    the level is high: a swap alone is no upward crossing.
    """
    same_filter = (
        decoder["n_outputs"] > 0
        and other["n_outputs"] > 0
        and decoder["dt_ms"] == other["dt_ms"]
        and decoder["bin_ticks"] == other["bin_ticks"]
        and (decoder["bin_ticks"] > 0 or decoder["rate_decay"] == other["rate_decay"])
    )
    same_states = (
        same_filter
        and decoder["kind"] == _KALMAN
        and other["kind"] == _KALMAN
        and decoder["n_states"] == other["n_states"]
        and decoder["state_id"] == other["state_id"]
    )
    if same_states:
        x, old_mean, new_mean = decoder["state"], decoder["state_mean"], other["state_mean"]
        for i in range(decoder["n_states"]):
            x[i] += old_mean[i] - new_mean[i]
    _install_events(decoder, other)
    _copy_parameters(decoder, other)
    if not same_filter:
        _start_filters(decoder)
    elif not same_states:
        _start_kalman(decoder)
    held, limit = decoder["held"], decoder["limit"]
    for o in range(N_OUTPUTS):
        value: Any = np.float64(held[o])
        if o >= decoder["n_outputs"]:
            value = 0.0
        elif value > limit[o]:
            value = limit[o]
        elif value < -limit[o]:
            value = -limit[o]
        held[o] = value


@jit
def _install_events(decoder: Any, other: Any) -> None:
    """Set levels and refractory periods for the events of `other`, by the outputs as they were: a swap is no edge."""
    level, wait, held = decoder["event_level"], decoder["event_wait"], decoder["held"]
    for j in range(MAX_EVENTS):
        if j >= other["n_events"]:
            level[j] = 0
            wait[j] = 0
            continue
        channel, output = other["event_channel"][j], other["event_output"][j]
        same_event = (
            j < decoder["n_events"] and decoder["event_channel"][j] == channel and decoder["event_output"][j] == output
        )
        if not same_event:
            level[j] = 0
            wait[j] = other["event_refractory"][j]
        if channel < 0 and np.float64(held[output]) > other["event_above"][j]:
            level[j] = 1


@jit
def _copy_parameters(decoder: Any, other: Any) -> None:
    decoder["version"] = other["version"]
    decoder["kind"] = other["kind"]
    decoder["n_outputs"] = other["n_outputs"]
    decoder["n_lags"] = other["n_lags"]
    decoder["n_states"] = other["n_states"]
    decoder["n_events"] = other["n_events"]
    decoder["bin_ticks"] = other["bin_ticks"]
    decoder["settle_ticks"] = other["settle_ticks"]
    decoder["state_id"] = other["state_id"]
    decoder["dt_ms"] = other["dt_ms"]
    decoder["rate_decay"] = other["rate_decay"]
    decoder["rate_step"] = other["rate_step"]
    _copy_matrix(decoder["weights"], other["weights"])
    _copy_row(decoder["bias"], other["bias"])
    _copy_row(decoder["limit"], other["limit"])
    _copy_row(decoder["output_state"], other["output_state"])
    _copy_row(decoder["state_mean"], other["state_mean"])
    _copy_row(decoder["count_mean"], other["count_mean"])
    _copy_matrix(decoder["transition"], other["transition"])
    _copy_matrix(decoder["transition_noise"], other["transition_noise"])
    _copy_matrix(decoder["projection"], other["projection"])
    _copy_matrix(decoder["information"], other["information"])
    _copy_matrix(decoder["root"], other["root"])
    _copy_matrix(decoder["initial_covariance"], other["initial_covariance"])
    _copy_row(decoder["event_channel"], other["event_channel"])
    _copy_row(decoder["event_output"], other["event_output"])
    _copy_row(decoder["event_above"], other["event_above"])
    _copy_row(decoder["event_below"], other["event_below"])
    _copy_row(decoder["event_refractory"], other["event_refractory"])


@jit
def _copy_row(target: Any, source: Any) -> None:
    for i in range(target.shape[0]):
        target[i] = source[i]


@jit
def _copy_matrix(target: Any, source: Any) -> None:
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            target[i, j] = source[i, j]


def make_decoder(config: DecoderConfig | None, dt_ms: float, *, version: int = 0) -> NDArray[Any]:
    """Make the decoder that a configuration describes, as a new one.

    Parameters
    ----------
    config : DecoderConfig or None
        None: a decoder that gives zeros and no events. A `DecoderFileConfig`: the file is read and checked here.
    dt_ms : float
        Length of a tick.
    version : int
        Put into the record; a file brings its own.

    Returns
    -------
    ndarray of DECODER, shape (1,)
        Its record is ``[0]``.

    Raises
    ------
    ConfigError
        Ticks of this length do not make up bins of that length; or the file cannot be used.

    Notes
    -----
    The numbers derived here use IEEE arithmetic and square roots alone, in a fixed order, so that a configuration
    gives the same bits on every machine.
    """
    if not (math.isfinite(dt_ms) and dt_ms > 0.0):
        raise ConfigError(f"a tick of {dt_ms} ms; a positive duration expected")
    if isinstance(config, DecoderFileConfig):
        file = load_decoder(config.path)
        if abs(file.provenance.dt_ms - dt_ms) > 1e-6 * dt_ms:
            raise ConfigError(
                f"{config.path}: fitted with ticks of {file.provenance.dt_ms:g} ms, this session has {dt_ms:g} ms; "
                "calibrate again with this session's ticks"
            )
        fitted = file.decoder
        if config.events:
            try:
                fitted = type(fitted).model_validate(fitted.model_dump() | {"events": config.events})
            except pydantic.ValidationError as error:
                raise ConfigError(f"decoder.events with {config.path}: {error.errors()[0]['msg']}") from error
        return make_decoder(fitted, dt_ms, version=file.version)
    decoder = np.zeros(1, DECODER)
    record = decoder[0]
    record["dt_ms"] = dt_ms
    record["version"] = version
    if config is None:
        return decoder
    record["kind"] = KINDS.index(config.kind)
    record["n_outputs"] = config.n_outputs
    record["limit"][: config.n_outputs] = config.limit
    if isinstance(config, RatesConfig):
        _set_rates(record, config.tau_ms, 0.0)
        for o, channel in enumerate(config.channels):
            record["weights"][channel, o] = config.gain
    elif isinstance(config, PopulationVectorConfig):
        _set_rates(record, config.tau_ms, config.settle_ms)
        _set_population_vector(record, config)
    elif isinstance(config, LinearConfig):
        _set_linear(record, config)
    else:
        _set_kalman(record, config)
    _set_events(record, config.events)
    reset(record)
    return decoder


def _ticks(name: str, duration_ms: float, dt_ms: float) -> int:
    n = max(1, round(duration_ms / dt_ms))
    if abs(n * dt_ms - duration_ms) > 0.01 * duration_ms:
        raise ConfigError(
            f"decoder.{name} = {duration_ms:g} is no whole number of ticks of {dt_ms:g} ms; {n * dt_ms:g} would be"
        )
    return n


def _set_rates(record: Any, tau_ms: float, settle_ms: float | None) -> None:
    risen = float(one_minus_exp(np.float64(record["dt_ms"] / tau_ms)))
    record["n_lags"] = 1
    record["rate_decay"] = 1.0 - risen
    record["rate_step"] = risen * 1000.0 / record["dt_ms"]
    record["settle_ticks"] = round((3.0 * tau_ms if settle_ms is None else settle_ms) / record["dt_ms"])


def _set_population_vector(record: Any, config: PopulationVectorConfig) -> None:
    share = config.gain * config.n_outputs / len(config.channels)
    baseline, depth = config.per_channel("baseline_hz"), config.per_channel("depth_hz")
    for i, channel in enumerate(config.channels):
        direction = config.preferred_directions[i]
        length = math.sqrt(sum(x * x for x in direction))
        for o, x in enumerate(direction):
            weight = share * (x / length) / depth[i]
            record["weights"][channel, o] = weight
            record["bias"][o] -= baseline[i] * weight


def _set_linear(record: Any, config: LinearConfig) -> None:
    if config.features == "rates":
        _set_rates(record, config.tau_ms, config.settle_ms)
    else:
        record["n_lags"] = config.n_lags
        record["bin_ticks"] = _ticks("bin_ms", config.bin_ms, float(record["dt_ms"]))
    for o, lags in enumerate(config.weights):
        for lag, row in enumerate(lags):
            for channel, weight in enumerate(row):
                record["weights"][lag * N_CHANNELS + channel, o] = weight
    record["bias"][: config.n_outputs] = config.bias


def _set_kalman(record: Any, config: KalmanConfig) -> None:
    n = len(config.states)
    record["n_lags"] = 1
    record["n_states"] = n
    record["bin_ticks"] = _ticks("bin_ms", config.bin_ms, float(record["dt_ms"]))
    record["state_id"] = int.from_bytes(hashlib.sha256("\0".join(config.states).encode()).digest()[:8], "little")
    record["output_state"][: config.n_outputs] = [config.states.index(name) for name in config.outputs]
    record["state_mean"][:n] = config.state_mean
    record["transition"][:n, :n] = config.transition
    record["transition_noise"][:n, :n] = config.transition_noise
    record["initial_covariance"][:n, :n] = config.initial_covariance
    used = list(config.channels)
    record["count_mean"][used] = config.count_mean
    c, q = config.observation, config.observation_noise
    lower = lower_factor(q)
    # column by column: Q^-1 C by two triangular solves, then its transpose times C
    solved = [_solve(lower, [c[k][i] for k in range(len(used))]) for i in range(n)]
    for i in range(n):
        record["projection"][i, used] = solved[i]
    information = [[_dot(solved[i], [row[j] for row in c]) for j in range(n)] for i in range(n)]
    information = [[0.5 * (information[i][j] + information[j][i]) for j in range(n)] for i in range(n)]
    largest = max(abs(x) for row in (*solved, *information) for x in row)
    if not largest <= _LARGEST_INFORMATION:
        raise ConfigError(
            f"decoder.observation_noise is far too small or nearly singular: counts would weigh {largest:.3g}; "
            f"at most {_LARGEST_INFORMATION:g} expected, add to its diagonal"
        )
    record["information"][:n, :n] = information
    record["root"][:n, :n] = lower_factor(information)


def _dot(a: Any, b: Any) -> float:
    total = 0.0
    for x, y in zip(a, b, strict=True):
        total += float(x) * float(y)
    return total


def lower_factor(matrix: Any) -> list[list[float]]:
    """Cholesky factor of a symmetric matrix that may be singular: a pivot that is only rounding leaves a zero column.

    Plain Python rather than LAPACK, whose last bits differ between machines.
    """
    n = len(matrix)
    lower = [[0.0] * n for _ in range(n)]
    for j in range(n):
        pivot = float(matrix[j][j]) - _dot(lower[j][:j], lower[j][:j])
        if pivot <= 1e-13 * float(matrix[j][j]) or pivot <= 0.0:
            continue
        lower[j][j] = math.sqrt(pivot)
        for i in range(j + 1, n):
            lower[i][j] = (float(matrix[i][j]) - _dot(lower[i][:j], lower[j][:j])) / lower[j][j]
    return lower


def _solve(lower: list[list[float]], column: list[float]) -> list[float]:
    n = len(column)
    y = [0.0] * n
    for i in range(n):
        y[i] = (column[i] - _dot(lower[i][:i], y[:i])) / lower[i][i]
    for i in reversed(range(n)):
        y[i] = (y[i] - _dot([lower[k][i] for k in range(i + 1, n)], y[i + 1 :])) / lower[i][i]
    return y


def _set_events(record: Any, events: tuple[EventConfig, ...]) -> None:
    record["n_events"] = len(events)
    record["event_channel"][:] = -1
    for j, event in enumerate(events):
        record["event_refractory"][j] = round(event.refractory_ms / record["dt_ms"])
        if event.channel is not None:
            record["event_channel"][j] = event.channel
            continue
        assert event.output is not None  # EventConfig saw to it
        assert event.above is not None
        record["event_output"][j] = event.output
        record["event_above"][j] = event.above
        record["event_below"][j] = event.above if event.below is None else event.below
