"""Kinds of sources and actuators, ours and those of other packages, found by their entry points."""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

import pydantic

from neuromod.engine.errors import ConfigError


def installed(group: str) -> dict[str, EntryPoint]:
    """Return every installed kind of a group by name.

    The first of several distributions that claim one name is taken, ours before any other.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name not in found or point.value.startswith("neuromod."):
            found[point.name] = point
    return found


def create(group: str, what: str, config: Any) -> Any:
    """Build what a configuration describes: the object behind its `kind`'s entry point, called with the configuration.

    Parameters
    ----------
    group : str
        Of entry points.
    what : str
        For errors, as "source".
    config : object
        Anything with a `kind`.

    Raises
    ------
    ConfigError
        If the kind is not installed, or its module cannot be imported.
    """
    kinds = installed(group)
    point = kinds.get(config.kind)
    if point is None:
        raise ConfigError(
            f'{what} kind "{config.kind}" is not installed; known kinds: {", ".join(sorted(kinds)) or "none"}. '
            f"Install the package that brings it (entry-point group {group}), "
            "or reinstall neuromod-bridge if its own kinds are missing"
        )
    try:
        build: Callable[[Any], Any] = point.load()
    except ImportError as error:
        raise ConfigError(
            f'{what} kind "{config.kind}" ({point.value}) cannot be imported: {error}; install what it needs'
        ) from error
    return build(config)


class PluginConfig(pydantic.BaseModel, frozen=True, extra="allow"):
    """What another package brings. All keys but `kind` belong to that package, which validates `options` by itself."""

    group: ClassVar[str]
    what: ClassVar[str]
    built_in: ClassVar[tuple[str, ...]]

    kind: str

    @pydantic.field_validator("kind")
    @classmethod
    def _is_installed(cls, kind: str) -> str:
        known = {*cls.built_in, *installed(cls.group)}
        if kind not in known:
            raise ValueError(
                f'no {cls.what} of kind "{kind}" is installed; known kinds: {", ".join(sorted(known))}. '
                "Mend the word, or install the package that brings it"
            )
        return kind

    @property
    def options(self) -> dict[str, Any]:
        """Every key but `kind`."""
        return dict(self.model_extra or {})

    @classmethod
    def tag(cls, value: Any) -> str:
        """Return the tag of a configuration in a union: its kind where that is built in, else "plugin"."""
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return kind if kind in cls.built_in else "plugin"
