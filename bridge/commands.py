"""The commands of the control socket: names, arguments, what each does. PROTOCOL.md is checked against this."""

from dataclasses import dataclass
from typing import Annotated, Any

import pydantic
from pydantic import Field

from neuromod.engine.errors import ProtocolError


class CommandError(ProtocolError):
    """A request that cannot be carried out; `reason` is the countable word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Takes no arguments."""


class SetArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Parameters to change, by dotted name."""

    parameters: Annotated[dict[str, bool | int | float | str], Field(min_length=1, max_length=64)]


class PathArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A file on the daemon's host."""

    path: Annotated[str, Field(min_length=1, max_length=1024)]


class OptionalPathArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A file on the daemon's host; without it the daemon names one."""

    path: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


class LearningArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Whether plasticity may change weights."""

    on: pydantic.StrictBool


class ArmArgs(pydantic.BaseModel, frozen=True, extra="forbid"):
    """For how long, and the proof of the key; a mode that sends nothing needs none."""

    seconds: Annotated[float, Field(gt=0.0, le=86_400.0, allow_inf_nan=False)]
    nonce: Annotated[str, Field(max_length=64)] | None = None
    mac: Annotated[str, Field(max_length=128)] | None = None


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it takes, and what it does, in one sentence."""

    name: str
    args: type[pydantic.BaseModel]
    doc: str


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command("status", NoArgs, "The `health` map as of now, and the settable parameters with their values."),
        Command("pause", NoArgs, "Go on reading the source, but do not advance the network; flag PAUSED."),
        Command("resume", NoArgs, "Advance the network again from the next sample on."),
        Command("stop", NoArgs, "End the session; the daemon answers, then exits."),
        Command("set", SetArgs, "Change parameters at the next tick boundary, all or none."),
        Command("checkpoint", OptionalPathArgs, "Write the whole state of the loop to a file; the result names it."),
        Command(
            "restore",
            PathArgs,
            "Load such a file at a tick boundary; refused if it is of another layout, or of a loop that was built "
            "otherwise.",
        ),
        Command(
            "learning",
            LearningArgs,
            "Let plasticity change weights, or freeze them; traces and eligibility follow the spikes either way.",
        ),
        Command("challenge", NoArgs, "Return a `nonce`, which `arm` proves the key with, once and within 30 s."),
        Command(
            "arm",
            ArmArgs,
            "Arm stimulation; `mac` is the HMAC-SHA256, in hex, of `arm NONCE SECONDS` under the session's key. "
            "The result has the `token` for heartbeats.",
        ),
        Command("disarm", NoArgs, "End the arming at the next tick boundary; every train stops."),
        Command("decoder", PathArgs, "Swap in a fitted decoder at a tick boundary; the one before is kept."),
        Command("rollback", NoArgs, "Swap back the decoder before the last swap."),
        Command("hello", NoArgs, "Return a `session` token for requests with `seq`; see Requests that count."),
        Command("version", NoArgs, "Versions of the package, the protocol and the state layout."),
    )
}


NETWORK_PARAMETERS: dict[str, str] = {
    "network.input_gain": "input_gain",
    "network.recurrent_gain": "recurrent_gain",
    "network.inhibition.strength_mv": "inhibition_strength_mv",
    "network.inhibition.duration_ms": "inhibition_duration_ms",
    "network.coincidence.window_ms": "coincidence_window_ms",
    "network.coincidence.min_channels": "coincidence_min_channels",
    "network.learning.rate_per_s": "learning_rate_per_s",
}
"""What `set` may change in the network: name in the session file to name among the engine's live parameters."""


def parse_args(cmd: str, args: dict[str, Any]) -> pydantic.BaseModel:
    """Check a request against the registry.

    Parameters
    ----------
    cmd : str
        Name of the command.
    args : dict
        As they came in the request.

    Returns
    -------
    BaseModel
        An instance of the command's `args` class.

    Raises
    ------
    CommandError
        There is no such command (`unknown_command`), or the arguments do not fit it (`bad_args`).
    """
    command = COMMANDS.get(cmd)
    if command is None:
        raise CommandError("unknown_command", f"{cmd[:32]!r} is not one of {', '.join(COMMANDS)}")
    try:
        return command.args.model_validate(args)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        known = ", ".join(command.args.model_fields) or "none"
        raise CommandError("bad_args", f"{cmd}: {key}: {first['msg']}; it takes: {known}") from None
