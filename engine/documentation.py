"""Tables of the neuron models and of the state block, from the declarations that the tick itself uses.

`neuromod models` shows them, and MODELS.md holds them; the tick does not come here.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from neuromod.engine.layout import BLOCK_BYTES, LAYOUT, LAYOUT_VERSION
from neuromod.engine.models.catalogue import MODELS
from neuromod.engine.models.model import Model

CRATE_BYTES = 2376
"""State of the network in the Rust crate (neuromod 0.3.0) that this engine succeeds, as measured."""

# what the end of a name says of its unit; the first that fits
_UNITS = {
    "_per_mv_ms": "1/(mV ms)",
    "_per_ms": "1/ms",
    "_uf_cm2": "uF/cm2",
    "_ms_cm2": "mS/cm2",
    "_ua_cm2": "uA/cm2",
    "_mohm": "MOhm",
    "_pf": "pF",
    "_ns": "nS",
    "_na": "nA",
    "_pa": "pA",
    "_mv": "mV",
    "_ms": "ms",
    "temperature_c": "degree C",
}


class Table(NamedTuple):
    """A table of text: its title, the heads of its columns, its rows."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def unit_of(name: str) -> str:
    """Unit of a parameter or a variable, which its name ends in; "" where it names none."""
    return next((unit for end, unit in _UNITS.items() if name.endswith(end)), "")


def overview() -> Table:
    """All models, one a row."""
    return Table(
        "Models",
        ("model", "what it is", "input", "presets"),
        tuple((m.name, m.title, _unit(m.input_unit), _few(m.presets)) for m in MODELS),
    )


def input_of(model: Model) -> str:
    """How a model is driven, in a sentence or two."""
    per_mv = model.input_per_mv(model.complete({}))
    return (
        f"Drive: {_drive(model)} ({_unit(model.input_unit)}) unless a preset, or `bias` and `gain`, say otherwise, "
        f"held to +-{_number(model.input_limit)}. 1 mV of the interneuron's inhibition takes {_number(per_mv)} off, "
        "which at the default parameters is what 1 mV across the passive membrane takes."
    )


def tables(model: Model) -> list[Table]:
    """Parameters, state and, where it has any, presets of a model."""
    defaults = model.complete({})
    start = model.start(defaults)
    found = [
        Table(
            "Parameters",
            ("parameter", "unit", "default", "least", "greatest", "meaning"),
            tuple(
                (p.name, unit_of(p.name), _number(p.default), _number(p.low), _number(p.high), p.meaning)
                for p in model.parameters
            ),
        ),
        Table(
            "State",
            ("variable", "unit", "at the start", "meaning"),
            tuple(
                (v.name, unit_of(v.name), _number(value), v.meaning)
                for v, value in zip(model.variables, start, strict=True)
            ),
        ),
    ]
    if model.presets:
        rows = ((name, _drive(model, name), _changes(model.complete({}, name), defaults)) for name in model.presets)
        found.append(Table("Presets", ("preset", "drive", "differs from the defaults in"), tuple(rows)))
    return found


def layout() -> Table:
    """The fields of the state block."""
    rows = []
    for field in LAYOUT:
        size = np.dtype((field.dtype, field.shape)).itemsize
        shape = " x ".join(str(n) for n in field.shape)
        rows.append((str(field.offset), str(size), f"`{field.dtype}`", shape, field.name))
    return Table("State block", ("offset", "bytes", "dtype", "shape", "field"), tuple(rows))


def as_data(model: Model) -> dict[str, Any]:
    """A model as plain data, for programs: what the tables say, with numbers as numbers."""
    defaults = model.complete({})
    return {
        "name": model.name,
        "number": model.number,
        "title": model.title,
        "reference": model.reference,
        "input": {
            "unit": model.input_unit,
            "limit": model.input_limit,
            "gain": model.gain,
            "bias": model.bias,
            "per_mv": model.input_per_mv(defaults),
        },
        "parameters": [
            {
                "name": p.name,
                "unit": unit_of(p.name),
                "default": p.default,
                "least": p.low,
                "greatest": p.high,
                "meaning": p.meaning,
            }
            for p in model.parameters
        ],
        "variables": [
            {"name": v.name, "unit": unit_of(v.name), "start": float(value), "meaning": v.meaning}
            for v, value in zip(model.variables, model.start(defaults), strict=True)
        ],
        "presets": {name: model.complete({}, name) for name in model.presets},
        "preset_inputs": {name: dict(zip(("gain", "bias"), model.input(name), strict=True)) for name in model.presets},
    }


def markdown() -> str:
    """The text of MODELS.md."""
    parts = [
        "# Neuron models",
        "Written by `neuromod models --markdown` from the declarations in [models/](models): edit those, and write it "
        "anew. `neuromod models NAME` shows the same in a terminal, with `--json` for programs. Each model's file has "
        "its mathematics, its method of integration and its sources.",
        _markdown(overview()),
    ]
    for model in MODELS:
        parts += [
            f"## `{model.name}`: {model.title}",
            f"{model.reference}. Source: [models/{model.name}.py](models/{model.name}.py).",
            input_of(model),
            *(_markdown(table) for table in tables(model)),
        ]
    parts += [
        "## State block",
        f"The whole state of a network, parameters, weights and random numbers included, is one block of {BLOCK_BYTES} "
        f"bytes (layout {LAYOUT_VERSION}); that of the Rust crate that this engine succeeds has {CRATE_BYTES}. "
        "[layout.py](layout.py) says what each field is; numbers are little-endian, arrays in C order, and the rows of "
        "`parameters`, `variables` and `derived` are those of a channel's model.",
        _markdown(layout()),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    lines = [table.columns, ("---",) * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _drive(model: Model, preset: str | None = None) -> str:
    gain, bias = model.input(preset)
    return f"{_number(bias)} {'-' if gain < 0 else '+'} {_number(abs(gain))} x stimulus"


def _changes(parameters: Mapping[str, float], defaults: Mapping[str, float]) -> str:
    """What a preset changes; it may be nothing where a published set is the default."""
    changed = (f"{name} {_number(value)}" for name, value in parameters.items() if value != defaults[name])
    return ", ".join(changed) or "nothing"


def _few(names: Mapping[str, Any]) -> str:
    """Names in a line, the first of them where they are many."""
    shown = list(names)
    return ", ".join(shown) if len(shown) <= 5 else f"{', '.join(shown[:4])} and {len(shown) - 4} more"


def _unit(unit: str) -> str:
    return "no unit" if unit in ("", "1") else unit


def _number(value: float) -> str:
    # `+ 0.0` turns a negative zero, and a start of 0 that carries one, into plain 0
    return f"{value + 0.0:.6g}"
