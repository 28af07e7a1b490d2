"""Messages for people and for JSON."""

import dataclasses
import math
from typing import Any

import numpy as np

from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.bridge.gate import REASONS
from neuromod.bridge.wire import (
    ArrayMessage,
    EventMessage,
    Flag,
    HealthMessage,
    OutputMessage,
    SpikesMessage,
    StateMessage,
    StimuliMessage,
    UnitMessage,
)


def as_json(message: OutputMessage) -> dict[str, Any]:
    """Return a message as what JSON can carry: arrays as lists, bytes as hex, NaN and Inf as null."""
    match message:
        case SpikesMessage():
            body: dict[str, Any] = {
                "topic": "spikes",
                "seq": message.seq,
                "tick": message.tick,
                "sample": message.sample,
                "t_sample": message.t_sample,
                "t_tick": message.t_tick,
                "n": len(message.spikes),
                "channels": message.channels,
                "flags": flag_names(message),
            }
        case Command():
            body = {"topic": "command", **dataclasses.asdict(message), "flags": flag_names(message)}
        case Stimulation():
            body = {"topic": "stimulation", **dataclasses.asdict(message), "reason": REASONS[message.reason]}
        case StimuliMessage():
            body = {
                "topic": "stimuli",
                "seq": message.seq,
                "tick": message.tick,
                "values": message.values,
                "modulation": message.modulation,
                "step_ms": message.step_ms,
                "flags": flag_names(message),
            }
        case UnitMessage():
            body = {"topic": "units", **dataclasses.asdict(message), "flags": flag_names(message)}
        case StateMessage():
            body = {
                "topic": "state",
                "tick": message.tick,
                "t": message.t,
                "membrane": message.membrane,
                "modulators": message.modulators,
                "rates_hz": message.rates_hz,
            }
        case ArrayMessage():
            body = {"topic": "array", **dataclasses.asdict(message)}
        case HealthMessage():
            body = {"topic": "health", **message.body}
        case EventMessage():
            body = {
                "topic": "event",
                "name": message.name,
                "t": message.t,
                "tick": message.tick,
                "source": message.source,
                "value": message.value,
            }
    shown: dict[str, Any] = plain(body)
    return shown


def as_line(message: OutputMessage) -> str:
    """Return a message as one line for people."""
    match message:
        case SpikesMessage():
            raster = "".join("|" if fired else "." for fired in message.spikes)
            latency = "" if math.isnan(message.latency_us) else f"{message.latency_us:8.0f} us"
            return f"spikes  {message.tick:>10} {raster} {latency} {' '.join(flag_names(message))}".rstrip()
        case Command():
            values = " ".join(f"{value:8.3g}" for value in message.values)
            return f"command {message.tick:>10} {values} {' '.join(flag_names(message))}".rstrip()
        case Stimulation(kind="train"):
            return (
                f"train   {message.tick:>10} number {message.id}: electrode {message.electrode}, "
                f"{message.amplitude_ua:g} uA x {message.phase_us:g} us, {message.pulses} pulses"
            )
        case Stimulation():
            why = REASONS[message.reason] if message.kind == "stop" else ""
            return f"{message.kind:<7} {message.tick:>10} {why}".rstrip()
        case StimuliMessage():
            values = " ".join(f"{value:.3g}" for value in message.values)
            return f"stimuli {message.tick:>10} {values} {' '.join(flag_names(message))}".rstrip()
        case UnitMessage():
            latency_ms = (message.t_tick - message.t_sample) * 1e3
            return (
                f"unit    {message.tick:>10} {message.unit:>4} amplitude {message.amplitude:5.2f} "
                f"residual {message.residual:5.2f} {latency_ms:6.2f} ms {' '.join(flag_names(message))}"
            ).rstrip()
        case StateMessage():
            levels = " ".join(f"{name} {level:.2f}" for name, level in message.modulators.items())
            return (
                f"state   {message.tick:>10} Hz " + " ".join(f"{rate:.0f}" for rate in message.rates_hz) + f" {levels}"
            )
        case ArrayMessage():
            if not message.counts:
                return f"array   {message.tick:>10} {message.n} channels, nothing is counted"
            silent = int((message.rates_hz == 0.0).sum())
            return (
                f"array   {message.tick:>10} {message.counts} {np.nansum(message.rates_hz):.0f} Hz in all, "
                f"{silent} of {len(message.rates_hz)} channels silent, {len(message.snippets)} snippets"
            )
        case HealthMessage():
            counters = " ".join(f"{name} {count}" for name, count in message.counters.items() if count)
            return f"health  {message.state} {counters}".rstrip()
        case EventMessage():
            value = "" if message.value is None else f" {message.value!r}"
            return f"event   {message.tick:>10} {message.name}{value} ({message.source})"


def as_tree(value: Any, indent: str = "") -> str:
    """Return nested maps as indented lines."""
    if not isinstance(value, dict):
        return f"{indent}{value}"
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += [f"{indent}{key}", as_tree(item, indent + "  ")]
        else:
            shown = f"{item:.6g}" if isinstance(item, float) else "none" if item in (None, {}, []) else item
            lines.append(f"{indent}{key:<24} {shown}")
    return "\n".join(lines)


def flag_names(message: SpikesMessage | StimuliMessage | UnitMessage | Command) -> list[str]:
    """Names of the flags that are set."""
    return [flag.name or "" for flag in Flag(message.flags)]


def plain(value: Any) -> Any:
    """Return data that JSON can carry."""
    match value:
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case np.ndarray():
            return plain(value.tolist())
        case bytes():
            return value.hex()
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
