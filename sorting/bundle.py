"""A sorting bundle: all that the loop needs to recognise the units of one array, and where it came from.

A folder with `bundle.json` (what a person or a program may read) and `bundle.npz` (arrays). Whatever else lies beside
them (report, exports) is for people and other programs, and is never read back.
"""

import dataclasses
import datetime
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import Field

from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.errors import ConfigError

VERSION = 1
INFO_NAME, ARRAYS_NAME = FILES = "bundle.json", "bundle.npz"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ChainConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The causal chain from samples to whitened signal, that templates were estimated through and the loop uses."""

    low_hz: Positive = 300.0
    high_hz: Positive = 6000.0
    order: Annotated[int, Field(ge=1, le=4)] = 2
    """Of the Butterworth band-pass; 2 cost accuracy least among causal filters."""
    reference: Literal["none", "mean", "median", "clipped-mean"] = "clipped-mean"
    clip_noise: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Clipped mean: how far, in multiples of its noise, one channel may pull the reference."""
    whitening_um: NotNegative = 60.0
    """Channels within this distance are whitened together; with no neighbour that near, whitening is division by the
    noise."""


class UnitInfo(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One unit, for people and for the encoding."""

    id: Annotated[str, Field(min_length=1)]
    channel: str
    """Where its trough is deepest."""
    position_um: tuple[Finite, Finite]
    """Centre of mass of its template over channels."""
    n_spikes: Annotated[int, Field(ge=0)]
    rate_hz: NotNegative
    peak_uv: Finite
    """Trough of the template after filter and reference, in units of the stream."""
    quality: dict[str, float | None] = {}
    """Quality metrics of the offline sorting by their names in spikeinterface; None where one could not be had."""


class Normalisation(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Frozen constants of the z-score of unit counts, as the encoder smooths them."""

    block_ms: Positive
    smoothing_ms: NotNegative
    mean: tuple[Finite, ...]
    sd: tuple[NotNegative, ...]


class Encoding(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A proposed way from units to the network's channels."""

    by: Literal["tuning", "location", "rate", "table"]
    groups: tuple[tuple[str, ...], ...]
    """Ids of the units of stimulus 0, 1, ...; at most 16."""
    reasons: tuple[str, ...]
    """One sentence for each group."""


class BundleInfo(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Contents of `bundle.json`."""

    format: Literal["neuromod-sorting"] = "neuromod-sorting"
    version: int = VERSION
    created_at: datetime.datetime
    name: str
    """Of the recording."""
    sampling_frequency: Positive
    channel_names: tuple[str, ...]
    """All channels of the stream, in its order."""
    units_of_signal: str = "uV"
    """What noise and `templates_uv` are in."""
    excluded: dict[str, str] = {}
    """Channels that take no part, with the reason."""
    chain: ChainConfig = ChainConfig()
    engine: Literal["sparse", "dense"]
    """Which online engine suits the geometry."""
    detection_noise: Annotated[float, Field(lt=0, ge=-100)] = -4.5
    """Detection threshold on the whitened signal."""
    autocovariance: Annotated[tuple[Finite, ...], Field(min_length=1)] = (1.0,)
    """Of the whitened noise at lags of 0, 1, ... samples, of unit variance: matched filters whiten with it in time."""
    n_before: Annotated[int, Field(ge=1)]
    """Samples of a template before its trough; the trough is at this index."""
    units: tuple[UnitInfo, ...]
    normalisation: Normalisation | None = None
    encoding: Encoding | None = None
    provenance: dict[str, Any] = {}
    """Versions, parameters, seed, hash of the input: whatever it takes to make the bundle again."""
    arrays_sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A sorting, ready for the loop.

    Attributes
    ----------
    info : BundleInfo
        Everything but arrays.
    positions_um : ndarray of float64, shape (n_channels, 2)
        Geometry of the probe.
    noise : ndarray of float64, shape (n_channels,)
        Robust standard deviation of the filtered and referenced signal, in units of the stream; 0: excluded.
    whitening : ndarray of float32, shape (n_channels, n_channels)
        ``z = whitening @ y``: from filtered and referenced samples to whitened ones of unit noise. Rows and columns of
        excluded channels are 0.
    templates : ndarray of float32, shape (n_units, n_samples, n_channels)
        Mean whitened waveform, 0 on channels a unit does not reach. The trough lies at sample `info.n_before`.
    templates_uv : ndarray of float32, same shape
        The same before whitening.
    amplitude_limits : ndarray of float64, shape (n_units, 2)
        Smallest and largest multiple of its template that is taken for a spike of the unit.
    """

    info: BundleInfo
    positions_um: NDArray[np.float64]
    noise: NDArray[np.float64]
    whitening: NDArray[np.float32]
    templates: NDArray[np.float32]
    templates_uv: NDArray[np.float32]
    amplitude_limits: NDArray[np.float64]

    def __post_init__(self) -> None:
        n_channels, n_units = len(self.info.channel_names), len(self.info.units)
        n_samples = self.templates.shape[1] if self.templates.ndim == 3 else 0
        shapes: dict[str, tuple[int, ...]] = {
            "positions_um": (n_channels, 2),
            "noise": (n_channels,),
            "whitening": (n_channels, n_channels),
            "templates": (n_units, n_samples, n_channels),
            "templates_uv": (n_units, n_samples, n_channels),
            "amplitude_limits": (n_units, 2),
        }
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ConfigError(f"a sorting bundle with {name} of shape {array.shape}; {shape} expected")
            if not np.all(np.isfinite(array)):
                raise ConfigError(f"a sorting bundle whose {name} is not finite; sort the recording again")
        if not self.info.n_before < n_samples:
            raise ConfigError(
                f"a sorting bundle with templates of {n_samples} samples and their trough at {self.info.n_before}"
            )
        normalisation = self.info.normalisation
        if normalisation is not None and not len(normalisation.mean) == len(normalisation.sd) == n_units:
            raise ConfigError(f"a sorting bundle of {n_units} units, normalised for {len(normalisation.mean)}")

    @property
    def unit_ids(self) -> tuple[str, ...]:
        """Ids of the units, in the order of `templates`."""
        return tuple(unit.id for unit in self.info.units)

    def with_info(self, **changed: Any) -> "Bundle":
        """Return this bundle with other entries of `info`."""
        return dataclasses.replace(self, info=self.info.model_copy(update=changed))

    def check_stream(self, sampling_frequency: float, channel_names: Sequence[str]) -> None:
        """Refuse a stream other than the one sorted.

        Channel names may differ, since a recording and a live stream of one array often name them differently; their
        number and order may not.

        Raises
        ------
        ConfigError
            Names what differs.
        """
        ours = len(self.info.channel_names)
        if len(channel_names) != ours:
            self._refuse(f"it was sorted from {ours} channels, the stream has {len(channel_names)}")
        if abs(self.info.sampling_frequency - sampling_frequency) > 1e-6 * sampling_frequency:
            self._refuse(
                f"it was sorted at {self.info.sampling_frequency:g} Hz, the stream has {sampling_frequency:g} Hz"
            )
        both = set(self.info.channel_names) & set(channel_names)
        if both and tuple(channel_names) != self.info.channel_names:
            moved = next(a for a, b in zip(self.info.channel_names, channel_names, strict=True) if a != b)
            self._refuse(f'the stream has the same names in another order, from channel "{moved}" on')

    def _refuse(self, difference: str) -> None:
        raise ConfigError(
            f'the sorting of "{self.info.name}" does not fit the stream: {difference}; sort a recording of this stream '
            "with `neuromod sort`, or open the stream that was sorted"
        )

    def save(self, folder: Path) -> Path:
        """Write the bundle into a folder, which is made where it is not there; it appears whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{name: getattr(self, name) for name in _ARRAYS})
        info = self.info.model_copy(update={"arrays_sha256": hashlib.sha256(buffer.getbuffer()).hexdigest()})
        for name, content in (
            (ARRAYS_NAME, buffer.getvalue()),  # first: a bundle without its json is none
            (INFO_NAME, (info.model_dump_json(indent=1) + "\n").encode()),
        ):
            partial = folder / f"{name}.part"
            partial.write_bytes(content)
            partial.replace(folder / name)
        return folder

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Read a bundle.

        Raises
        ------
        ConfigError
            There is none, it is of another version, or it is damaged; says which and what to do.
        """
        info_path, arrays_path = folder / INFO_NAME, folder / ARRAYS_NAME
        if not info_path.is_file():
            raise ConfigError(f"{folder} is no sorting: there is no {INFO_NAME}; make one with `neuromod sort`")
        try:
            text = info_path.read_text(encoding="utf-8")
            version = _Versioned.model_validate_json(text).version
            if version != VERSION:
                raise ConfigError(
                    f"{folder} is a sorting of version {version}, this neuromod reads version {VERSION}; "
                    "sort the recording again"
                )
            info = BundleInfo.model_validate_json(text)
            content = arrays_path.read_bytes()
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(
                f"{info_path} is not the description of a sorting: {where}: {first['msg']}; sort the recording again"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the sorting {folder}: {error}; sort the recording again") from error
        if hashlib.sha256(content).hexdigest() != info.arrays_sha256:
            raise ConfigError(f"{arrays_path} is not the file that {INFO_NAME} goes with; sort the recording again")
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                # other numbers would be compiled for once more, in the middle of a session
                kept = {name: arrays[name].astype(dtype, casting="same_kind") for name, dtype in _ARRAYS.items()}
                return cls(info, **kept)
        except NO_ARRAYS as error:
            raise ConfigError(f"{arrays_path} cannot be read: {error}; sort the recording again") from error


class _Versioned(pydantic.BaseModel):
    version: int


_ARRAYS = {
    "positions_um": np.float64, "noise": np.float64, "whitening": np.float32,
    "templates": np.float32, "templates_uv": np.float32, "amplitude_limits": np.float64,
}  # fmt: skip
