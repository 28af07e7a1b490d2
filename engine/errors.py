"""Every error that neuromod raises on purpose.

Each also derives from the built-in that Python users would catch.
"""


class NeuromodError(Exception):
    """Base of all errors that neuromod raises on purpose."""


class ConfigError(NeuromodError, ValueError):
    """A configuration, or a value in it, cannot be used."""


class AdapterError(NeuromodError):
    """A device, stream or recording outside cannot be used."""


class AdapterTimeoutError(AdapterError, TimeoutError):
    """A device, stream or recording did not answer in time."""


class AdapterLostError(AdapterError, ConnectionError):
    """A device that was there is gone."""


class RecordingError(AdapterError, ValueError):
    """A recording is missing, corrupt or of a form that cannot be played."""


class ProtocolError(NeuromodError, ValueError):
    """A message is not what PROTOCOL.md says it must be."""


class StimulusError(NeuromodError, ValueError):
    """Stimuli or modulator levels that a network cannot take."""


class CheckpointError(NeuromodError, ValueError):
    """A checkpoint that cannot be restored."""


class SessionLogError(NeuromodError, ValueError):
    """A recorded session is missing, or no session, or cannot be read."""


class MissingExtraError(NeuromodError, ImportError):
    """A package that an optional part of neuromod stands on is not installed."""


class FixedPointError(NeuromodError, ValueError):
    """Something that fixed-point hardware cannot hold, or does not have."""


class ImageError(NeuromodError, ValueError):
    """A memory image, or the manifest beside it, is damaged or not what it has to be."""
