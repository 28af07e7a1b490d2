"""What a client may do: four roles, and how libzmq tells who sent a message.

The daemon's authentication gives each connection a user id, ``X:NAME``; libzmq hands it on with every message. X is one
character, 64 plus the mask of the roles, so that compiled code reads the roles off the first byte.
"""

import enum
from dataclasses import dataclass
from typing import Self

from neuromod.bridge import wire

_MASK_AT = 64  # what the mask is added to: every mask then gives a printable character


class Role(enum.IntFlag):
    """What the key of a client is good for; any combination."""

    OBSERVE = 1
    FEED = 2
    STIMULATE = 4
    CONTROL = 8


EVERY_ROLE = Role.OBSERVE | Role.FEED | Role.STIMULATE | Role.CONTROL
NO_ROLE = Role(0)
_ANY_INPUT = Role.FEED | Role.STIMULATE | Role.CONTROL

SOCKET_ROLES: dict[str, Role] = {"ingest": _ANY_INPUT, "output": Role.OBSERVE, "control": EVERY_ROLE}
"""Any of which a key must have to be let in at a socket."""

INGEST_ROLES: dict[bytes, Role] = {
    wire.TOPIC_STIMULI: Role.FEED,
    wire.TOPIC_MODULATORS: Role.FEED,
    wire.TOPIC_REWARD: Role.FEED,
    wire.TOPIC_STRESS: Role.FEED,
    wire.TOPIC_BOARD: Role.FEED,
    wire.TOPIC_EVENT: _ANY_INPUT,
    wire.TOPIC_ALIVE: _ANY_INPUT,
    wire.TOPIC_HEARTBEAT: Role.STIMULATE,
    wire.TOPIC_STIMULATE: Role.STIMULATE,
    wire.TOPIC_STOP: _ANY_INPUT,
}
"""Any of which the sender of an ingest message must have."""

COMMAND_ROLES: dict[str, Role] = {
    "status": EVERY_ROLE,
    "version": EVERY_ROLE,
    "hello": EVERY_ROLE,
    "challenge": Role.STIMULATE,
    "arm": Role.STIMULATE,
    "disarm": Role.STIMULATE | Role.CONTROL,
}
"""Any of which the sender of a command must have; commands that are not listed need `control`."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sent a message: the name of the key, and what it may do. Without keys everybody may do everything."""

    name: str = "anybody"
    roles: Role = EVERY_ROLE

    @classmethod
    def of(cls, user_id: str | None) -> Self:
        """Read the user id of a message; None or empty where the connection has none, as without keys."""
        if not user_id:
            return cls()
        return cls(user_id[2:], Role(ord(user_id[0]) - _MASK_AT & int(EVERY_ROLE)))

    @property
    def user_id(self) -> str:
        """The user id that a connection of this sender gets."""
        return f"{chr(_MASK_AT + int(self.roles))}:{self.name}"

    def may(self, any_of: Role) -> bool:
        """Say whether the sender has any of these roles."""
        return bool(self.roles & any_of)


def names_of(roles: Role) -> list[str]:
    """Name the roles, as they are written in files and commands."""
    return [role.name.lower() for role in Role if role.name and role in roles]


def roles_of(names: list[str]) -> Role:
    """Return the roles of these names.

    Raises
    ------
    ValueError
        One sentence where a name is none of the four, or there is none at all.
    """
    known = names_of(EVERY_ROLE)
    found = NO_ROLE
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no role; choose from {', '.join(known)}")
        found |= Role[name.upper()]
    if not found:
        raise ValueError(f"a key without a role is good for nothing; choose from {', '.join(known)}")
    return found
