"""What a serial link can carry: bytes of a tick in both directions, their time on the wire, and ticks per second.

All of it is computed, none measured. The wire is full duplex: of several ticks under way, one's bytes travel out while
another's come back.
"""

import math
from dataclasses import dataclass
from typing import Literal

from neuromod.adapters.fpga import siliconbridge, wire
from neuromod.engine.errors import ConfigError
from neuromod.engine.fixed_network import MAX_FIXED_DT_MS

Protocol = Literal["neuromod", "siliconbridge"]
BAUD: dict[Protocol, int] = {"neuromod": 3_000_000, "siliconbridge": 115_200}
"""Baud rates where none is asked for."""

_BITS = 10  # of a byte on the wire: start, eight, stop
_USB_PACKET = 62  # bytes of data in a packet of a full-speed FTDI chip
_OUT, _OUT_MODULATED, _BACK = 47, 67, 72
_USUAL = (115_200, 230_400, 460_800, 921_600, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 6_000_000, 12_000_000)


@dataclass(frozen=True, slots=True)
class Link:
    """A serial link to a board.

    Parameters
    ----------
    protocol : {"neuromod", "siliconbridge"}
        What is spoken on it.
    baud : int
        Bits per second.
    depth : int
        Ticks under way at once.
    is_modulated : bool
        Whether each tick brings its modulation along; over SiliconBridge it never does.
    latency_timer_ms : float
        How long a USB adapter holds back what does not fill a packet: 16 as FTDI chips come, 1 as they should be set, 0
        for none. It may come on top of an answer that no other pushes.
    tick_us : float
        Time that the board takes for a tick.
    """

    protocol: Protocol = "neuromod"
    baud: int = 3_000_000
    depth: int = 4
    is_modulated: bool = True
    latency_timer_ms: float = 0.0
    tick_us: float = 10.0

    @property
    def bytes_out(self) -> int:
        """Bytes of a tick to the board."""
        if self.protocol == "siliconbridge":
            return siliconbridge.BYTES_OUT
        return _OUT_MODULATED if self.is_modulated else _OUT

    @property
    def bytes_back(self) -> int:
        """Bytes of its answer."""
        return siliconbridge.BYTES_BACK if self.protocol == "siliconbridge" else _BACK

    @property
    def out_s(self) -> float:
        """Time of a tick on the wire to the board."""
        return _BITS * self.bytes_out / self.baud

    @property
    def back_s(self) -> float:
        """Time of an answer on the wire."""
        return _BITS * self.bytes_back / self.baud

    @property
    def wire_s(self) -> float:
        """Time on the wire of a tick and its answer."""
        return self.out_s + self.back_s

    @property
    def round_trip_s(self) -> float:
        """Longest that a tick on its own takes: wire, board, and the latency timer."""
        return self.wire_s + 1e-6 * self.tick_us + 1e-3 * self.latency_timer_ms

    @property
    def under_way(self) -> int:
        """Ticks that may be under way at once: no more than the board has room for."""
        room = wire.MAX_UNDER_WAY // self.bytes_out if self.protocol == "neuromod" else self.depth
        return max(1, min(self.depth, room))

    @property
    def max_ticks_hz(self) -> float:
        """Highest rate of ticks."""
        slowest_s = max(self.out_s, self.back_s, 1e-6 * self.tick_us)
        rate_hz = self.under_way / self.round_trip_s
        # an answer's last bytes leave a USB adapter at once where those behind it fill the packet
        n_pushing = -(-_USB_PACKET // self.bytes_back) if self.latency_timer_ms else 0
        if self.under_way > n_pushing:
            rate_hz = max(rate_hz, (self.under_way - n_pushing) / (self.wire_s + 1e-6 * self.tick_us))
        return min(1.0 / slowest_s, rate_hz)

    def least_baud(self, ticks_hz: float) -> int | None:
        """Return the lowest usual rate of bits that carries so many ticks; None where none does."""
        for baud in _USUAL:
            if self.at(baud).max_ticks_hz >= ticks_hz:
                return baud
        return None

    def at(self, baud: int) -> "Link":
        """Return the same link at another rate of bits."""
        return Link(self.protocol, baud, self.depth, self.is_modulated, self.latency_timer_ms, self.tick_us)


def decimation(link: Link, step_ms: float, wanted: int | Literal["auto"] = 1) -> int:
    """Return of how many ticks of a session the board's network makes one, so that the link carries them.

    The board is then a network of its own, with images for a step that is so many times as long, and stimuli that are
    means over its steps. So it is for looking on: it cannot give the session its spikes.

    Parameters
    ----------
    link : Link
        To the board.
    step_ms : float
        Length of the session's ticks.
    wanted : int or "auto"
        How many are asked for; auto takes as many as are necessary.

    Raises
    ------
    ConfigError
        If the link does not carry the ticks, or a network does not take steps that long. Says what to do.
    """
    ticks_hz = 1000.0 / step_ms
    enough = max(1, math.ceil(ticks_hz / link.max_ticks_hz - 1e-9))
    n = enough if wanted == "auto" else wanted
    if n > 1 and n * step_ms > MAX_FIXED_DT_MS * (1 + 1e-9):
        raise ConfigError(
            f"{_says(link)}; {n} ticks of {step_ms:g} ms for one of the board's would be a step of {n * step_ms:g} ms, "
            f"and a board's network takes {MAX_FIXED_DT_MS:g} ms at most: {_advice(link, ticks_hz)}"
        )
    if ticks_hz / n > link.max_ticks_hz * (1 + 1e-9):
        slower = ""
        if enough * step_ms <= MAX_FIXED_DT_MS * (1 + 1e-9):
            slower = f", or give --decimate auto to look on in steps of {enough * step_ms:g} ms"
        raise ConfigError(f"{_says(link)}, the session has {ticks_hz / n:.0f}: {_advice(link, ticks_hz / n)}{slower}")
    return n


def _says(link: Link) -> str:
    return (
        f"a link of {link.baud} baud carries {link.max_ticks_hz:.0f} ticks/s ({link.bytes_out} bytes out and "
        f"{link.bytes_back} back a tick, {1e3 * link.round_trip_s:.2f} ms, {link.under_way} under way)"
    )


def _advice(link: Link, ticks_hz: float) -> str:
    if (baud := link.least_baud(ticks_hz)) is not None:
        return f"set {baud} baud on both sides"
    if link.latency_timer_ms > 1.0:
        return "set the latency timer of the USB adapter to 1 ms"
    return "have more ticks under way (depth), or longer ticks"
