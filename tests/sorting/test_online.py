"""The online sorter, on signals whose spikes are known: both engines behind one contract."""

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from naive.sorted_signals import FREQUENCY, N_CHANNELS, NAMES, Known, bundle_of, known
from neuromod.engine.compiled import jit_apart
from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import Bundle, ChainConfig
from neuromod.sorting.chain import END, filtered, make_chain, whitened
from neuromod.sorting.events import MATCHED, N_EVENTS
from neuromod.sorting.online import Sorter, SorterState, set_clean, take_sample

EVENT = np.dtype(
    [("sample", np.int64), ("unit", np.int64), ("amplitude", float), ("residual", float), ("told", np.int64)]
)


class Case(NamedTuple):
    """A bundle, estimated from one signal, and another signal to sort."""

    bundle: Bundle
    truth: Known


@pytest.fixture(scope="module", params=["sparse", "dense"])
def case(request: pytest.FixtureRequest) -> Case:
    pitch_um = {"sparse": 400.0, "dense": 20.0}[request.param]
    bundle = bundle_of(known(20.0, 1, pitch_um), pitch_um)
    assert bundle.info.engine == request.param  # by geometry
    return Case(bundle, known(6.0, 2, pitch_um))


@jit_apart
def _feed(sorter: SorterState, signal: NDArray[np.float32], x: NDArray[np.float64], out: NDArray[np.float64]) -> int:
    events = sorter.events
    n = 0
    for i in range(signal.shape[0]):
        for c in range(signal.shape[1]):
            x[c] = signal[i, c]
        take_sample(sorter, x)
        for k in range(events.counters[N_EVENTS]):
            row = events.rows[k]
            out[n, 0] = row["sample"]
            out[n, 1] = row["unit"]
            out[n, 2] = row["amplitude"]
            out[n, 3] = row["residual"]
            out[n, 4] = i
            n += 1
        events.counters[N_EVENTS] = 0
    return n


def sort(sorter: Sorter, signal: NDArray[np.float32]) -> NDArray[np.void]:
    """All events of a signal, fed sample by sample; `told` is the sample at which each was told."""
    out = np.zeros((20_000, 5))
    n = _feed(sorter.state, signal, np.zeros(sorter.state.chain.y.shape[0]), out)
    found = np.zeros(n, EVENT)
    for k, name in enumerate(EVENT.names or ()):
        found[name] = out[:n, k]
    return found


def agreement(truth: Known, events: NDArray[np.void]) -> tuple[float, float]:
    """Share of true spikes found, and of events that are true, within 0.3 ms of one another by the same unit."""
    hits = 0
    for unit in np.unique(truth.units):
        true = truth.samples[truth.units == unit]
        got = np.sort(events["sample"][events["unit"] == unit])
        nearest = np.searchsorted(true, got)
        near = np.minimum(
            np.abs(got - true[np.clip(nearest, 0, len(true) - 1)]),
            np.abs(got - true[np.clip(nearest - 1, 0, len(true) - 1)]),
        )
        hits += int((near <= 9).sum())
    return hits / len(truth.samples), hits / max(1, len(events))


def test_known_spikes_are_found_with_their_units_and_little_else(case: Case) -> None:
    events = sort(Sorter(case.bundle), case.truth.signal)

    recall, precision = agreement(case.truth, events)

    assert recall > 0.95
    assert precision > 0.95
    assert abs(np.median(events["amplitude"]) - 1.0) < 0.05
    assert 0.8 < np.median(events["residual"]) < 1.3


def test_every_event_comes_within_two_and_a_half_milliseconds_of_its_trough_with_a_chunk_of_one(case: Case) -> None:
    events = sort(Sorter(case.bundle), case.truth.signal)

    # what comes sample by sample waits for the end of its chunk of 30
    delivered = -(-(events["told"] + 1) // 30) * 30
    delay_ms = (delivered - events["sample"]) / 30.0

    assert np.percentile(delay_ms, 99) <= 2.5
    assert delay_ms.min() > 1.0  # whole templates were seen


def test_a_sorter_restored_from_what_changes_goes_on_bit_for_bit(case: Case) -> None:
    half = len(case.truth.signal) // 2 + 7
    one, other = Sorter(case.bundle), Sorter(case.bundle)
    sort(one, case.truth.signal[:half])

    for mine, theirs in zip(other.changing(), one.changing(), strict=True):
        mine[...] = theirs
    rest = case.truth.signal[half:]

    a, b = sort(one, rest), sort(other, rest)
    assert len(a) > 100
    assert a.tobytes() == b.tobytes()


def test_a_reset_sorter_is_a_new_one(case: Case) -> None:
    sorter = Sorter(case.bundle)
    first = sort(sorter, case.truth.signal[:60_000])
    sorter.reset()

    assert sort(sorter, case.truth.signal[:60_000]).tobytes() == first.tobytes()


def test_blanked_channels_tell_of_no_spike(case: Case) -> None:
    sorter = Sorter(case.bundle)
    set_clean(sorter.state, np.zeros(sorter.state.chain.y.shape[0]))

    assert len(sort(sorter, case.truth.signal[:60_000])) == 0


def test_a_channel_that_stands_still_is_masked_and_taken_back_when_it_moves(case: Case) -> None:
    signal = case.truth.signal.copy()
    signal[30_000:100_000, 3] = 5.0
    sorter = Sorter(case.bundle)

    sort(sorter, signal[:100_000])
    assert sorter.masked == {"e3": "stuck"}
    sort(sorter, signal[100_000:])
    assert sorter.masked == {}


def test_a_channel_that_stays_noisy_is_tried_ever_more_seldom(case: Case) -> None:
    signal = np.tile(case.truth.signal[:30_000], (24, 1))
    signal[:, 3] = np.random.default_rng(0).normal(0.0, 200.0, len(signal)).astype(np.float32)
    sorter = Sorter(case.bundle)

    masked = []
    for second in range(0, len(signal), 30_000):
        sort(sorter, signal[second : second + 30_000])
        masked.append("e3" in sorter.masked)

    # one second to see it, two masked and one of trial, four and one, eight and one
    on_trial = [i for i, is_masked in enumerate(masked) if not is_masked]
    assert masked[0]
    assert np.diff(on_trial).tolist() == sorted(np.diff(on_trial).tolist())
    assert len(on_trial) <= 3
    quiet = np.tile(case.truth.signal[:30_000], (20, 1))
    sort(sorter, quiet)
    assert sorter.masked == {}


@pytest.mark.parametrize("tracking", [True, False])
def test_the_threshold_follows_the_noise_within_bounds_where_tracking_is_on(case: Case, tracking: bool) -> None:
    sorter = Sorter(case.bundle, tracking=tracking)
    quiet = np.tile(case.truth.signal[:300_000], (6, 1))  # spikes are part of what noise was measured from

    def noise_of(factor: float) -> float:
        sort(sorter, np.float32(factor) * quiet)
        return float(sorter.state.noise.mean())

    if not tracking:
        assert noise_of(1.4) == 1.0
        return
    assert noise_of(1.0) == pytest.approx(1.0, abs=0.03)
    assert noise_of(1.4) == pytest.approx(1.4, abs=0.1)  # exp(-60 / 20) of the way is left
    assert noise_of(1.0) == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(sorter.state.threshold, -4.5 * sorter.state.noise, rtol=1e-6)


def test_without_a_bundle_nothing_is_sorted() -> None:
    sorter = Sorter(None)
    take_sample(sorter.state, np.zeros(sorter.state.chain.y.shape[0]))

    assert sorter.unit_ids == ()
    assert sorter.state.events.counters[MATCHED] == 0


def test_templates_follow_a_unit_that_fades_only_where_tracking_is_on() -> None:
    bundle = bundle_of(known(20.0, 1, 400.0), 400.0)
    truth = known(20.0, 3, 400.0)
    fading = np.linspace(1.0, 0.6, len(truth.signal), dtype=np.float32)[:, np.newaxis]
    rng = np.random.default_rng(5)
    signal = truth.signal * fading + rng.normal(0.0, 8.0, truth.signal.shape).astype(np.float32) * np.sqrt(
        1 - fading**2
    )

    with_tracking, without = Sorter(bundle), Sorter(bundle, tracking=False)
    followed, lost = (agreement(truth, sort(sorter, signal))[0] for sorter in (with_tracking, without))

    assert followed > lost + 0.05
    assert np.all(with_tracking.state.sparse.gain < 0.85)
    assert np.all(without.state.sparse.gain == 1.0)
    with_tracking.reset()
    assert np.all(with_tracking.state.sparse.gain == 1.0)  # what was followed can be taken back


def test_the_chain_filters_and_whitens_as_scipy_and_a_matrix_product_do() -> None:
    signal = known(0.5, 4, 400.0).signal + 300.0  # an offset must not ring
    mixing = np.eye(N_CHANNELS, dtype=np.float32) + 0.2 * np.eye(N_CHANNELS, k=1, dtype=np.float32)
    config = ChainConfig(reference="mean")
    one, other = (make_chain(config, FREQUENCY, N_CHANNELS, None, mixing, window_samples=60) for _ in range(2))

    sos = butter(2, [300.0, 6000.0], "bandpass", fs=FREQUENCY, output="sos")
    expected = sosfilt(sos, signal - signal[0].astype(np.float64), axis=0)
    expected = (expected - expected.mean(axis=1, keepdims=True)) @ mixing.T
    got = whitened(one, signal)

    assert np.allclose(got, expected, atol=2e-3)  # float32 of some 100 uV
    parts = np.concatenate([filtered(other, signal[:17]), filtered(other, signal[17:])])
    assert parts.tobytes() == filtered(make_chain(config, FREQUENCY, N_CHANNELS), signal).tobytes()
    assert np.array_equal(other.window[:, other.counters[END] - 60 : other.counters[END]].T, got[-60:])


def test_a_stream_of_another_width_or_rate_is_refused(case: Case) -> None:
    with pytest.raises(ConfigError, match="8 channels, the stream has 4"):
        case.bundle.check_stream(FREQUENCY, NAMES[:4])
    with pytest.raises(ConfigError, match="30000 Hz, the stream has 24000 Hz"):
        case.bundle.check_stream(24_000.0, NAMES)
    with pytest.raises(ConfigError, match="another order"):
        case.bundle.check_stream(FREQUENCY, NAMES[::-1])
