"""Devices under test by the name that the command line gives them."""

from collections.abc import Callable
from typing import Any

from neuromod.adapters.fpga.device import Answer, Device
from neuromod.adapters.fpga.twin import TwinDevice


class TestDevice:
    """A device, and what a report says of it.

    Parameters
    ----------
    device : Device
        The device itself.
    is_peer : bool
        A daemon, which runs the floating-point network.
    facts : callable, optional
        Returns what else is to be said of it, once it is open: version words, baud rate, ...
    is_simulated : bool
        It is run on this machine.
    baud : int, optional
        Of its line.
    """

    __test__ = False  # pytest takes the name for a test's

    def __init__(
        self,
        device: Device,
        *,
        is_peer: bool = False,
        facts: Callable[[], dict[str, Any]] = dict,
        is_simulated: bool = False,
        baud: int | None = None,
        protocol: str = "",
    ) -> None:
        self.device, self.is_peer, self.is_simulated, self.baud, self.protocol = (
            device,
            is_peer,
            is_simulated,
            baud,
            protocol,
        )
        self._facts = facts
        self.facts: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def describe(self) -> None:
        """Ask the device for what is to be said of it."""
        self.facts = dict(self._facts())


def twin() -> TestDevice:
    """Return the twin as a device."""
    return TestDevice(TwinDevice(), is_simulated=True)
