"""Parameters of offline sorting, and the two files of them that come with neuromod."""

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from neuromod.engine.errors import ConfigError
from neuromod.sorting.bundle import ChainConfig, NotNegative, Positive

GIVEN = ("utah", "neuropixels")
"""Parameter files that come with neuromod: for sparse arrays and for dense probes."""

Share = Annotated[float, Field(ge=0, le=1)]


class _Section(pydantic.BaseModel, frozen=True, extra="forbid"):
    pass


class ChannelsConfig(_Section, frozen=True, extra="forbid"):
    """Which channels take part; noise is a robust standard deviation, after the band-pass."""

    dead_below: Share = 0.2
    """A channel with less noise than this share of the median channel's is dead."""
    noisy_above: Annotated[float, Field(gt=1)] = 5.0
    """A channel with more noise than this multiple of the median channel's is noisy."""
    railed_share: Share = 0.01
    """A channel with more than this share of its samples at its own extremes is railed."""
    exclude: tuple[str, ...] = ()
    """Channels that are left out because somebody says so."""


class PreprocessingConfig(_Section, frozen=True, extra="forbid"):
    """What the offline sorter and the quality metrics see: zero-phase filter, common reference."""

    low_hz: Positive = 150.0
    high_hz: Positive = 6000.0
    reference: Literal["none", "median", "mean"] = "median"
    phase_shift: bool = True
    """Undo the offsets between channels that one converter samples in turn, where the recording tells them."""


class SorterConfig(_Section, frozen=True, extra="forbid"):
    """The offline sorter."""

    name: Annotated[str, Field(min_length=1)] = "auto"
    """Of spikeinterface; "auto" is lupin where torch is installed, or else tridesclous2."""
    parameters: dict[str, dict[str, Any]] = {}
    """By name of the sorter: what differs from its own defaults."""


class CurationConfig(_Section, frozen=True, extra="forbid"):
    """Limits of quality; a unit beyond any of them is left out, with the reason."""

    min_spikes: Annotated[int, Field(ge=1)] = 50
    """A template of fewer is known to no better than a seventh of the noise."""
    min_rate_hz: NotNegative = 0.05
    min_snr: NotNegative = 4.0
    """Peak of the template against the noise of its channel; below 4, an online threshold of 4.5 sees few spikes."""
    max_isi_violations_ratio: NotNegative = 1.0
    """Contamination by the violations of a refractory period of 1.5 ms (Hill et al. 2011); 0 is a clean unit."""
    min_presence_ratio: Share = 0.5
    """Share of the recording's bins in which the unit fires."""
    max_amplitude_cutoff: Share | None = None
    """Share of spikes lost below the detection threshold, as far as amplitudes tell (Hill et al. 2011)."""
    duplicate_share: Share = 0.8
    """Of two units that share more than this of their spikes, the one with fewer is left out."""


class SortConfig(_Section, frozen=True, extra="forbid"):
    """A parameter file of `neuromod sort`."""

    min_duration_s: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 10.0
    """Of less, units' rates and shapes cannot be known."""
    detection_noise: Annotated[float, Field(lt=0, ge=-100)] = -4.5
    """Detection threshold of the online sorter on the whitened signal, in multiples of the noise."""
    engine: Literal["auto", "sparse", "dense"] = "auto"
    chain: ChainConfig = ChainConfig()
    channels: ChannelsConfig = ChannelsConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    sorter: SorterConfig = SorterConfig()
    curation: CurationConfig = CurationConfig()


def load_parameters(which: str) -> SortConfig:
    """Read a parameter file.

    Parameters
    ----------
    which : str
        "utah", "neuropixels", or the path of a file.

    Raises
    ------
    ConfigError
        There is no such file, or it says something that is not known or not possible.
    """
    try:
        if which in GIVEN:
            text = (resources.files("neuromod.sorting") / "parameters" / f"{which}.toml").read_text(encoding="utf-8")
        elif Path(which).is_file():
            text = Path(which).read_text(encoding="utf-8")
        else:
            raise ConfigError(f"no parameters {which!r}: {', '.join(GIVEN)} or the path of a file expected")
        return SortConfig.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read the parameters {which}: {error}") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"parameters {which}: {where}: {first['msg']}, got {first['input']!r:.80}") from error
