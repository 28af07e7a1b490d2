"""TOML as text: where a key stands in a file, and a mapping written out. The standard library only reads values."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"^\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def find_line(text: str, path: Sequence[str | int]) -> int | None:
    """Line, counted from 1, on which the value at `path` is given, or the nearest table or key that holds it.

    A scan by lines, good for error messages: it does not look inside multi-line strings or inline tables.
    """
    wanted = tuple(path)
    best: tuple[int, int] | None = None  # parts in common, line
    below: int | None = None  # of a table inside the wanted one
    table: tuple[str | int, ...] = ()
    counts: dict[tuple[str | int, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                index = counts.get(table, 0)
                counts[table] = index + 1
                table = (*table, index)
            here = table
        elif key := _KEY.match(line):
            here = (*table, *_split(key[1]))
        else:
            continue
        if here == wanted[: len(here)] and (best is None or len(here) > best[0]):
            best = (len(here), number)
        if below is None and here[: len(wanted)] == wanted:
            below = number
    if below is not None and (best is None or best[0] < len(wanted)):
        return below
    return best[1] if best else None


def to_toml(body: Mapping[str, Any]) -> str:
    """Write a mapping as TOML; what is None is left as a comment, since TOML has no word for it."""
    return "\n".join(_table(body, ())).strip() + "\n"


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(r"\"[^\"]*\"|'[^']*'|[\w-]+", dotted)
    return tuple(part.strip("\"'") for part in parts)


def _table(body: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    nested: list[str] = []
    for key, value in body.items():
        name = ".".join(_key(part) for part in (*path, key))
        if isinstance(value, Mapping):
            nested += ["", f"[{name}]", *_table(value, (*path, key))]
        elif _is_array_of_tables(value):
            for item in value:
                nested += ["", f"[[{name}]]", *_table(item, (*path, key))]
        elif value is None:
            lines.append(f"# {_key(key)} is not set")
        else:
            lines.append(f"{_key(key)} = {value_toml(value)}")
    return lines + nested


def _is_array_of_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _string(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, and for characters beyond 16 bits when written as two halves
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def value_toml(value: Any) -> str:
    """Write one value as TOML."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else str(value).lower()
        case str() | PurePath():
            return _string(str(value))
        case Mapping():
            return "{" + ", ".join(f"{_key(k)} = {value_toml(v)}" for k, v in value.items() if v is not None) + "}"
        case list() | tuple() | set() | frozenset():
            return "[" + ", ".join(value_toml(item) for item in value) + "]"
        case _:
            raise TypeError(f"TOML has no form for {type(value).__name__}")
