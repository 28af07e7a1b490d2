"""What `neuromod adapter fpga` is to do, and what it refuses to."""

from typing import Annotated, Literal

from pydantic import Field

from neuromod.adapters.fpga.config import FpgaConfig
from neuromod.bridge import wire
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.peer import PeerConfig
from neuromod.bridge.safety_config import is_sent
from neuromod.engine.errors import ConfigError
from neuromod.engine.fixed_network import FixedNetwork

FAULTS = ".faults"
"""What its events are called, behind its name."""


class AdapterConfig(PeerConfig, frozen=True, extra="forbid"):
    """A board's process.

    Attributes
    ----------
    fpga : FpgaConfig
        The board.
    mode : {"mirror", "offload"}
        Whether it follows the daemon's network, or is it.
    name : str
        Under which it tells the daemon that it lives.
    """

    fpga: FpgaConfig
    mode: Literal["mirror", "offload"] = "mirror"
    name: Annotated[str, Field(min_length=1, max_length=wire.MAX_NAME_CHARACTERS - len(FAULTS))] = "fpga"


def check_session(config: AdapterConfig, session: SessionConfig | None) -> None:
    """Refuse what cannot work or must not be.

    Raises
    ------
    ConfigError
        If the session does not publish what a board needs, or a board whose answers may be damaged unseen would be the
        network of a session that may stimulate.
    FixedPointError
        If hardware does not have what the network asks for.
    """
    if session is None:
        if config.mode == "offload":
            raise ConfigError("mode offload needs the daemon's session file: give it with --config")
        return
    FixedNetwork(session.network)
    if not session.publish.stimuli or session.publish.spikes != "every":
        raise ConfigError('a board needs every tick: set stimuli = true and spikes = "every" under [publish]')
    if (session.offload is None) != (config.mode == "mirror"):
        raise ConfigError(
            "mode offload needs a daemon that waits for the board: add [offload] with delay_ticks to the session"
            if session.offload is None
            else "the session has [offload], so the board is its network: give --mode offload, or remove the section"
        )
    if config.mode == "mirror":
        return
    if config.fpga.decimate != 1:
        raise ConfigError("a network of longer steps cannot be the session's: leave decimate to mode mirror")
    if config.fpga.protocol == "siliconbridge" and session.stimulation and is_sent(session.stimulation.mode):
        raise ConfigError(
            f"stimulation.mode is {session.stimulation.mode}, and SiliconBridge has no checksum: a bit that flips on "
            'the line could become a pulse; use a board that speaks our protocol, mode = "dry_run", or --mode mirror'
        )
