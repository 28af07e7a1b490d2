"""What a user may choose between samples and stimuli, with units in the names and the reasons for the defaults."""

from pathlib import Path
from typing import Annotated, Literal, Self

import pydantic
from pydantic import Field

FeatureKind = Literal["crossings", "units", "spiking_band", "bands", "raw"]
ReferenceKind = Literal["none", "mean", "median", "clipped-mean"]

PositiveHz = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveMs = Annotated[float, Field(gt=0, le=60_000, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Centre = Annotated[float, Field(ge=-1e38, le=1e38)]
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]
Order = Annotated[int, Field(ge=1, le=4)]


class _Band(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A pass band; order-2 Butterworth is what cost sorting accuracy least among causal filters."""

    low_hz: PositiveHz
    high_hz: PositiveHz
    order: Order = 2

    @pydantic.model_validator(mode="after")
    def _ascending(self) -> Self:
        if not self.low_hz < self.high_hz:
            raise ValueError(f"low_hz = {self.low_hz:g} must lie below high_hz = {self.high_hz:g}")
        return self


class CrossingsConfig(_Band, frozen=True, extra="forbid"):
    """Negative threshold crossings, counted per channel and block."""

    low_hz: PositiveHz = 300.0
    high_hz: PositiveHz = 6000.0
    threshold_noise: Annotated[float, Field(lt=0, ge=-100)] = -4.5
    """Threshold as a multiple of the channel's robust noise, MAD / 0.6745."""
    threshold_uv: Annotated[float, Field(lt=0, allow_inf_nan=False)] | None = None
    """The same absolute threshold for all channels, in units of the stream; replaces `threshold_noise`."""
    dead_time_ms: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Least time between two crossings of a channel."""


class SpikingBandConfig(_Band, frozen=True, extra="forbid"):
    """Spiking-band power: mean square of 300 to 1000 Hz, smoothed."""

    low_hz: PositiveHz = 300.0
    high_hz: PositiveHz = 1000.0
    window_ms: Annotated[float, Field(ge=0, le=60_000)] = 20.0
    """Time constant of the exponential that smooths the block means; 0 leaves them as they are."""
    log: bool = False
    """Give 10 log10(power) instead of power."""


class BandsConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Power of LFP, ECoG or EEG bands, each smoothed."""

    ranges_hz: Annotated[tuple[tuple[PositiveHz, PositiveHz], ...], Field(min_length=1, max_length=32)] = (
        (4.0, 8.0),
        (8.0, 13.0),
        (13.0, 30.0),
        (30.0, 70.0),
    )
    order: Order = 2
    reference: ReferenceKind = "none"
    """Own reference: a common reference takes away the widespread part of a slow field, which may be what is wanted."""
    window_ms: Annotated[float, Field(ge=0, le=60_000)] = 200.0
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ascending(self) -> Self:
        for low_hz, high_hz in self.ranges_hz:
            if not low_hz < high_hz:
                raise ValueError(f"ranges_hz has [{low_hz:g}, {high_hz:g}]: the first must lie below the second")
        return self


class UnitsConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Spikes of sorted units, counted per unit and block: the mode in which the loop sorts."""

    bundle: Path | None = None
    """Folder that `neuromod sort` wrote. Named here, and nothing said under `features`, units are what is computed."""
    engine: Literal["auto", "sparse", "dense"] = "auto"
    """sparse: for arrays whose neighbours hardly see the same units; dense: for probes; auto: as the sorting says."""
    tracking: bool = True
    """Templates and noise follow slow change, within bounds. Switch it off where runs are to be compared, as in HIL."""


class FrontEndConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """From samples to one vector of features per block."""

    features: Annotated[tuple[FeatureKind, ...], Field(min_length=1)] | Literal["auto"] = "auto"
    """Any of crossings, spiking_band, bands, raw (mean of the block's samples, unfiltered); per channel, in this order;
    and units, one feature per sorted unit, behind those of channels. auto: units where a sorting is named, else
    crossings where the stream is sampled fast enough for their band, else raw."""
    reference: ReferenceKind | Literal["auto"] = "auto"
    """Of crossings and spiking band, after their filter; auto: clipped-mean from 16 channels up, else none."""
    clip_noise: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Clipped mean: how far, in multiples of its noise, one channel may pull the reference."""
    exclude_channels: tuple[str | int, ...] = ()
    """Names, or numbers from 0, of channels that take no part; their features are 0."""
    dead_below: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """A channel is dead where its noise is below this multiple of the median noise."""
    noisy_above: Annotated[float, Field(gt=1)] = 8.0
    """A channel is noisy where its noise is above this multiple of the median noise."""
    saturation_uv: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Level of the amplifier's rails: a channel on them for over 1 % of the warm-up is excluded. None: not judged."""
    warmup_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """Without a baseline file: stream time over which noise is measured before the first features; then frozen."""
    crossings: CrossingsConfig = CrossingsConfig()
    units: UnitsConfig = UnitsConfig()
    spiking_band: SpikingBandConfig = SpikingBandConfig()
    bands: BandsConfig = BandsConfig()

    @pydantic.model_validator(mode="after")
    def _no_twins(self) -> Self:
        if self.features != "auto" and len(set(self.features)) != len(self.features):
            raise ValueError(f"features = {list(self.features)} names a kind twice")
        return self

    @pydantic.model_validator(mode="after")
    def _sorted(self) -> Self:
        wants_units = self.features != "auto" and "units" in self.features
        if wants_units and self.units.bundle is None:
            raise ValueError('features = ["units"] takes a sorting: name its folder as units.bundle')
        if self.features != "auto" and not wants_units and self.units.bundle is not None:
            raise ValueError(
                f'units.bundle names a sorting, but features = {list(self.features)} leaves units out: add "units", or '
                "drop units.bundle"
            )
        return self

    def kinds(self, sampling_frequency: float) -> tuple[FeatureKind, ...]:
        """Return the kinds of features on a stream of this rate, in Hz."""
        if self.features == "auto":
            if self.units.bundle is not None:
                return ("units",)
            return ("crossings",) if sampling_frequency > 2.0 * self.crossings.high_hz else ("raw",)
        return self.features


class BlankingConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What of the stream an electrode's stimulation pulse makes unusable, from before the pulse to after its end."""

    channels: tuple[str | int, ...] | Literal["all"] = "all"
    """Names, or numbers from 0, of channels that the artefact reaches; an empty list blanks nothing."""
    lead_us: Annotated[float, Field(ge=0, le=100_000)] = 500.0
    """Blanked before the nominal time of a pulse: the jitter of its delivery and the filters of the amplifier."""
    blank_us: Annotated[float, Field(ge=0, le=1_000_000)] = 1500.0
    """Blanked after the end of a pulse: until the amplifier has come back. Windows lie where a train sent at once
    falls: a stimulator that may begin it later, up to `stimulation.start_within_ms`, needs that much more here."""
    delay_us: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """From the sample that follows the tick of the decision to the artefact of a pulse sent at once, in stream time:
    delivery and acquisition together. Measure it with one pulse."""


class ElectrodeBlankingConfig(BlankingConfig, frozen=True, extra="forbid"):
    """The same for one electrode."""

    electrode: str | int
    """Its name, or number from 0."""


class ArtefactConfig(BlankingConfig, frozen=True, extra="forbid"):
    """Blanking of stimulation artefacts: windows for all electrodes, others for some.

    In its window a channel holds its last clean value, is left out of the common reference, counts no crossing, and
    adds nothing to power, mean or noise. The features of a block come from what was clean of it; of a block without a
    clean sample, power and raw stay as they were.
    """

    crossings: Literal["hold_rate", "zero"] = "hold_rate"
    """What a blanked sample adds to the count. hold_rate: the mean count of recent clean samples, so that a blank does
    not look like silence; counts are then no whole numbers. zero: nothing."""
    rate_window_ms: PositiveMs = 200.0
    """hold_rate: time constant of that mean, in clean time. 200 ms of 20 Hz hold the rate to 35 %, and follow it."""
    electrodes: Annotated[tuple[ElectrodeBlankingConfig, ...], Field(max_length=32)] = ()
    """Electrodes that differ; what such an entry leaves out is as by default, not as given above."""


class EncoderConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """From features to the 16 stimuli.

    In order: smooth each feature, normalise it, mix the features into stimuli, then
    ``clip(offset + gain * rectify(mixed))``. Stimuli that no feature reaches are 0.

    The defaults make any feature (counts, power, a stream of rates) a stimulus of 0.5 at rest that moves by 1 per
    standard deviation of its group and stays within 0 and 5, whatever the number of channels and the unit of the
    features. With the network's defaults (12 mV bias, 10 mV a unit, threshold at 15 mV) that is about 20 Hz a channel
    for a Utah array at rest, silence below, and over 100 Hz at the upper limit.
    """

    kind: Literal["identity", "groups", "matrix"] = "groups"
    """identity: feature i is stimulus i; groups: features pooled into the 14 sensory channels; matrix: from a file."""
    groups: Annotated[tuple[tuple[str | int, ...], ...], Field(max_length=16)] = ()
    """Names of channels or features, or feature numbers from 0, for stimulus 0, 1, ...; empty: 14 of neighbours."""
    combine: Literal["sum", "mean", "unit"] = "unit"
    """Pooling of a group of n: sum, sum / n, or sum / sqrt(n), which keeps unit variance whatever n is."""
    matrix_path: Path | None = None
    """.npy or .csv of shape (16, n_features), or (14, n_features) for the sensory channels alone."""
    smoothing_ms: Annotated[float, Field(ge=0, le=60_000)] = 30.0
    """Time constant of an exponential on each feature, before normalisation; 0 switches it off."""
    normalisation: Literal["none", "zscore", "scale"] = "zscore"
    """zscore: constants of the baseline or of the warm-up; scale: (feature - centre) / scale as given below."""
    warmup_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """zscore without a baseline: stream time over which mean and deviation are measured; stimuli are 0 until then."""
    limit_sd: Annotated[float, Field(gt=0)] = 5.0
    """zscore: each feature is kept within this many standard deviations, so that no single one rules a group."""
    centre: Centre | tuple[Centre, ...] = 0.0
    scale: Scale | tuple[Scale, ...] = 1.0
    gain: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    rectify: Literal["none", "half", "full"] = "none"
    offset: Finite = 0.5
    clip: tuple[Finite, Finite] = (0.0, 5.0)

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip = {list(self.clip)}: the first must lie below the second")
        if max(abs(limit) for limit in self.clip) > 3e38:
            raise ValueError(f"clip = {list(self.clip)} does not fit float32; stay within 3e38")
        if (self.kind == "matrix") != (self.matrix_path is not None):
            raise ValueError('matrix_path and kind = "matrix" go together: give both or neither')
        if self.groups and self.kind != "groups":
            raise ValueError(f'groups is given but kind = "{self.kind}"; set kind = "groups" or drop groups')
        return self
