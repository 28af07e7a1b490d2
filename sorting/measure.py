"""Measuring a baseline: the session's own compiled chain, run over a timed stretch of its stream."""

import datetime
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError
from neuromod.sorting.baseline import Baseline, front_end_hash
from neuromod.sorting.config import EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd, default_names, finish_block, push


class BaselineEstimator:
    """Takes samples (or feature vectors) until it has seen `duration_s` of them, then gives the baseline.

    The first half of the time measures noise, exclusions and thresholds, the second half mean and deviation of the
    features; without a front end all of it goes to the features.

    Parameters
    ----------
    front_end : FrontEndConfig or None
        None for a stream of features.
    encoder : EncoderConfig
        Of the session: its smoothing comes before the normalisation.
    n_channels : int
        Channels of a sample, or length of a feature vector.
    sampling_frequency : float
        Samples, or feature vectors, per second.
    channel_names : sequence of str, optional
        Default ``ch1``, ``ch2``, ...
    duration_s : float
        Stream time to measure.
    block_ms : float
        As in the session; for features it is one vector whatever is given.
    stream_name : str
        For the file's name and its reader.
    """

    def __init__(
        self,
        front_end: FrontEndConfig | None,
        encoder: EncoderConfig,
        n_channels: int,
        sampling_frequency: float,
        channel_names: Sequence[str] | None = None,
        *,
        duration_s: float = 60.0,
        block_ms: float = 1.0,
        stream_name: str = "stream",
    ) -> None:
        if not (math.isfinite(duration_s) and duration_s > 0):
            raise ConfigError(f"a baseline of {duration_s} s; a positive duration expected")
        self._names = tuple(channel_names) if channel_names is not None else default_names(n_channels)
        self._config = front_end
        self._stream_name = stream_name
        self._sampling_frequency = float(sampling_frequency)
        self._duration_s = duration_s
        self._target = max(4, round(duration_s * sampling_frequency))
        self._seen = 0
        self._blocks = 0
        self._front_end: FrontEnd | None = None
        if front_end is None:
            self._block_ms = 1000.0 / sampling_frequency
            feature_names: Sequence[str] = self._names
        else:
            self._block_ms = max(block_ms, 1000.0 / sampling_frequency)
            timed = front_end.model_copy(update={"warmup_s": duration_s / 2})
            self._front_end = FrontEnd(timed, n_channels, sampling_frequency, self._names)
            feature_names = self._front_end.feature_names
        # the mean and deviation are read from the warm-up of an encoder that never ends it
        settings = EncoderConfig(smoothing_ms=encoder.smoothing_ms, warmup_s=3600.0)
        self._encoder = Encoder(settings, len(feature_names), feature_names, block_ms=self._block_ms)
        self._features = np.zeros(len(feature_names), dtype=np.float32)
        self._stimuli = np.zeros(16, dtype=np.float32)

    @property
    def is_done(self) -> bool:
        """Whether enough was seen."""
        return self._seen >= self._target

    @property
    def seen_s(self) -> float:
        """Stream time taken in so far, in seconds."""
        return self._seen / self._sampling_frequency

    def push(self, samples: NDArray[np.float32]) -> None:
        """Take in samples of shape (n, n_channels), finite; those beyond the duration are left aside."""
        if samples.ndim != 2 or samples.shape[1] != len(self._names):
            raise ConfigError(f"samples of shape {samples.shape}; (n, {len(self._names)}) expected")
        samples = np.ascontiguousarray(samples[: self._target - self._seen], dtype=np.float32)
        if not np.all(np.isfinite(samples)):
            raise ConfigError("the baseline met samples that are not finite; replace or leave them out first")
        if self._front_end is None:
            for vector in samples:
                encode(self._encoder.state, vector, self._stimuli)
            self._seen += samples.shape[0]
            return
        start = 0
        while start < samples.shape[0]:
            stop = min(samples.shape[0], start + self._block_end() - self._seen)
            push(self._front_end.state, samples[start:stop])
            self._seen += stop - start
            start = stop
            if self._seen == self._block_end():
                finish_block(self._front_end.state, self._features)
                encode(self._encoder.state, self._features, self._stimuli)
                self._blocks += 1

    def result(self) -> Baseline:
        """The baseline.

        Raises
        ------
        ConfigError
            The stream ended before `duration_s`, or has no channel that could be used.
        """
        if not self.is_done:
            raise ConfigError(
                f"the stream gave {self.seen_s:.3g} s of the {self._duration_s:g} s of baseline asked for; "
                "give a shorter duration or a longer recording"
            )
        mean, sd = self._encoder.normalisation
        front_end = self._front_end
        excluded = front_end.excluded if front_end is not None else {}
        if len(excluded) == len(self._names):
            raise ConfigError(
                "every channel is dead, noisy or excluded in this baseline; check the amplifier, the reference and the "
                f"units of the stream ({', '.join(f'{name}: {why}' for name, why in list(excluded.items())[:4])}, ...)"
            )
        threshold = front_end.threshold if front_end is not None else np.full(len(self._names), -np.inf)
        noise = front_end.noise if front_end is not None else {}
        return Baseline(
            measured_at=datetime.datetime.now().astimezone(),
            stream_name=self._stream_name,
            sampling_frequency=self._sampling_frequency,
            channel_names=self._names,
            duration_s=self.seen_s,
            block_ms=self._block_ms,
            smoothing_ms=self._encoder.config.smoothing_ms,
            front_end=self._config,
            front_end_hash=front_end_hash(self._config),
            excluded=excluded,
            noise={name: tuple(values.tolist()) for name, values in noise.items()},
            threshold_uv=tuple(value if math.isfinite(value) else None for value in threshold.tolist()),
            feature_names=self._encoder.feature_names,
            mean=tuple(mean.tolist()),
            sd=tuple(sd.tolist()),
        )

    def _block_end(self) -> int:
        """Number of samples at which the current block ends."""
        return max(
            self._blocks + 1, math.floor((self._blocks + 1) * self._block_ms * 1e-3 * self._sampling_frequency + 1e-9)
        )


def measure_baseline(
    front_end: FrontEndConfig | None,
    encoder: EncoderConfig,
    samples: Iterable[NDArray[np.float32]],
    sampling_frequency: float,
    channel_names: Sequence[str],
    *,
    duration_s: float = 60.0,
    block_ms: float = 1.0,
    stream_name: str = "stream",
) -> Baseline:
    """Measure a baseline over chunks of samples; parameters as of `BaselineEstimator`."""
    estimator = BaselineEstimator(
        front_end,
        encoder,
        len(channel_names),
        sampling_frequency,
        channel_names,
        duration_s=duration_s,
        block_ms=block_ms,
        stream_name=stream_name,
    )
    for chunk in samples:
        estimator.push(chunk)
        if estimator.is_done:
            break
    return estimator.result()
