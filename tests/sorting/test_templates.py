"""Templates are what the loop's own chain makes of a unit's spikes, whatever else fires with it."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting import templates
from neuromod.sorting.bundle import Bundle, ChainConfig
from neuromod.sorting.chain import filtered, make_chain
from neuromod.sorting.templates import engine_for, estimate

FREQUENCY = 8_000.0
N = 24_000
N_CHANNELS = 4
POSITIONS = np.array([[0.0, 0.0], [0.0, 30.0], [0.0, 60.0], [0.0, 1000.0]])
NOISE_UV = 5.0
CONFIG = ChainConfig(reference="none", high_hz=3000.0)
GAINS = np.array([[1.0, 0.5, 0.1, 0.0], [0.2, 0.6, 1.2, 0.0]])
"""What each unit reaches: the first channels and not the last, which is 1 mm away."""


def waveform() -> NDArray[np.float64]:
    t = np.arange(24)
    return -80.0 * np.exp(-(((t - 6) / 1.2) ** 2)) + 25.0 * np.exp(-(((t - 12) / 3.0) ** 2))


def as_filtered(unit: int) -> NDArray[np.float64]:
    """What the chain makes of one spike of a unit, from its first sample on."""
    alone = np.zeros((80, N_CHANNELS), np.float32)
    alone[10:34] = waveform()[:, np.newaxis] * GAINS[unit]
    return filtered(make_chain(CONFIG, FREQUENCY, N_CHANNELS), alone)[10:].astype(np.float64)


class Made:
    """Two units, the second one time in three 5 samples after the first, in noise that three channels share in part."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        mix = np.eye(N_CHANNELS)
        mix[:3, :3] += 0.4
        self.signal = (rng.standard_normal((N, N_CHANNELS)) @ mix * NOISE_UV).astype(np.float32)
        first = np.arange(100, N - 200, 240)
        first += rng.integers(0, 20, len(first))
        second = first + np.where(np.arange(len(first)) % 3 == 0, 5, 120)
        self.samples = np.concatenate([first, second])
        self.units = np.repeat([0, 1], [len(first), len(second)])
        for begin, unit in zip(self.samples, self.units, strict=True):
            self.signal[begin : begin + 24] += waveform()[:, np.newaxis] * GAINS[unit]

    def estimate(self, times_off: int = 0, **others: Any) -> Bundle:
        given: dict[str, Any] = {
            "unit_ids": ["a", "b"],
            "name": "made",
            "sampling_frequency": FREQUENCY,
            "channel_names": ["w", "x", "y", "z"],
            "positions_um": POSITIONS,
            "config": CONFIG,
        } | others
        # the times are those of the troughs before the filter
        return estimate(lambda a, b: self.signal[a:b], N, self.samples + 6 + times_off, self.units, **given)


@pytest.fixture(scope="module")
def made() -> Made:
    return Made(seed=1)


@pytest.fixture(scope="module")
def bundle(made: Made) -> Bundle:
    return made.estimate()


def test_a_template_is_what_the_chain_makes_of_a_spike_alone(bundle: Bundle) -> None:
    for unit in range(2):
        expected = as_filtered(unit)
        trough = int(expected.min(axis=1).argmin())
        begin = trough - bundle.info.n_before
        length = bundle.templates.shape[1]
        head = np.zeros((max(-begin, 0), N_CHANNELS))
        expected = np.concatenate([head, expected[max(begin, 0) :]])[:length]
        found = bundle.templates_uv[unit]
        kept = np.any(found != 0.0, axis=0)
        # the mean of 99 spikes in noise of 5 to 7 uV: 0.6 uV, of 14 x 3 samples the largest within 4 of that; the
        # mean that it began with is off by 15 uV and more
        assert np.abs(found - expected)[:, kept].max() < 2.5


def test_templates_are_whitened_as_the_loop_whitens(bundle: Bundle) -> None:
    # where a template has all of its channels, whitening it afterwards is whitening every spike
    full = bundle.templates_uv[0] @ bundle.whitening.T
    kept = np.any(bundle.templates[0] != 0.0, axis=0)
    assert kept[0]
    assert np.abs(bundle.templates[0][:, 0] - full[:, 0]).max() < 0.05 * np.abs(full).max()


def test_the_trough_is_where_the_bundle_says_though_given_times_are_off(made: Made) -> None:
    moved = made.estimate(times_off=3)
    assert moved.templates.min(axis=2).argmin(axis=1).tolist() == [moved.info.n_before] * 2


def test_whitened_noise_is_of_unit_size_and_shared_no_more(made: Made, bundle: Bundle) -> None:
    rng = np.random.default_rng(2)
    mix = np.eye(N_CHANNELS)
    mix[:3, :3] += 0.4
    noise = (rng.standard_normal((N, N_CHANNELS)) @ mix * NOISE_UV).astype(np.float32)
    y = filtered(make_chain(CONFIG, FREQUENCY, N_CHANNELS), noise)[400:]

    z = y @ bundle.whitening.T

    # an eighth of the made recording is spikes, which its noise is measured among: some % above what it is without
    assert np.all((z.std(axis=0) > 0.9) & (z.std(axis=0) < 1.05))
    before, after = (np.abs(np.corrcoef(signal[:, :3].T) - np.eye(3)).max() for signal in (y, z))
    assert after < 0.5 * before


def test_templates_stop_where_a_unit_does_not_reach(bundle: Bundle) -> None:
    assert not np.any(bundle.templates[:, :, 3])
    assert np.any(bundle.templates[0, :, 0])
    assert [unit.channel for unit in bundle.info.units] == ["w", "y"]
    a, b = bundle.info.units
    assert a.position_um[1] < 20.0 < 40.0 < b.position_um[1]
    assert -60.0 < a.peak_uv < -40.0  # 80 uV before the filter, which is as wide as the trough


def test_excluded_channels_and_units_that_never_fire_have_no_part(made: Made) -> None:
    without = made.estimate(excluded={"x": "dead"}, unit_ids=["a", "b", "never"])

    assert without.noise[1] == 0.0
    assert np.all(without.noise[[0, 2, 3]] > 0.0)
    for array in (without.whitening[1], without.whitening[:, 1], without.templates[:, :, 1], without.templates[2]):
        assert not np.any(array)
    assert without.info.units[2].n_spikes == 0


def test_how_the_recording_is_cut_changes_nothing_and_progress_ends_at_one(
    made: Made, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "_CHUNK_S", 0.37)
    said: list[float] = []
    other = made.estimate(progress=said.append)
    assert said == sorted(said)
    assert said[-1] == 1.0
    # sums in another order: rounding of float32 signals of 80 uV
    np.testing.assert_allclose(other.templates_uv, bundle.templates_uv, atol=1e-4)


@pytest.mark.parametrize(
    "positions_um, engine",
    [
        (np.array([[0.0, 0.0], [400.0, 0.0], [0.0, 400.0]]), "sparse"),
        (np.array([[0.0, 0.0], [25.0, 0.0], [0.0, 25.0], [25.0, 25.0]]), "dense"),
        (np.array([[0.0, 0.0]]), "sparse"),
    ],
)
def test_the_engine_follows_the_geometry(positions_um: NDArray[np.float64], engine: str) -> None:
    assert engine_for(positions_um) == engine


def test_what_cannot_be_sorted_is_told(made: Made) -> None:
    def refused(match: str, signal: NDArray[np.float32] = made.signal, n: int = N, **others: Any) -> None:
        given: dict[str, Any] = {"samples": made.samples, "units": made.units, "positions": POSITIONS} | others
        with pytest.raises(ConfigError, match=match):
            estimate(
                lambda a, b: signal[a:b], n, given["samples"], given["units"], unit_ids=["a", "b"], name="made",
                sampling_frequency=FREQUENCY, channel_names=["w", "x", "y", "z"], positions_um=given["positions"],
            )  # fmt: skip

    refused("at least 1 s expected", n=400)
    refused("silent on every channel", signal=np.zeros_like(made.signal))
    refused("a probe of them expected", positions=POSITIONS[:3])
    refused("one unit a spike", units=made.units[1:])
    refused("0 to 1 expected", units=made.units + 1)
    refused("came as", signal=made.signal[:, :3])
