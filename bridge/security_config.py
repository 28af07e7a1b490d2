"""What a session file says about who may connect."""

from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import AfterValidator, Field


def _host_and_id(entry: str) -> str:
    host, slash, source_id = entry.partition("/")
    if not (host and slash and source_id):
        raise ValueError(
            f"{entry!r} names no LSL source: write hostname/source_id, as 'neuromod streams' shows them; "
            "hostname/* allows every source of a host"
        )
    return entry


class SecurityConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Keys for every socket, and the LSL sources that may be listened to. Without this section only loopback is bound.

    Attributes
    ----------
    keys : Path
        Folder that `neuromod keys init` made: the daemon's key pair, and the clients that are let in.
    lsl_sources : tuple of str
        ``hostname/source_id`` of each LSL stream that may be used, signal and markers alike; ``hostname/*`` for every
        source of a host; none listed, none may. LSL authenticates nothing: the list keeps out mistakes, and not who
        forges both names.
    requests_per_s : float
        Requests to the control socket that one client may make, on average; twice as many at once.
    """

    keys: Path
    lsl_sources: tuple[Annotated[str, Field(max_length=512), AfterValidator(_host_and_id)], ...] = ()
    requests_per_s: Annotated[float, Field(ge=1.0, le=100_000.0)] = 200.0

    def allows(self, hostname: str, source_id: str) -> bool:
        """Say whether an LSL stream of this host and id may be used. One without an id never may."""
        return bool(source_id) and not {f"{hostname}/{source_id}", f"{hostname}/*"}.isdisjoint(self.lsl_sources)
