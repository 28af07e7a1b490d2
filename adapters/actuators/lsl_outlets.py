"""Spikes and commands as Lab Streaming Layer outlets, so that LabRecorder and any LSL tool sees them.

| stream | type | rate | channels |
|---|---|---|---|
| NAME spikes | Spikes (int) or Markers (string) | irregular | one: which channel fired; a sample per spike |
| NAME rates | Rates | regular | one per channel of the network, spikes per second |
| NAME commands | Control | irregular, or that of the ticks | one per output of the decoder |

Samples are stamped with the time of the newest sample of their tick, or with its end, both on `local_clock`; a rate
with the end of its bin. Where there is nothing to be done, the commands are zero.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pylsl
from numpy.typing import NDArray

from neuromod.adapters.actuator_config import LslOutletsConfig
from neuromod.adapters.actuators.base import (
    ActuatorMessage,
    Answer,
    Command,
    Spikes,
    Topic,
    not_open,
    says_nothing,
)
from neuromod.engine.errors import AdapterError

# A pause in the ticks up to so long is a pause in the spikes: the rates go on. After a longer one the bins begin anew.
_LONGEST_PAUSE_S = 1.0
# Where only ticks with spikes are published, a bin is over when so long after its end nothing more came.
_PATIENCE_S = 0.25


class RateBins:
    """Spikes per second on a regular grid.

    Parameters
    ----------
    n_channels : int
        Channels of the network.
    rate_hz : float
        Bins per second.
    tau_ms : float, optional
        Time constant of the filter; without it each bin stands by itself.

    Attributes
    ----------
    late : int
        Ticks that came after their bin was over, and were left out.

    Notes
    -----
    With a count of c spikes in a bin of T seconds, and y the rate: y <- y exp(-T / tau) + (c / T)(1 - exp(-T / tau)),
    the exact response of a first-order low-pass filter to a rate that is constant over each bin.
    """

    def __init__(self, n_channels: int, rate_hz: float, tau_ms: float | None) -> None:
        self._bin_s = 1.0 / rate_hz
        self._keep = 0.0 if tau_ms is None else math.exp(-self._bin_s / (1e-3 * tau_ms))
        self._counts = np.zeros(n_channels, np.int64)
        self._rates = np.zeros(n_channels)
        self.late = 0
        self.restart()

    def restart(self) -> None:
        """Lay the grid anew at the next tick."""
        self._origin: float | None = None
        self._bin = 0
        self._counts[:] = 0
        self._rates[:] = 0.0

    def add(self, t: float, channels: int) -> list[tuple[float, NDArray[np.float32]]]:
        """Count the spikes of a tick; return the bins before it that are over by it, with the time of their ends."""
        if self._origin is not None and t - self._end > _LONGEST_PAUSE_S:
            self.restart()
        if self._origin is None:
            self._origin = t
        done = self.over(t)
        if t < self._end - self._bin_s:
            self.late += 1
            return done
        while channels:
            bit = channels & -channels
            if bit.bit_length() <= len(self._counts):
                self._counts[bit.bit_length() - 1] += 1
            channels ^= bit
        return done

    def over(self, t: float) -> list[tuple[float, NDArray[np.float32]]]:
        """Return the bins that end at or before t."""
        done = []
        while self._origin is not None and self._end <= t:
            self._rates *= self._keep
            self._rates += (1.0 - self._keep) / self._bin_s * self._counts
            self._counts[:] = 0
            done.append((self._end, self._rates.astype(np.float32)))
            self._bin += 1
        return done

    @property
    def _end(self) -> float:
        assert self._origin is not None
        return self._origin + (self._bin + 1) * self._bin_s


class LslOutlets:
    """Up to three outlets: spikes as events, spikes as rates, commands.

    Parameters
    ----------
    config : LslOutletsConfig
        Which of them, and how they are described.
    clock : callable
        Returns the time in seconds, that of `pylsl.local_clock`.
    """

    def __init__(self, config: LslOutletsConfig, clock: Callable[[], float] = pylsl.local_clock) -> None:
        self._config = config
        self._clock = clock
        self._is_open = False
        self._is_armed = False
        self._events: Any = None
        self._rates: Any = None
        self._commands: Any = None
        self._bins = RateBins(config.n_channels, config.rates_hz, config.rate_tau_ms)
        self._acts_until: float | None = None  # while the newest command is not zero

    @property
    def name(self) -> str:
        """What the streams begin with."""
        return f"LSL outlets {self._config.name!r}"

    @property
    def wants(self) -> frozenset[Topic]:
        """Spikes, commands, or both."""
        topics: set[Topic] = set()
        if self._config.spikes != "none":
            topics.add("spikes")
        if self._config.outputs:
            topics.add("command")
        return frozenset(topics)

    @property
    def is_armed(self) -> bool:
        """True from `arm` to `disarm`, `close` or an error."""
        return self._is_armed

    def open(self) -> None:
        """Create the outlets: from now on they can be found."""
        if self._is_open:
            return
        c = self._config
        labels = [f"ch{i}" for i in range(c.n_channels)]
        try:
            if c.spikes in ("events", "both"):
                is_text = c.event_format == "string"
                fmt, kind = (pylsl.cf_string, "Markers") if is_text else (pylsl.cf_int32, "Spikes")
                self._events = self._outlet("spikes", kind, ["channel"], 0.0, fmt, "none")
            if c.spikes in ("rates", "both"):
                self._rates = self._outlet("rates", "Rates", labels, c.rates_hz, pylsl.cf_float32, "spikes/s")
            if c.outputs:
                self._commands = self._outlet(
                    "commands", "Control", list(c.outputs), c.commands_hz, pylsl.cf_float32, c.output_units
                )
        except RuntimeError as error:
            self.close()
            raise AdapterError(f"{self.name} cannot be created ({error}); see 'neuromod doctor'") from error
        self._is_open = True

    def arm(self) -> None:
        """Let samples out."""
        self._check()
        self._is_armed = True

    def send(self, message: ActuatorMessage) -> bool:
        """Push what the message holds."""
        self._check()
        if not self._is_armed:
            return False
        now = self._clock()
        if isinstance(message, Command) and self._commands is not None:
            if says_nothing(message, now):
                self._rest()
                return False
            self._push_command(message)
            return True
        if isinstance(message, Spikes) and self._config.spikes != "none" and not says_nothing(message, now):
            self._push_spikes(message)
            return True
        return False

    def poll(self) -> Sequence[Answer]:
        """Return nothing: streams do not answer. Old commands go to zero, and bins end."""
        self._check()
        now = self._clock()
        if self._acts_until is not None and now >= self._acts_until:
            self._rest()
        if self._is_armed:
            self._push_rates(self._bins.over(now - _PATIENCE_S))
        return ()

    def disarm(self) -> None:
        """Commands to zero; spikes and rates fall silent."""
        self._is_armed = False
        self._rest()
        self._bins.restart()

    def close(self) -> None:
        """Disarm, and destroy the outlets."""
        self.disarm()
        self._is_open = False
        self._events = self._rates = self._commands = None

    def _outlet(self, what: str, kind: str, labels: list[str], rate: float, fmt: int, unit: str) -> Any:
        c = self._config
        info = pylsl.StreamInfo(f"{c.name} {what}", kind, len(labels), rate, fmt, f"{c.source_id}:{what}")
        info.set_channel_labels(labels)
        info.set_channel_units([unit] * len(labels))
        info.set_channel_types(kind)
        info.desc().append_child_value("manufacturer", "neuromod")
        facts = info.desc().append_child("neuromod")
        facts.append_child_value("stamps", "end of the bin" if what == "rates" else c.stamps)
        facts.append_child_value("n_channels", str(c.n_channels))
        if what == "rates":
            facts.append_child_value("rate_tau_ms", "none" if c.rate_tau_ms is None else f"{c.rate_tau_ms:g}")
        return pylsl.StreamOutlet(info)

    def _push_command(self, message: Command) -> None:
        if len(message.values) != len(self._config.outputs):
            self.disarm()
            raise AdapterError(
                f"{self.name} has {len(self._config.outputs)} outputs ({', '.join(self._config.outputs)}), the command "
                f"has {len(message.values)} values; name in outputs what the decoder gives"
            )
        self._commands.push_sample(message.values.tolist(), self._stamp(message))
        self._acts_until = message.expires if np.any(message.values) else None

    def _push_spikes(self, message: Spikes) -> None:
        t = self._stamp(message)
        if self._events is not None:
            for channel in range(min(message.channels.bit_length(), self._config.n_channels)):
                if message.channels >> channel & 1:
                    is_text = self._config.event_format == "string"
                    self._events.push_sample([f"ch{channel}" if is_text else channel], t)
        self._push_rates(self._bins.add(t, message.channels))

    def _push_rates(self, bins: list[tuple[float, NDArray[np.float32]]]) -> None:
        if self._rates is not None:
            for t, rates in bins:
                self._rates.push_sample(rates.tolist(), t)

    def _rest(self) -> None:
        if self._acts_until is not None:
            self._acts_until = None
            self._commands.push_sample([0.0] * len(self._config.outputs), self._clock())

    def _stamp(self, message: Command | Spikes) -> float:
        t = message.t_sample if self._config.stamps == "t_sample" else message.t_tick
        return t if math.isfinite(t) else message.t_tick

    def _check(self) -> None:
        if not self._is_open:
            raise not_open(self.name)
