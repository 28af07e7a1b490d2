"""From pydantic's errors to sentences that name the key, its line and the fix."""

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from neuromod.bridge.toml_text import find_line
from neuromod.engine.errors import ConfigError
from neuromod.engine.models.catalogue import MODELS

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound=pydantic.BaseModel)

_SUBJECT = re.compile(r"^\w+ should")  # "Input should", "String should", ...

_CHANNEL = re.compile(r"channel (\d+)")  # ... 3: model lif has no preset 'x'; ... 14 is the coincidence detector

# unit of a key's ending: (what it measures, how many of its smallest unit)
_UNITS = {
    "ns": ("time", 1.0),
    "us": ("time", 1e3),
    "ms": ("time", 1e6),
    "s": ("time", 1e9),
    "sec": ("time", 1e9),
    "seconds": ("time", 1e9),
    "min": ("time", 60e9),
    "hz": ("frequency", 1.0),
    "khz": ("frequency", 1e3),
    "uv": ("voltage", 1.0),
    "mv": ("voltage", 1e3),
    "v": ("voltage", 1e6),
    "ua": ("current", 1.0),
    "ma": ("current", 1e3),
}


def checked(model: type[Model], raw: dict[str, Any], text: str, where: str) -> Model:
    """Return a configuration, checked.

    Parameters
    ----------
    model : type
        What it is to be.
    raw : dict
        What a file or a command line said, as read from TOML.
    text : str
        The text it was read from, for line numbers.
    where : str
        Name of the file.

    Raises
    ------
    ConfigError
        One sentence for each fault.
    """
    try:
        return model.model_validate(raw)
    except pydantic.ValidationError as error:
        raise ConfigError(_explain(error, model, raw, text, where)) from None


def _explain(
    error: pydantic.ValidationError, model: type[pydantic.BaseModel], raw: dict[str, Any], text: str, where: str
) -> str:
    sentences: dict[Path, list[str]] = {}
    details = error.errors(include_url=False)
    unknown = [str(detail["loc"][-1]) for detail in details if detail["type"] == "extra_forbidden"]
    for detail in details:
        path = _path_in(raw, detail)
        if detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]:
            continue  # only what is well-formed counts there, and what is not is told by itself
        if detail["type"] == "missing" and difflib.get_close_matches(str(path[-1]), unknown, n=1):
            continue  # it is there, misspelt, and is told as that
        if detail["type"] == "combination":
            path = tuple(str(detail["ctx"]["key"]).split("."))
        if path[:1] == ("network",) and detail["type"] == "value_error":
            parameter = _unknown_parameter(detail["input"], path)
            if parameter is not None:
                path, value = parameter
                sentences.setdefault(path, []).append(_unknown_key(path, value, _parameter_names()))
                continue
            path, message = _blamed(path, detail)
            sentences.setdefault(path, []).append(f"{'.'.join(map(str, path))}: {message}")
            continue
        sentences.setdefault(path, []).append(_sentence(detail, path, model))
    found = []
    for path, said in _first_of_each_array(sentences):
        line = find_line(text, path) if path else None
        place = f"{where}, line {line}" if line else where
        # a value that fits no member of a union is refused by each of them: one fault, not several
        found.append(f"{place}: {'; or: '.join(dict.fromkeys(said))}")
    return "\n".join(found)


def _sentence(detail: ErrorDetails, path: Path, model: type[pydantic.BaseModel]) -> str:
    key = ".".join(str(part) for part in path)
    kind, message = detail["type"], detail["msg"]
    if kind == "extra_forbidden":
        return _unknown_key(path, detail["input"], list(_known_keys(model, detail["loc"][:-1])))
    if kind == "missing":
        return f"{key} is missing; give it a value ('neuromod init' writes a commented example)"
    if kind == "combination":
        return message
    if kind == "union_tag_invalid":  # every union of ours goes by its members' kind
        return f"{key}.kind is {detail['ctx']['tag']!r}, but must be one of {detail['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return f"{key}.kind is missing; it says of what kind {key} is"
    message = _plain(message)
    if kind in ("value_error", "assertion_error"):
        return f"{key}: {message}" if key else message
    if kind in ("too_short", "too_long"):
        bound = f"at least {detail['ctx'].get('min_length')}"
        if kind == "too_long":
            bound = f"at most {detail['ctx'].get('max_length')}"
        return f"{key} should have {bound} items, not {len(detail['input'])}"
    if kind in ("model_type", "dict_type"):
        message = "should be a table"
    shown = "a table" if isinstance(detail["input"], dict) else repr(detail["input"])
    shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
    return f"{key} {_SUBJECT.sub('should', message)}, not {shown}"


def _plain(message: str) -> str:
    return message.replace("Value error, ", "").removeprefix("Assertion failed, ")


def _blamed(path: Path, detail: ErrorDetails) -> tuple[Path, str]:
    """Key of a network's table that a complaint about the whole table is about, and the complaint.

    The table is known from the location, or for a channel from the words, since channels are checked once the whole
    network has been read; the key is the first one of the table that the words name.
    """
    table, message = detail["input"], _plain(detail["msg"])
    if (channel := _CHANNEL.match(message)) and isinstance(table, dict):
        path, table = (*path, "channels", channel[1]), table.get("channels", {}).get(channel[1])
        message = message.removeprefix(f"{channel[0]}: ")
    if not isinstance(table, dict):
        return path, message
    keys = {key: (*path, key) for key in table if key != "model"}  # each complaint begins with the model's name
    if isinstance(table.get("parameters"), dict):
        keys |= {key: (*path, "parameters", key) for key in table["parameters"]}
    named = [word for word in re.findall(r"\w+", message) if word in keys]
    return (keys[named[0]] if named else path), message


def _first_of_each_array(sentences: dict[Path, list[str]]) -> Iterator[tuple[Path, list[str]]]:
    """Of many faults in one array of numbers, give the first with the number of the rest: a mask has 256."""
    arrays: dict[Path, list[Path]] = {}
    for path in sentences:
        array = path
        while array and isinstance(array[-1], int):
            array = array[:-1]
        arrays.setdefault(array if array != path else (*path, "itself"), []).append(path)
    for first, *others in arrays.values():
        rest = f"; and {len(others)} more in the same array" if others else ""
        yield first, [*sentences[first][:-1], sentences[first][-1] + rest]


def _unknown_key(path: Path, value: Any, known: list[str]) -> str:
    name = str(path[-1])
    full = ".".join(str(part) for part in path)
    if unit := _unit_fault(name, value, known):
        return f"{full} {unit}"
    if path[0] == "network":
        parameters = _parameter_names()
        if unit := _unit_fault(name, value, parameters):
            return f"{full} {unit}, in the table parameters of sensory, interneuron or a channel"
        if name in parameters:
            return f"{full} is a parameter of the model: write it in the table parameters of sensory or of a channel"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"{full} is not a known key: did you mean {close[0]}?"
    return f"{full} is not a known key: remove it, or use one of {', '.join(sorted(known))}"


def _unit_fault(name: str, value: Any, known: list[str]) -> str | None:
    """Say what is wrong with the unit in a key, where that is what is wrong with it."""
    stem, unit = _split_unit(name)
    for candidate in known:
        candidate_stem, candidate_unit = _split_unit(candidate)
        if candidate_unit is None or candidate_stem != stem or candidate == name:
            continue
        if unit is None:
            return f"needs its unit in its name: write {candidate}"
        if _UNITS[unit][0] != _UNITS[candidate_unit][0]:
            return f"has the wrong unit: it is given as {candidate}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            candidate += f" = {value * _UNITS[unit][1] / _UNITS[candidate_unit][1]:.12g}"
        return f"has the wrong unit: write {candidate}"
    return None


def _parameter_names() -> list[str]:
    """Names of the parameters of all neuron models: the one table of a session whose keys its model does not list."""
    return [parameter.name for model in MODELS for parameter in model.parameters]


def _unknown_parameter(table: Any, path: Path) -> tuple[Path, Any] | None:
    """Path and value of the first entry, of any table `parameters` below `path`, that no neuron model has."""
    if not isinstance(table, dict):
        return None
    for key, value in table.items():
        inside = (*path, key)
        if key == "parameters" and isinstance(value, dict):
            found = next(((*inside, name) for name in value if name not in _parameter_names()), None)
            if found is not None:
                return found, value[found[-1]]
        elif (deeper := _unknown_parameter(value, inside)) is not None:
            return deeper
    return None


def _split_unit(key: str) -> tuple[str, str | None]:
    stem, _, unit = key.rpartition("_")
    return (stem, unit) if stem and unit in _UNITS else (key, None)


def _path_in(raw: Any, detail: ErrorDetails) -> Path:
    """Drop from the location of an error what is not in the file: the tags of unions."""
    path: list[str | int] = []
    loc = detail["loc"]
    for index, part in enumerate(loc):
        inside = (isinstance(raw, dict) and part in raw) or (
            isinstance(raw, list) and isinstance(part, int) and part < len(raw)
        )
        if inside:
            raw = raw[part]
            path.append(part)
        elif index == len(loc) - 1 and detail["type"] == "missing":
            path.append(part)
    return tuple(path)


def _known_keys(model: type[pydantic.BaseModel], loc: Sequence[str | int]) -> Iterator[str]:
    """Names of the keys that are known at a location, aliases included."""
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [
            found
            for candidate in models
            if part in candidate.model_fields
            for found in _models_in(candidate.model_fields[part].annotation)
        ]
        tagged = [candidate for candidate in models if _is_tagged(candidate, part)]
        models = inner or tagged or models
    for candidate in models:
        yield from candidate.model_fields


def _is_tagged(model: type[pydantic.BaseModel], tag: str) -> bool:
    return model.__name__ == tag or any(
        tag in typing.get_args(field.annotation) for field in model.model_fields.values() if field.default == tag
    )


def _models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, pydantic.BaseModel):
            yield annotation
        return
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)
