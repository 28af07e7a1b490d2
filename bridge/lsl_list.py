"""Sources of a session, and the list of LSL streams that it may listen to."""

from neuromod.adapters.base import Source, create_source
from neuromod.adapters.config import LslConfig, MarkerConfig
from neuromod.adapters.lsl import Allows, LslMarkers, LslSource
from neuromod.bridge.config import SessionConfig


def source_of(config: SessionConfig) -> Source:
    """Build the source of a session, without opening it; one of LSL connects to what `security.lsl_sources` lists.

    Raises
    ------
    ConfigError
        As `create_source`.
    """
    if isinstance(config.source, LslConfig):
        return LslSource(config.source, _allows(config))
    return create_source(config.source)


def markers_of(config: SessionConfig, markers: MarkerConfig) -> LslMarkers:
    """Build a marker stream of a session, without opening it, by the same list."""
    return LslMarkers(markers, _allows(config))


def _allows(config: SessionConfig) -> Allows | None:
    return config.security.allows if config.security is not None else None
