"""`[metrics]` of a session file: where Prometheus finds the numbers of a running daemon."""

import ipaddress
import re
from typing import Annotated

import pydantic

_ADDRESS = re.compile(r"^(\[[^\]]+\]|[^:\[\]]+):(\d+)$")


def _checked(address: str) -> str:
    """Allow loopback and nothing else; write localhost as the number that it stands for."""
    match = _ADDRESS.match(address)
    if match is None:
        raise ValueError(f"an address of metrics looks like 127.0.0.1:9464, this is {address!r}")
    host, port = match[1].strip("[]"), int(match[2])
    if port > 65535:
        raise ValueError(f"port {port} does not exist, ports end at 65535: choose a free one above 1023")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        is_loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"{address} is away from loopback, and HTTP asks nobody for a key: bind to 127.0.0.1, and scrape from "
            "elsewhere through ssh -L, or by an agent on this host that passes the numbers on"
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class MetricsConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Numbers of the running daemon for Prometheus, at http://ADDRESS/metrics.

    Attributes
    ----------
    address : str
        Host and port, on loopback only; port 0 takes a free one, which the log tells.
    """

    address: Annotated[str, pydantic.AfterValidator(_checked)] = "127.0.0.1:9464"

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The address in its two parts."""
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)
