"""What a session file may say about its sources of signal and markers."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Discriminator, Field, Tag

from neuromod.adapters import plugins
from neuromod.adapters.base import ENTRY_POINT_GROUP

FeatureBinMs = Annotated[float, Field(ge=1.0, le=100.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Config(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen, unknown keys refused."""


class _StreamQuery(_Config, frozen=True, extra="forbid"):
    """Which LSL stream: everything given must match, and at least one must be given."""

    name: str | None = None
    type: str | None = None
    source_id: str | None = None
    hostname: str | None = None
    resolve_timeout_s: Annotated[float, Field(gt=0.0, le=3600.0)] = 5.0

    @pydantic.model_validator(mode="after")
    def _names_a_stream(self) -> "_StreamQuery":
        if not any((self.name, self.type, self.source_id, self.hostname)):
            raise ValueError("give at least one of name, type, source_id or hostname, so that one stream is meant")
        return self


class LslConfig(_StreamQuery, frozen=True, extra="forbid"):
    """A Lab Streaming Layer stream of numbers.

    Attributes
    ----------
    name, type, source_id, hostname : str, optional
        Which stream; all that are given must match.
    content : {"signal", "features"}
        Raw signal, or one vector per bin.
    sampling_frequency_hz : float, optional
        Checked against the stream's nominal rate; required for a signal of irregular rate (nominal 0).
    bin_ms : float, optional
        Length of a feature bin, 1 to 100 ms; required for features of irregular rate, else the period of the stream.
    n_channels : int, optional
        Checked against the stream.
    max_buflen_s : float
        How much liblsl may hold for us before it drops the oldest.
    resolve_timeout_s : float
        How long to look for the stream. A daemon that a service manager started, or a supervisor anew, looks on.
    """

    kind: Literal["lsl"] = "lsl"
    content: Literal["signal", "features"] = "signal"
    sampling_frequency_hz: Positive | None = None
    bin_ms: FeatureBinMs | None = None
    n_channels: Annotated[int, Field(ge=1)] | None = None
    max_buflen_s: Annotated[float, Field(ge=1.0, le=3600.0)] = 10.0

    @pydantic.model_validator(mode="after")
    def _rate_fits_content(self) -> "LslConfig":
        if self.content == "signal" and self.bin_ms is not None:
            raise ValueError('bin_ms goes with content = "features"; a signal states sampling_frequency_hz')
        if self.content == "features" and self.sampling_frequency_hz is not None:
            raise ValueError('sampling_frequency_hz goes with content = "signal"; features state bin_ms')
        return self


class MarkerConfig(_StreamQuery, frozen=True, extra="forbid"):
    """A Lab Streaming Layer stream of markers: strings or whole numbers of irregular rate.

    Attributes
    ----------
    required : bool
        Refuse to start without it; otherwise it is looked for, reported absent, and the session goes on.
    """

    required: bool = True


class RecordingConfig(_Config, frozen=True, extra="forbid"):
    """A recording that neo or spikeinterface opens.

    Attributes
    ----------
    path : Path
        File or folder.
    format : str
        "auto" looks at the path; see `neuromod.adapters.recording.FORMATS`.
    stream_id : str, optional
        Which stream, where a recording holds several ("imec0.ap", "5", ...).
    sampling_frequency_hz : float, optional
        Required for raw binary; elsewhere checked against the file.
    n_channels, dtype : int, str
        Raw binary only: channels, interleaved, and numpy's name of a sample's type.
    gain_uv, offset_uv : float, optional
        Raw binary only: microvolt per unit, and microvolt at zero. Without a gain the numbers pass as they are.
    header_bytes : int
        Raw binary only: bytes to skip.
    """

    kind: Literal["recording"] = "recording"
    path: Path
    format: str = "auto"
    stream_id: str | None = None
    sampling_frequency_hz: Positive | None = None
    n_channels: Annotated[int, Field(ge=1)] | None = None
    dtype: str | None = None
    gain_uv: Positive | None = None
    offset_uv: float = 0.0
    header_bytes: Annotated[int, Field(ge=0)] = 0


class XdfConfig(_Config, frozen=True, extra="forbid"):
    """A stream of an XDF file, as LabRecorder writes it.

    Attributes
    ----------
    path : Path
        The file.
    name, type : str, optional
        Which stream; without either, the first regularly sampled stream of numbers that holds samples.
    stream_id : int, optional
        The number of the stream in the file, where names do not tell.
    bin_ms : float, optional
        Given, the stream is one of features, with bins of this length, 1 to 100 ms.
    """

    kind: Literal["xdf"] = "xdf"
    path: Path
    name: str | None = None
    type: str | None = None
    stream_id: int | None = None
    bin_ms: FeatureBinMs | None = None


class FeaturesConfig(_Config, frozen=True, extra="forbid"):
    """A matrix of counts or rates per bin: `.npy`, or `.mat` of any version.

    Attributes
    ----------
    path : Path
        The file.
    bin_ms : float
        Length of a bin, 1 to 100 ms.
    variable : str, optional
        Where in a `.mat`, dotted ("train_data.spikeratedata"); without it the only matrix there is.
    transposed : bool
        The file holds (n_features, n_bins) instead of (n_bins, n_features).
    n_channels : int, optional
        Checked against the file.
    """

    kind: Literal["features"] = "features"
    path: Path
    bin_ms: FeatureBinMs
    variable: str | None = None
    transposed: bool = False
    n_channels: Annotated[int, Field(ge=1)] | None = None


class UnitsConfig(_Config, frozen=True, extra="forbid"):
    """Recorded spike trains, played as counts per bin: Blackrock `.nev`, or a Phy / Kilosort folder.

    Attributes
    ----------
    path : Path
        A `.nev` file, or a folder with `spike_times.npy` and `spike_clusters.npy`.
    bin_ms : float
        Length of a bin, 1 to 100 ms.
    n_units : int or None
        Only so many of the busiest units; None takes all.
    unit_ids : tuple of str, optional
        Exactly these, in this order, instead of the busiest.
    sampling_frequency_hz : float, optional
        Of the spike times; required for a Phy folder without `params.py`.
    """

    kind: Literal["units"] = "units"
    path: Path
    bin_ms: FeatureBinMs = 1.0
    n_units: Annotated[int, Field(ge=1)] | None = 16
    unit_ids: tuple[str, ...] | None = None
    sampling_frequency_hz: Positive | None = None


class ZmqConfig(_Config, frozen=True, extra="forbid"):
    """No stream: the daemon is driven by stimuli messages alone, one message, one block.

    Attributes
    ----------
    block_ms : float
        How long the stimuli of one message stand.
    """

    kind: Literal["zmq"] = "zmq"
    block_ms: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0


class PluginConfig(plugins.PluginConfig, frozen=True, extra="allow"):
    """A source that another package brings through the entry-point group `neuromod.sources`.

    All keys but `kind` belong to that package, which validates `options` by itself.
    """

    group = ENTRY_POINT_GROUP
    what = "source"
    built_in = ("lsl", "recording", "xdf", "features", "units", "zmq")


SourceConfig = Annotated[
    Annotated[LslConfig, Tag("lsl")]
    | Annotated[RecordingConfig, Tag("recording")]
    | Annotated[XdfConfig, Tag("xdf")]
    | Annotated[FeaturesConfig, Tag("features")]
    | Annotated[UnitsConfig, Tag("units")]
    | Annotated[ZmqConfig, Tag("zmq")]
    | Annotated[PluginConfig, Tag("plugin")],
    Discriminator(PluginConfig.tag),
]
"""The `source` of a session, told apart by `kind`."""
