"""A timed baseline: what a session needs to know about its signal, measured once and then frozen."""

import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from neuromod.engine.errors import ConfigError
from neuromod.sorting.config import FrontEndConfig

Finite = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_NOT_FROZEN = {"warmup_s"}  # has no say where a baseline is given


class Baseline(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Noise, exclusions, thresholds and normalisation of one stream through one front end, and where they come from."""

    format: Literal["neuromod-baseline"] = "neuromod-baseline"
    version: Literal[1] = 1
    measured_at: datetime.datetime
    stream_name: str
    sampling_frequency: Annotated[float, Field(gt=0)]
    channel_names: tuple[str, ...]
    duration_s: Annotated[float, Field(gt=0)]
    block_ms: Annotated[float, Field(gt=0)]
    smoothing_ms: Annotated[float, Field(ge=0)]
    """Of the encoder, before the normalisation was measured."""
    front_end: FrontEndConfig | None
    """None for a stream of features, which has no front end."""
    front_end_hash: str
    excluded: dict[str, Literal["configured", "dead", "noisy", "saturated"]]
    """Channels that take no part, with the reason."""
    noise: dict[str, tuple[NotNegative, ...]]
    """Standard deviation of the noise of each channel, by path, in units of the stream."""
    threshold_uv: tuple[float | None, ...]
    """Crossing threshold of each channel, None where nothing can cross; for the reader: noise and config make it."""
    feature_names: tuple[str, ...]
    mean: tuple[Finite, ...]
    sd: tuple[NotNegative, ...]

    def check_stream(self, sampling_frequency: float, channel_names: Sequence[str]) -> None:
        """Refuse a stream that is not the one measured.

        Raises
        ------
        ConfigError
            Names what differs.
        """
        ours, theirs = tuple(self.channel_names), tuple(channel_names)
        if len(ours) != len(theirs):
            self._refuse(f"number of channels: {len(ours)} in the baseline, {len(theirs)} in the stream")
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a != b:
                self._refuse(f'name of channel {i}: "{a}" in the baseline, "{b}" in the stream')
        if abs(self.sampling_frequency - sampling_frequency) > 1e-6 * sampling_frequency:
            self._refuse(
                f"sampling frequency: {self.sampling_frequency:g} Hz in the baseline, "
                f"{sampling_frequency:g} Hz in the stream"
            )

    def check_front_end(self, config: FrontEndConfig | None) -> None:
        """Refuse a front end other than the one measured through.

        Raises
        ------
        ConfigError
            Names the keys that differ.
        """
        if front_end_hash(config) == self.front_end_hash:
            return
        if config is None or self.front_end is None:
            self._refuse("one of baseline and session has a front end, the other takes features as they come")
        else:
            differing = _differences(self.front_end.model_dump(mode="json"), config.model_dump(mode="json"))
            self._refuse("front_end: " + ("; ".join(differing) or "its file was edited"))

    def check_encoding(self, feature_names: Sequence[str], block_ms: float, smoothing_ms: float) -> None:
        """Refuse to normalise features other than those measured.

        Raises
        ------
        ConfigError
            Names what differs.
        """
        if len(self.feature_names) != len(feature_names):
            self._refuse(f"number of features: {len(self.feature_names)} in the baseline, {len(feature_names)} here")
        for i, (a, b) in enumerate(zip(self.feature_names, feature_names, strict=True)):
            if a != b:
                self._refuse(f'feature {i}: "{a}" in the baseline, "{b}" here')
        for key, ours, theirs in (
            ("block_ms", self.block_ms, block_ms),
            ("smoothing_ms", self.smoothing_ms, smoothing_ms),
        ):
            if abs(ours - theirs) > 1e-9:
                self._refuse(f"{key}: {ours:g} in the baseline, {theirs:g} here")

    def save(self, path: Path) -> Path:
        """Write the baseline; into a folder under a name made of stream and time, else to the file named.

        Returns the path written. The file appears whole or not at all.
        """
        if path.is_dir():
            stem = "".join(ch if ch.isalnum() or ch in "-_" else "_" for ch in self.stream_name) or "stream"
            path = path / f"baseline-{stem}-{self.measured_at:%Y%m%dT%H%M%S}.json"
        partial = path.with_name(path.name + ".part")
        partial.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: Path) -> "Baseline":
        """Read a baseline.

        Raises
        ------
        ConfigError
            There is no such file, or it is not a baseline.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"cannot read the baseline {path}: {error}; measure one with `neuromod baseline`"
            ) from error
        try:
            baseline = cls.model_validate_json(text)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(
                f"{path} is not a baseline of version 1: {where}: {first['msg']}; measure one with `neuromod baseline`"
            ) from error
        baseline._check_itself(path)
        return baseline

    def _check_itself(self, path: Path) -> None:
        n_channels, n_features = len(self.channel_names), len(self.feature_names)
        lengths = {
            "threshold_uv": (len(self.threshold_uv), n_channels),
            "mean": (len(self.mean), n_features),
            "sd": (len(self.sd), n_features),
        } | {f"noise.{name}": (len(values), n_channels) for name, values in self.noise.items()}
        for key, (found, expected) in lengths.items():
            if found != expected:
                raise ConfigError(
                    f"{path}: {key} holds {found} values, {expected} expected; measure the baseline again"
                )
        if self.front_end_hash != front_end_hash(self.front_end):
            raise ConfigError(
                f"{path}: front_end does not match its hash: the file was edited; measure the baseline again"
            )

    def _refuse(self, difference: str) -> None:
        raise ConfigError(
            f'the baseline of "{self.stream_name}" of {self.measured_at:%Y-%m-%d %H:%M} does not fit: {difference}; '
            "measure a new one with `neuromod baseline`, or use the stream and configuration it was measured with"
        )


def front_end_hash(config: FrontEndConfig | None) -> str:
    """Hash over everything in the configuration that the measured values depend on."""
    content = config.model_dump(mode="json", exclude=_NOT_FROZEN) if config is not None else None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _differences(ours: dict[str, object], theirs: dict[str, object], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in ours:
        a, b = ours[key], theirs.get(key)
        if key in _NOT_FROZEN or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key} = {json.dumps(a)} in the baseline, {json.dumps(b)} here")
    return found
