"""All targets of fuzzing, by name."""

from fuzz import files, links, messages
from fuzz.target import Target

TARGETS: dict[str, Target] = {target.name: target for target in (*messages.TARGETS, *links.TARGETS, *files.TARGETS)}
