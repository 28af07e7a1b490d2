"""Which channels of a recording are worth sorting, and whether the recording is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.signal
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.noise import MAD_OF_UNIT_NOISE
from neuromod.sorting.sort_config import ChannelsConfig
from neuromod.sorting.templates import Reader

_STRETCHES, _STRETCH_S, _SETTLE_S = 12, 0.25, 0.05  # in memory at once
_LOW_HZ, _HIGH_HZ = 300.0, 6000.0
_ARTEFACT_NOISE = 10.0
_ARTEFACT_SHARE = 0.2
_HIGHEST_NOISE_UV = 500.0


def check_channels(
    read: Reader,
    n_samples: int,
    sampling_frequency: float,
    channel_names: Sequence[str],
    config: ChannelsConfig,
    *,
    in_uv: bool = True,
) -> dict[str, str]:
    """Find channels that are not worth sorting, from stretches spread over a recording.

    Parameters
    ----------
    read : callable
        ``read(begin, end)`` gives samples of all channels.
    n_samples : int
        Length of the recording.
    sampling_frequency : float
        In Hz.
    channel_names : sequence of str
        All channels.
    config : ChannelsConfig
        Limits.
    in_uv : bool
        Whether samples are in microvolt.

    Returns
    -------
    dict of str to str
        Channels to leave out, and why.

    Raises
    ------
    ConfigError
        A channel to be excluded is not there; or nothing is left: the recording is silent, railed or all artefact.
    """
    unknown = [name for name in config.exclude if name not in channel_names]
    if unknown:
        raise ConfigError(f"channels.exclude names {', '.join(unknown)}, which the recording does not have")
    length = min(n_samples, round((_STRETCH_S + _SETTLE_S) * sampling_frequency))
    begins = np.unique(np.linspace(0, n_samples - length, _STRETCHES).astype(np.int64))
    raw = np.stack([read(int(begin), int(begin) + length) for begin in begins])  # (stretches, samples, channels)
    if not np.all(np.isfinite(raw)):
        raise ConfigError("the recording holds samples that are not finite; mend or cut it")
    top = min(_HIGH_HZ, 0.45 * sampling_frequency)
    sos = scipy.signal.butter(2, (_LOW_HZ, top), "bandpass", fs=sampling_frequency, output="sos")
    low, high = raw.min(axis=(0, 1)), raw.max(axis=(0, 1))
    railed = ((raw == low) | (raw == high)).mean(axis=(0, 1)) > config.railed_share
    settle = min(length // 2, round(_SETTLE_S * sampling_frequency))
    y = scipy.signal.sosfilt(sos, raw - raw[:, :1], axis=1)[:, settle:]
    noise = np.median(np.abs(y), axis=(0, 1)) / MAD_OF_UNIT_NOISE

    silent = (low == high) | (noise == 0.0)
    fine = ~(railed | silent)
    usual = float(np.median(noise[fine])) if fine.any() else 0.0
    excluded: dict[str, str] = {}
    for c, name in enumerate(channel_names):
        if name in config.exclude:
            excluded[name] = "excluded by the parameters"
        elif low[c] == high[c]:
            excluded[name] = "dead: it never changes"
        elif railed[c]:
            excluded[name] = "railed: it keeps returning to its own extremes"
        elif silent[c] or noise[c] < config.dead_below * usual:
            excluded[name] = f"dead: noise of {noise[c]:.3g}, the median channel has {usual:.3g}"
        elif noise[c] > config.noisy_above * usual:
            excluded[name] = f"noisy: noise of {noise[c]:.3g}, the median channel has {usual:.3g}"
    left = np.array([name not in excluded for name in channel_names])
    if not left.any():
        kinds: dict[str, int] = {}
        for reason in excluded.values():
            word = reason.partition(":")[0]
            kinds[word] = kinds.get(word, 0) + 1
        listing = ", ".join(f"{n} {word}" for word, n in kinds.items())
        raise ConfigError(
            f"no channel of the recording is worth sorting ({listing}); it is silent or saturated: check cables, gain "
            "and the file"
        )
    _check_artefacts(y[..., left], noise[left], sampling_frequency, in_uv=in_uv)
    return excluded


def _check_artefacts(y: NDArray[Any], noise: NDArray[Any], sampling_frequency: float, *, in_uv: bool) -> None:
    """Refuse a recording in which artefacts are the rule."""
    usual = float(np.median(noise))
    if in_uv and usual > _HIGHEST_NOISE_UV:
        raise ConfigError(
            f"the recording is all artefact: the median channel has a noise of {usual:.0f} uV between 300 and 6000 Hz, "
            "where a brain and its electrodes have some 5 to 30; check grounding and the gain that the file states"
        )
    block = max(1, round(1e-3 * sampling_frequency))
    n = y.shape[1] // block
    peaks = np.abs(y[:, : n * block]).reshape(len(y), n, block, -1).max(axis=2)
    together = (peaks > _ARTEFACT_NOISE * noise).mean(axis=2) > 0.5
    if y.shape[2] > 1 and (share := float(together.mean())) > _ARTEFACT_SHARE:
        raise ConfigError(
            f"the recording is mostly artefact: in {100 * share:.0f} % of its milliseconds more than half of the "
            f"channels exceed {_ARTEFACT_NOISE:g} times their noise together; sort a stretch without stimulation"
        )
