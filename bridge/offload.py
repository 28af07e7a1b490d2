"""`[offload]` of a session file: a board outside is the network, and its answers are an input of the loop."""

from typing import Annotated

import pydantic
from pydantic import Field

from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import ConfigError, FixedPointError

MAX_DELAY_TICKS = 64
"""Longest delay of a board's answer, which is also how many answers the loop holds."""

MODULATING = ("input_gain", "recurrent_gain", "inhibition_strength_mv", "learning_rate_per_s")
"""Parameters that may change while the network runs, and whose change reaches a board with the next `stimuli`."""


class OffloadConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A board is the network: the daemon publishes its spikes, decodes them and goes by them.

    The daemon's own network goes on beside it, as a shadow that keeps the neuromodulators and `state`.

    Attributes
    ----------
    delay_ticks : int
        Tick k publishes the board's answer to tick k - delay_ticks. It must have come by then: one that has not is a
        fault of that tick.
    """

    delay_ticks: Annotated[int, Field(ge=1, le=MAX_DELAY_TICKS)]


def check_offload(offload: OffloadConfig, network: NetworkConfig, dt_ms: float, ticks_per_block: int) -> None:
    """Refuse a board that could not answer in time, or could not be this network.

    Parameters
    ----------
    offload : OffloadConfig
    network : NetworkConfig
    dt_ms : float
        Wall time of one tick.
    ticks_per_block : int
        Ticks that the loop makes at once.

    Raises
    ------
    ConfigError
        One sentence.
    """
    from neuromod.engine.fixed_network import FixedNetwork  # here, since most sessions have no board

    if ticks_per_block > MAX_DELAY_TICKS:
        raise ConfigError(
            f"offload: a block gives {ticks_per_block} ticks at once, whose answers would come too late even with a "
            f"delay of {MAX_DELAY_TICKS}: take blocks of at most {MAX_DELAY_TICKS} ticks, or remove [offload]"
        )
    if offload.delay_ticks < ticks_per_block:
        raise ConfigError(
            f"offload.delay_ticks is {offload.delay_ticks}, but a block gives {ticks_per_block} ticks at once, "
            f"whose answers come after all of them: give at least {ticks_per_block}"
        )
    try:
        FixedNetwork(network, dt_ms=dt_ms)
    except FixedPointError as error:
        raise ConfigError(f"offload: no board can be this network: {error}; change that, or remove [offload]") from None
