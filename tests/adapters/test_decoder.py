"""What the decoders compute: against their naive twins bit for bit, and against textbooks."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import pydantic
import pytest
import scipy.signal
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from naive.decoder import RUNNING
from naive.decoder import Decoder as NaiveDecoder
from neuromod.adapters.decoder import (
    DECODER,
    KINDS,
    PARAMETERS,
    decode,
    decode_all,
    install,
    lower_factor,
    make_decoder,
    reset,
)
from neuromod.adapters.decoder_config import DecoderConfig, LinearConfig
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import ConfigError

Masks = NDArray[np.uint32]
Floats = NDArray[np.float64]

_ADAPTER: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(DecoderConfig)
STATES = ["px", "py", "vx", "vy", "ax", "ay"]


def config(**values: Any) -> Any:
    return _ADAPTER.validate_python(values)


def directions(n: int, dimensions: int = 2) -> list[list[float]]:
    vectors = np.random.default_rng(9).normal(size=(n, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).tolist()  # type: ignore[no-any-return]


def kalman(seed: int = 0, n: int = 4, m: int = 10, **changes: Any) -> Any:
    """A stable filter with full matrices."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(n, n))
    a *= 0.95 / np.abs(np.linalg.eigvals(a)).max()
    roots = {key: rng.normal(size=(k, k)) for key, k in (("w", n), ("q", m), ("p", n))}
    w, q, p = (roots[key] @ roots[key].T for key in "wqp")
    values = {
        "kind": "kalman",
        "bin_ms": 5.0,
        "states": STATES[:n],
        "outputs": STATES[1:n],
        "channels": list(range(m)),
        "state_mean": rng.normal(size=n).tolist(),
        "count_mean": rng.uniform(0, 2, m).tolist(),
        "transition": a.tolist(),
        "transition_noise": w.tolist(),
        "observation": rng.normal(size=(m, n)).tolist(),
        "observation_noise": (q + np.eye(m)).tolist(),
        "initial_covariance": p.tolist(),
    }
    return config(**values | changes)


def linear(seed: int = 0, n_outputs: int = 3, n_lags: int = 4, **changes: Any) -> Any:
    rng = np.random.default_rng(seed)
    values = {
        "kind": "linear",
        "bin_ms": 5.0,
        "n_lags": n_lags,
        "weights": rng.normal(size=(n_outputs, n_lags, 16)).tolist(),
        "bias": rng.normal(size=n_outputs).tolist(),
    }
    return config(**values | changes)


EVENTS = [
    {"output": 0, "above": 1.0, "below": 0.5, "refractory_ms": 7.0},
    {"output": 1, "above": 0.2},
    {"channel": 3},
    {"channel": 5, "refractory_ms": 20.0},
]

EVERY_KIND: dict[str, Callable[[], Any]] = {
    "rates": lambda: config(kind="rates", channels=[4, 0, 15], tau_ms=20.0, events=EVENTS),
    "population_vector": lambda: config(
        kind="population_vector",
        preferred_directions=directions(14, 3),
        baseline_hz=[float(10 + i) for i in range(14)],
        depth_hz=30.0,
        gain=5.0,
        tau_ms=15.0,
        events=EVENTS,
    ),
    "linear on counts": lambda: linear(events=EVENTS, limit=3.0),
    "linear on rates": lambda: linear(n_lags=1, features="rates", tau_ms=12.0, settle_ms=30.0, events=EVENTS),
    "kalman": lambda: kalman(events=EVENTS),
    "kalman of six states": lambda: kalman(seed=3, n=6, m=16),
}


def random_masks(n: int, seed: int = 1, p: float = 0.1) -> Masks:
    spikes = np.random.default_rng(seed).random((n, 16)) < p
    masks: Masks = (spikes << np.arange(16)).sum(axis=1).astype(np.uint32)
    return masks


def trains(masks: Masks) -> Floats:
    return ((masks[:, None] >> np.arange(16, dtype=np.uint32)) & 1).astype(np.float64)


def decoded(decoder: Any, masks: Masks | Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    spikes = np.asarray(masks, dtype=np.uint32)
    outputs, events = np.full((len(spikes), 8), np.nan, np.float32), np.zeros(len(spikes), np.int64)
    decode_all(decoder[0], spikes, outputs, events)
    return outputs, events


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("p", [0.02, 0.5])
def test_compiled_decoder_equals_the_naive_twin_bit_for_bit(kind: str, p: float) -> None:
    decoder = make_decoder(EVERY_KIND[kind](), 1.0)
    twin = NaiveDecoder(decoder[0])
    masks = random_masks(400, p=p)

    outputs, events = decoded(decoder, masks)

    expected = [twin.decode(int(mask)) for mask in masks]
    assert outputs.tobytes() == np.array([row for row, _ in expected], np.float32).tobytes()
    assert events.tolist() == [bits for _, bits in expected]
    assert np.ptp(outputs[:, 0]) > 0.1, "an output that stands still compares nothing"
    for name in ("rates_hz", "counts", "state", "covariance", "n_ticks", "n_bins", "event_wait", "runaways"):
        assert decoder[0][name].tolist() == getattr(twin, name), name


def digest() -> str:
    """Hash over outputs, events and the whole record of every kind after 200 ticks and a swap."""
    total = hashlib.sha256()
    for make in EVERY_KIND.values():
        decoder = make_decoder(make(), 1.0)
        for masks in (random_masks(100, 5), random_masks(100, 6)):
            outputs, events = decoded(decoder, masks)
            total.update(outputs.tobytes() + events.tobytes() + decoder.tobytes())
            install(decoder[0], make_decoder(linear(n_lags=10), 1.0)[0])
    return total.hexdigest()


@pytest.mark.skipif(not JIT_ENABLED, reason="compares with the compiled form, which is switched off")
def test_interpreted_decoders_give_the_bits_of_compiled_ones() -> None:
    child = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == digest()


# rates


def test_a_rate_is_the_exponential_filter_of_a_spike_train() -> None:
    masks = random_masks(2000)
    decoder = make_decoder(config(kind="rates", channels=[3, 7], tau_ms=50.0, gain=2.0), 0.5)

    outputs, _ = decoded(decoder, masks)

    keep = np.exp(-0.5 / 50.0)
    expected = scipy.signal.lfilter([1.0 - keep], [1.0, -keep], trains(masks)[:, [3, 7]] * 2000.0, axis=0)
    # the exponential is good to 1e-11; outputs are rounded to float32
    np.testing.assert_allclose(outputs[:, :2], 2.0 * expected, rtol=2e-7)
    assert (outputs[:, 2:] == 0.0).all()


def test_a_steady_train_has_its_own_rate() -> None:
    decoder = make_decoder(config(kind="rates", channels=[0], tau_ms=200.0), 1.0)
    outputs, _ = decoded(decoder, [int(t % 10 == 0) for t in range(5000)])
    assert outputs[-1000:, 0].mean() == pytest.approx(100.0, rel=1e-6)


# population vector


@pytest.mark.parametrize("dimensions", [2, 3])
def test_full_modulation_in_a_direction_gives_a_vector_of_that_direction(dimensions: int) -> None:
    """The axes and their opposites, so that the votes sum to the exact direction."""
    axes = [*np.eye(dimensions), *-np.eye(dimensions)]
    decoder = make_decoder(
        config(
            kind="population_vector",
            channels=list(range(2 * dimensions)),
            preferred_directions=[(3.0 * axis).tolist() for axis in axes],  # made unit vectors
            baseline_hz=500.0,
            depth_hz=500.0,
            gain=7.0,
            tau_ms=5.0,
        ),
        1.0,
    )
    # the first axis fires at each tick (1000 / s), its opposite is silent, the rest at 500 / s
    first, opposite, rest = 1, 1 << dimensions, (1 << 2 * dimensions) - 1
    masks = [first | (rest & ~opposite if t % 2 else 0) for t in range(4000)]

    outputs, _ = decoded(decoder, masks)

    mean = outputs[-1000:, :dimensions].mean(axis=0)
    np.testing.assert_allclose(mean, 7.0 * np.eye(dimensions)[0], atol=0.01)


def test_a_population_vector_is_zero_until_its_rates_are_known() -> None:
    decoder = make_decoder(config(kind="population_vector", preferred_directions=directions(14), tau_ms=10.0), 1.0)
    outputs, _ = decoded(decoder, [0] * 40)
    assert (outputs[:30] == 0.0).all()
    assert (outputs[30:, :2] != 0.0).all()


# linear


def test_a_linear_decoder_is_the_wiener_filter_of_numpy() -> None:
    bins, lags = 60, 4
    settings_, masks = linear(n_lags=lags), random_masks(5 * bins)

    outputs, _ = decoded(make_decoder(settings_, 1.0), masks)

    counts = trains(masks).reshape(bins, 5, 16).sum(axis=1)
    weights = np.array(settings_.weights)
    for b in range(lags - 1, bins - 1):
        expected = np.einsum("olc,lc->o", weights, counts[b - np.arange(lags)]) + settings_.bias
        held = outputs[5 * (b + 1) - 1 : 5 * (b + 2) - 1, :3]
        # rounding of float32, of sums whose terms are of the order of 10
        np.testing.assert_allclose(held, np.tile(expected, (5, 1)), rtol=2e-7, atol=1e-5)


def test_outputs_of_a_linear_decoder_are_zero_until_all_lags_are_known() -> None:
    outputs, _ = decoded(make_decoder(linear(n_lags=4), 1.0), random_masks(25))
    assert (outputs[: 4 * 5 - 1] == 0.0).all()
    assert (outputs[4 * 5 - 1, :3] != 0.0).all()


def test_a_linear_decoder_on_rates_weighs_filtered_rates() -> None:
    masks = random_masks(500)
    settings_ = linear(n_lags=1, features="rates", tau_ms=30.0, settle_ms=0.0)

    outputs, _ = decoded(make_decoder(settings_, 1.0), masks)

    keep = np.exp(-1.0 / 30.0)
    rates = scipy.signal.lfilter([1000.0 * (1.0 - keep)], [1.0, -keep], trains(masks), axis=0)
    expected = rates @ np.array(settings_.weights)[:, 0].T + settings_.bias
    np.testing.assert_allclose(outputs[:, :3], expected, rtol=2e-7, atol=1e-4)  # terms of the order of 100


# Kalman


def textbook_kalman(c: Any, counts: Floats) -> tuple[Floats, list[Floats]]:
    """Covariance form with the gain of m observations, as in any textbook."""
    a, w, h, q = (np.array(x) for x in (c.transition, c.transition_noise, c.observation, c.observation_noise))
    x, p = np.zeros(len(a)), np.array(c.initial_covariance)
    states, covariances = [], []
    for z in counts[:, list(c.channels)] - c.count_mean:
        x, p = a @ x, a @ p @ a.T + w
        gain = p @ h.T @ np.linalg.inv(h @ p @ h.T + q)
        x = x + gain @ (z - h @ x)
        p = (np.eye(len(a)) - gain @ h) @ p
        states.append(x)
        covariances.append(p)
    return np.array(states), covariances


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 16), (4, 10), (6, 16), (6, 3)])
def test_the_kalman_filter_is_the_textbook_one(n: int, m: int) -> None:
    settings_ = kalman(seed=n + m, n=n, m=m, outputs=STATES[:n])
    decoder, masks = make_decoder(settings_, 1.0), random_masks(250, p=0.2)
    states = []
    for start in range(0, 250, 5):
        outputs, _ = decoded(decoder, masks[start : start + 5])
        states.append(decoder[0]["state"][:n].copy())
    expected, covariances = textbook_kalman(settings_, trains(masks).reshape(50, 5, 16).sum(axis=1))

    scale = np.abs(expected).max(axis=0)
    np.testing.assert_allclose(np.array(states) / scale, expected / scale, rtol=0, atol=1e-9)
    found, p = decoder[0]["covariance"][:n, :n], covariances[-1]
    np.testing.assert_allclose(found, p, rtol=0, atol=1e-9 * np.abs(p).max())
    np.testing.assert_allclose(outputs[-1, :n], expected[-1] + settings_.state_mean, rtol=1e-5, atol=1e-6)


def test_a_position_that_moves_by_its_velocity_alone_needs_no_noise_of_its_own() -> None:
    """A singular W, and at first a singular P: the covariance of the prediction has no inverse."""
    settings_ = kalman(
        n=2,
        m=4,
        transition=[[1.0, 0.05], [0.0, 0.9]],
        transition_noise=[[0.0, 0.0], [0.0, 1.0]],
        initial_covariance=[[0.0, 0.0], [0.0, 1.0]],
    )
    decoder, masks = make_decoder(settings_, 1.0), random_masks(500, p=0.2)
    decoded(decoder, masks)
    expected, covariances = textbook_kalman(settings_, trains(masks).reshape(100, 5, 16).sum(axis=1))
    np.testing.assert_allclose(decoder[0]["state"][:2], expected[-1], rtol=1e-9)
    np.testing.assert_allclose(decoder[0]["covariance"][:2, :2], covariances[-1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", [1e-6, 1.0, 1e6])
def test_the_covariance_stays_symmetric_and_positive_for_a_hundred_thousand_bins(precision: float) -> None:
    n = 6
    q = (np.eye(16) / precision).tolist()
    decoder = make_decoder(kalman(n=n, m=16, observation_noise=q, bin_ms=1.0), 1.0)
    for seed in range(10):
        decoded(decoder, random_masks(10_000 if JIT_ENABLED else 20, seed=seed))
        p = decoder[0]["covariance"][:n, :n]
        assert (p == p.T).all()
        values = np.linalg.eigvalsh(p)
        assert values.min() > -1e-12 * values.max()
    assert decoder[0]["runaways"] == 0


def test_a_filter_that_runs_away_starts_anew_and_is_counted() -> None:
    """An unstable state that nothing observes: its variance doubles 4-fold a bin, for ever."""
    settings_ = kalman(
        n=2,
        m=1,
        bin_ms=1.0,
        transition=[[2.0, 0.0], [0.0, 0.5]],
        observation=[[0.0, 1.0]],
        outputs=["px", "py"],
    )
    decoder = make_decoder(settings_, 1.0)
    outputs, _ = decoded(decoder, random_masks(1000))
    assert decoder[0]["runaways"] > 10
    assert np.isfinite(outputs).all()
    assert np.isfinite(decoder[0]["covariance"]).all()


# finiteness

_EXTREME = st.sampled_from([0.0, 1.0, -1.0, 1e-9, 1e9, -1e9, 3.7])
_DECAYING = st.sampled_from([0.0, 1.0, -1.0, 1e3, -1e3, 0.5])
_VARIANCE = st.sampled_from([1e-9, 1e-3, 1.0, 1e12])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), spikes=st.lists(st.integers(0, 65535), min_size=1, max_size=60))
def test_no_spikes_make_an_extreme_kalman_filter_leave_its_limits(data: st.DataObject, spikes: list[int]) -> None:
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))

    def matrix(rows: int, columns: int, elements: Any) -> list[list[float]]:
        return [[data.draw(elements) for _ in range(columns)] for _ in range(rows)]

    settings_ = kalman(
        n=n,
        m=m,
        bin_ms=1.0,
        outputs=STATES[:n],
        state_mean=data.draw(st.lists(_EXTREME, min_size=n, max_size=n)),
        count_mean=data.draw(st.lists(_EXTREME, min_size=m, max_size=m)),
        transition=matrix(n, n, _DECAYING),
        transition_noise=np.diag([data.draw(_VARIANCE) for _ in range(n)]).tolist(),
        initial_covariance=np.diag([data.draw(_VARIANCE) for _ in range(n)]).tolist(),
        observation=matrix(m, n, _EXTREME),
        observation_noise=(np.eye(m) * data.draw(_VARIANCE)).tolist(),
        limit=data.draw(st.sampled_from([1e-3, 1.0, 1e30])),
    )
    try:
        decoder = make_decoder(settings_, 1.0)
    except ConfigError:  # counts that would weigh too much
        assume(False)

    outputs, _ = decoded(decoder, spikes)

    assert (np.abs(outputs) <= np.float32(settings_.limit)).all()  # a NaN is not
    for name in ("state", "covariance"):
        assert np.isfinite(decoder[0][name]).all()


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.lists(_EXTREME, min_size=16, max_size=16), min_size=1, max_size=8),
    spikes=st.lists(st.integers(0, 65535), min_size=1, max_size=100),
    features=st.sampled_from(["counts", "rates"]),
    limit=st.sampled_from([1e-3, 1.0, 1e30]),
)
def test_no_spikes_make_an_extreme_linear_decoder_leave_its_limits(
    weights: list[list[float]], spikes: list[int], features: str, limit: float
) -> None:
    settings_ = config(
        kind="linear", weights=weights, features=features, bin_ms=0.1, tau_ms=0.1, settle_ms=0.0, limit=limit
    )
    outputs, _ = decoded(make_decoder(settings_, 0.1), spikes)
    assert (np.abs(outputs) <= np.float32(limit)).all()


# events


def step_response(levels: Sequence[float], **event: Any) -> list[int]:
    """Ticks with the event, for an output that takes these levels: the decoder reads a count of sixteen as a level."""
    settings_ = config(kind="linear", weights=[[1.0] * 16], bin_ms=1.0, events=[{"output": 0} | event])
    masks = [(1 << int(level)) - 1 for level in levels]
    outputs, events = decoded(make_decoder(settings_, 1.0), masks)
    assert outputs[:, 0].tolist() == list(levels)
    return np.flatnonzero(events).tolist()


def test_an_event_is_the_edge_and_not_the_level() -> None:
    assert step_response([0, 5, 6, 5, 0, 5], above=3.0) == [1, 5]


def test_the_level_itself_is_not_above_it() -> None:
    assert step_response([3, 3, 4], above=3.0) == [2]


def test_hysteresis_asks_for_a_fall_below_the_lower_level() -> None:
    assert step_response([5, 3, 5, 2, 5, 1, 5], above=4.0, below=2.0) == [0, 6]


def test_an_edge_within_the_refractory_period_is_dropped_for_good() -> None:
    assert step_response([5, 0, 5, 5, 5, 5, 0, 5], above=3.0, refractory_ms=4.0) == [0, 7]


def test_an_edge_right_after_the_refractory_period_is_an_event() -> None:
    assert step_response([5, 0, 0, 0, 5], above=3.0, refractory_ms=4.0) == [0, 4]
    assert step_response([5, 0, 0, 0, 5], above=3.0, refractory_ms=5.0) == [0]


def test_each_spike_of_a_channel_is_an_event() -> None:
    settings_ = config(kind="rates", events=[{"channel": 3}, {"channel": 15, "refractory_ms": 3.0}])
    _, events = decoded(make_decoder(settings_, 1.0), [8, 8, 0, 32768, 32776, 32768, 32768, 1])
    assert events.tolist() == [1, 1, 0, 2, 1, 0, 2, 0]


def test_sixteen_events_have_sixteen_bits() -> None:
    settings_ = config(kind="rates", events=[{"channel": c} for c in range(16)])
    _, events = decoded(make_decoder(settings_, 1.0), [0xFFFF, 0x8001])
    assert events.tolist() == [0xFFFF, 0x8001]


# limits, none, reset


def test_outputs_are_clipped_to_the_limit() -> None:
    settings_ = config(kind="linear", weights=[[1.0] * 16, [-1.0] * 16], bin_ms=1.0, limit=2.5)
    outputs, _ = decoded(make_decoder(settings_, 1.0), [0, 1, 0xFFFF])
    assert outputs[:, :2].tolist() == [[0, 0], [1, -1], [2.5, -2.5]]


def test_no_decoder_gives_zeros_and_no_events_and_stays_as_it_was() -> None:
    decoder = make_decoder(None, 1.0)
    before = decoder.tobytes()
    outputs, events = decoded(decoder, [0xFFFF] * 10)
    assert not outputs.any()
    assert not events.any()
    assert decoder.tobytes() == before


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_reset_forgets_everything(kind: str) -> None:
    masks = random_masks(300)
    decoder = make_decoder(EVERY_KIND[kind](), 1.0)
    expected = decoded(decoder, masks)
    reset(decoder[0])
    again = decoded(decoder, masks)
    assert [a.tobytes() for a in again] == [a.tobytes() for a in expected]


# swaps


def ticks_after_swap(old: Any, new: Any, n_before: int = 103) -> tuple[Any, Any, Any]:
    """Outputs of a swapped decoder, of one that always was the new one, and of a new one, over the same last ticks."""
    masks = random_masks(200, p=0.3)
    swapped, always, fresh = make_decoder(old, 1.0), make_decoder(new, 1.0), make_decoder(new, 1.0)
    decoded(swapped, masks[:n_before])
    decoded(always, masks[:n_before])
    install(swapped[0], make_decoder(new, 1.0)[0])
    return tuple(decoded(d, masks[n_before:])[0] for d in (swapped, always, fresh))  # type: ignore[return-value]


def test_a_swap_keeps_filtered_rates_of_the_same_time_constant() -> None:
    old = config(kind="rates", tau_ms=30.0)
    new = config(kind="population_vector", preferred_directions=directions(14), tau_ms=30.0)
    swapped, always, _ = ticks_after_swap(old, new)
    assert swapped.tobytes() == always.tobytes()


def test_a_swap_to_another_time_constant_starts_the_rates_anew() -> None:
    swapped, always, fresh = ticks_after_swap(config(kind="rates", tau_ms=30.0), config(kind="rates", tau_ms=31.0))
    assert swapped.tobytes() == fresh.tobytes() != always.tobytes()


def test_a_swap_keeps_bins_of_the_same_length_the_filling_one_included_and_more_lags_know_the_past() -> None:
    swapped, always, _ = ticks_after_swap(linear(n_lags=2, limit=1.0), linear(seed=7, n_lags=10))
    held = 1  # three ticks of the bin were counted before the swap, the second after it ends the bin
    assert swapped[held:].tobytes() == always[held:].tobytes()
    assert (np.abs(swapped[:held]) <= 1.0).all()


def test_a_swap_to_other_bins_starts_anew() -> None:
    swapped, always, fresh = ticks_after_swap(linear(bin_ms=5.0), linear(bin_ms=4.0))
    assert swapped.tobytes() == fresh.tobytes() != always.tobytes()


def test_outputs_hold_through_a_swap_within_the_new_limits() -> None:
    old, new = linear(n_lags=1), linear(seed=1, n_lags=1, n_outputs=2, limit=0.25)
    decoder = make_decoder(old, 1.0)
    before, _ = decoded(decoder, random_masks(6, p=0.5))
    install(decoder[0], make_decoder(new, 1.0)[0])
    after, _ = decoded(decoder, [0])
    assert np.abs(before[-1, :3]).max() > 0.25
    np.testing.assert_array_equal(after[0, :2], np.clip(before[-1, :2], -0.25, 0.25))
    assert (after[0, 2:] == 0.0).all()


def test_a_swap_keeps_the_state_of_a_kalman_filter_with_the_same_states() -> None:
    old, new = kalman(), kalman(state_mean=[1.0, 2.0, 3.0, 4.0], outputs=STATES[:4])
    decoder = make_decoder(old, 1.0)
    decoded(decoder, random_masks(50))
    before = decoder[0]["state"][:4] + old.state_mean
    covariance = decoder[0]["covariance"].copy()
    install(decoder[0], make_decoder(new, 1.0)[0])
    # one rounding of numbers of the order of 1
    np.testing.assert_allclose(decoder[0]["state"][:4] + new.state_mean, before, atol=1e-14)
    assert decoder[0]["covariance"].tobytes() == covariance.tobytes()


def test_a_swap_to_other_states_starts_the_filter_anew() -> None:
    decoder = make_decoder(kalman(), 1.0)
    decoded(decoder, random_masks(50))
    install(decoder[0], make_decoder(kalman(states=["a", "b", "c", "d"], outputs=["a"]), 1.0)[0])
    assert (decoder[0]["state"] == 0.0).all()
    assert (decoder[0]["counts"] != 0.0).any()


def test_a_level_that_is_high_at_a_swap_is_no_new_edge() -> None:
    def settings_(above: float) -> Any:
        return config(
            kind="linear", weights=[[1.0] * 16], bin_ms=1.0, events=[{"output": 0, "above": above}, {"channel": 0}]
        )

    decoder = make_decoder(settings_(3.0), 1.0)
    decoded(decoder, [0, 0xF0, 0xF0])
    install(decoder[0], make_decoder(settings_(2.0), 1.0)[0])
    _, events = decoded(decoder, [0xF0, 0, 0xF0])
    assert events.tolist() == [0, 0, 1]


def counting(*events: dict[str, Any], n_outputs: int = 1) -> Any:
    """Return a decoder whose every output is the count of spikes of a tick."""
    return config(kind="linear", weights=[[1.0] * 16] * n_outputs, bin_ms=1.0, events=list(events))


def events_around_a_swap(old: Any, new: Any, before: Sequence[int], after: Sequence[int]) -> tuple[list[int], ...]:
    """Events before and after a swap, for outputs that take these levels."""
    decoder = make_decoder(old, 1.0)
    _, first = decoded(decoder, [(1 << level) - 1 for level in before])
    install(decoder[0], make_decoder(new, 1.0)[0])
    _, second = decoded(decoder, [(1 << level) - 1 for level in after])
    return first.tolist(), second.tolist()


def test_an_event_at_another_place_does_not_happen_because_of_a_swap() -> None:
    watched = {"output": 0, "above": 3.0}
    old, new = counting(watched, {"channel": 15}), counting({"channel": 15}, watched)
    assert events_around_a_swap(old, new, [0, 5, 5], [5, 5, 0, 5]) == ([0, 1, 0], [0, 0, 0, 2])


def test_an_event_that_is_new_does_not_happen_because_of_a_swap() -> None:
    new = counting({"output": 0, "above": 3.0})
    assert events_around_a_swap(counting(), new, [5, 5], [5, 5, 0, 5]) == ([0, 0], [0, 0, 0, 1])
    assert events_around_a_swap(counting(), new, [0, 0], [5, 5, 0, 5]) == ([0, 0], [1, 0, 0, 1])


def test_a_threshold_that_sinks_below_its_output_by_a_swap_is_no_edge() -> None:
    old, new = counting({"output": 0, "above": 6.0}), counting({"output": 0, "above": 3.0})
    assert events_around_a_swap(old, new, [5, 5], [5, 5, 0, 5]) == ([0, 0], [0, 0, 0, 1])


@pytest.mark.parametrize("watched", [{"channel": 4}, {"output": 0, "above": 3.0}])
def test_an_event_at_another_place_begins_with_its_full_refractory_period(watched: dict[str, Any]) -> None:
    event = watched | {"refractory_ms": 3.0}
    old, new = counting(event, {"channel": 15}), counting({"channel": 15}, event)
    assert events_around_a_swap(old, new, [0, 5, 0], [5, 0, 5, 0, 5]) == ([0, 1, 0], [0, 0, 2, 0, 0])


def test_an_event_at_the_same_place_keeps_what_is_left_of_its_refractory_period() -> None:
    event = counting({"channel": 4, "refractory_ms": 3.0})
    assert events_around_a_swap(event, event, [0, 5, 0], [5, 5, 5]) == ([0, 1, 0], [0, 1, 0])


@pytest.mark.parametrize("seed", range(4))
def test_swaps_go_as_those_of_the_naive_twin(seed: int) -> None:
    """Every kind after every other, with events in changing places: outputs, events and running state are equal."""
    rng = np.random.default_rng(seed)
    makers = list(EVERY_KIND.values())
    possible = [{"output": 0, "above": 0.1, "refractory_ms": 4.0}, {"output": 0, "above": 1.0, "below": 0.5}]
    possible += [{"channel": 3, "refractory_ms": 20.0}, {"channel": 4}]
    decoder = make_decoder(makers[0](), 1.0)
    twin = NaiveDecoder(decoder[0])
    seen = 0
    for k in range(30):
        made = makers[rng.integers(len(makers))]()
        places = rng.permutation(len(possible))[: rng.integers(len(possible) + 1)]
        made = type(made).model_validate(made.model_dump() | {"events": [possible[i] for i in places]})
        other = make_decoder(made, 1.0)
        install(decoder[0], other[0])
        twin.install(NaiveDecoder(other[0]))
        masks = random_masks(int(rng.integers(1, 30)), seed=100 * seed + k, p=0.3)
        outputs, events = decoded(decoder, masks)
        expected = [twin.decode(int(mask)) for mask in masks]
        assert outputs.tobytes() == np.array([row for row, _ in expected], np.float32).tobytes()
        assert events.tolist() == [bits for _, bits in expected]
        for name in RUNNING:
            assert decoder[0][name].tolist() == getattr(twin, name), name
        seen += int(np.count_nonzero(events))
    assert seen > 20, "events that never happen compare nothing"


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_swap_takes_over_every_parameter_and_leaves_the_other_as_it_was(kind: str) -> None:
    for old in (None, linear(), kalman()):
        decoder, other = make_decoder(old, 1.0, version=3), make_decoder(EVERY_KIND[kind](), 1.0, version=4)
        before = other.tobytes()
        install(decoder[0], other[0])
        for name in PARAMETERS:
            assert decoder[0][name].tobytes() == other[0][name].tobytes(), name
        assert other.tobytes() == before


def test_a_swap_and_back_is_a_rollback() -> None:
    masks = random_masks(300)
    old, new = make_decoder(linear(), 1.0, version=1), make_decoder(linear(seed=5), 1.0, version=2)
    decoder = make_decoder(linear(), 1.0, version=1)
    undisturbed, _ = decoded(old, masks)
    decoded(decoder, masks[:100])
    install(decoder[0], new[0])
    decoded(decoder, masks[100:200])
    install(decoder[0], make_decoder(linear(), 1.0, version=1)[0])
    outputs, _ = decoded(decoder, masks[200:])
    assert decoder[0]["version"] == 1
    assert outputs[5:].tobytes() == undisturbed[205:].tobytes()


# making


def test_what_is_derived_from_a_kalman_configuration_is_what_numpy_finds() -> None:
    settings_ = kalman(n=5, m=12)
    record = make_decoder(settings_, 1.0)[0]
    c, q = np.array(settings_.observation), np.array(settings_.observation_noise)
    projection = np.linalg.solve(q, c).T
    # a dozen rows and a condition below 1e3: some 1e-12
    np.testing.assert_allclose(record["projection"][:5, :12], projection, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(record["information"][:5, :5], projection @ c, rtol=1e-10, atol=1e-12)
    root = record["root"][:5, :5]
    np.testing.assert_allclose(root @ root.T, projection @ c, rtol=1e-10, atol=1e-12)


def test_the_factor_of_a_singular_matrix_still_gives_the_matrix() -> None:
    half = np.random.default_rng(0).normal(size=(6, 2))
    matrix = half @ half.T
    lower = np.array(lower_factor(matrix.tolist()))
    np.testing.assert_allclose(lower @ lower.T, matrix, atol=1e-12 * np.abs(matrix).max())


def test_bins_that_are_no_whole_number_of_ticks_are_refused_with_one_that_is() -> None:
    with pytest.raises(ConfigError, match=r"bin_ms = 5 is no whole number of ticks of 0\.98 ms; 4\.9 would be"):
        make_decoder(linear(), 0.98)


def test_every_kind_has_the_number_of_its_name() -> None:
    for make in EVERY_KIND.values():
        settings_ = make()
        assert KINDS[make_decoder(settings_, 1.0)[0]["kind"]] == settings_.kind


def test_a_record_holds_nothing_but_numbers_of_eight_and_four_bytes() -> None:
    assert not DECODER.hasobject
    assert all(DECODER[name].base.kind in "iuf" for name in DECODER.names or ())


# allocation


@pytest.mark.skipif(not JIT_ENABLED, reason="the interpreter allocates whatever it does")
def test_decoding_compiles_without_a_memory_manager() -> None:
    """`_nrt=False` refuses to compile whatever would allocate; and one signature means one compilation."""
    for make in EVERY_KIND.values():
        decoder = make_decoder(make(), 1.0)
        decode(decoder[0], np.uint32(1), np.zeros(8, np.float32))
        install(decoder[0], make_decoder(None, 1.0)[0])
    kernels: tuple[Any, ...] = (decode, install, reset)
    assert all(len(kernel.signatures) == 1 for kernel in kernels)
    assert decode.targetoptions["_nrt"] is False  # type: ignore[attr-defined]

    def allocating(n: int) -> Any:
        return np.zeros(n)

    with pytest.raises(numba.core.errors.NumbaError):
        numba.njit(_nrt=False)(allocating)(3)


def test_weights_of_one_lag_may_be_flat() -> None:
    flat = LinearConfig.model_validate({"weights": [[1.0] * 16, [2.0] * 16]})
    assert flat == LinearConfig.model_validate({"weights": [[[1.0] * 16], [[2.0] * 16]]})


if __name__ == "__main__":
    print(digest())
