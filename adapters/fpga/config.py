"""What a board is, and how it is reached: its configuration, and the device that it describes."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from neuromod.adapters.fpga.board import Board
from neuromod.adapters.fpga.link import BAUD, Link, Protocol
from neuromod.adapters.fpga.siliconbridge import SiliconBridge

DEVICES: dict[Protocol, type[Board | SiliconBridge]] = {"neuromod": Board, "siliconbridge": SiliconBridge}

_DEPTH: dict[Protocol, int] = {"neuromod": 4, "siliconbridge": 1}


class FpgaConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A board on a serial line.

    Attributes
    ----------
    port : str
        Device file.
    protocol : {"neuromod", "siliconbridge"}
        What it speaks: ours, or SiliconBridge v3.0.
    baud : int, optional
        Bits per second; 3,000,000 for ours, 115,200 for SiliconBridge.
    depth : int, optional
        Ticks under way at once, which hides the time on the line; 4 for ours. 1 for SiliconBridge: more asks of the
        board that it takes bytes in while it answers.
    timeout_ms : float
        How long an answer may take before its tick is sent again, or given up.
    lost_ms : float
        A board that says nothing for so long is gone.
    decimate : int or "auto"
        Ticks of the session that make one of the board's; for looking on at a link that is too slow.
    """

    port: Annotated[str, Field(min_length=1)]
    protocol: Protocol = "neuromod"
    baud: Annotated[int, Field(ge=9600, le=12_000_000)] | None = None
    depth: Annotated[int, Field(ge=1, le=16)] | None = None
    timeout_ms: Annotated[float, Field(ge=1.0, le=10_000.0)] = 100.0
    lost_ms: Annotated[float, Field(ge=10.0, le=60_000.0)] = 1000.0
    decimate: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = 1

    def link(self, latency_timer_ms: float = 0.0) -> Link:
        """Return the model of its link."""
        return Link(
            self.protocol,
            self.baud or BAUD[self.protocol],
            self.depth or _DEPTH[self.protocol],
            latency_timer_ms=latency_timer_ms,
        )

    @pydantic.model_validator(mode="after")
    def _waits_long_enough(self) -> "FpgaConfig":
        link = self.link()
        full_ms = 1e3 * (link.out_s + link.under_way * link.back_s)
        if self.timeout_ms < 2.0 * full_ms:
            raise ValueError(
                f"timeout_ms is {self.timeout_ms:g}, and {link.under_way} answers take {full_ms:.1f} ms on a wire of "
                f"{link.baud} baud; wait twice as long at least"
            )
        if self.lost_ms < self.timeout_ms:
            raise ValueError(f"lost_ms is {self.lost_ms:g}, expected at least timeout_ms, {self.timeout_ms:g}")
        return self


def create_device(config: FpgaConfig) -> Board | SiliconBridge:
    """Return the device that a configuration describes; it is not open yet."""
    link = config.link()
    return DEVICES[config.protocol](
        config.port, baud=link.baud, depth=link.depth, timeout_ms=config.timeout_ms, lost_ms=config.lost_ms
    )
