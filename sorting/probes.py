"""Where the channels of a recording are: found in the recording or beside it, or taken from what somebody names."""

import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.engine.errors import ConfigError

UTAH_PITCH_UM = 400.0
UTAH_SHAPES = {96: (10, 10), 64: (8, 8), 100: (10, 10), 128: (12, 12), 16: (4, 4), 25: (5, 5)}
"""Electrodes of arrays that are made, and their rows and columns; 96 and 128 leave out sites at the corners."""
HOW = (
    "give one with --probe: a file (.json of probeinterface, .prb, .cmp of Blackrock), utah, tetrode, linear:PITCH_UM, "
    "a Neuropixels part number such as NP1010, or MANUFACTURER/MODEL of probeinterface's library"
)

_PATTERNS = ("*.cmp", "*.prb", "*probe*.json")
_PER_BANK = 32
_MOST_CHANNELS = 1 << 16
_TETRODE_UM = 12.5


def with_probe(recording: Any, wanted: str | None = None, beside: Path | None = None) -> tuple[Any, str]:
    """Return a recording that knows where its channels are.

    Parameters
    ----------
    recording : spikeinterface.BaseRecording
        Left as it is.
    wanted : str, optional
        A file, a kind, or a name, see `HOW`. By default the recording's own probe, or a file that lies beside it.
    beside : Path, optional
        The recording's file or folder.

    Returns
    -------
    recording : spikeinterface.BaseRecording
        With a probe; channels in their order.
    source : str
        Where the probe came from, in words.

    Raises
    ------
    ConfigError
        There is no probe, it cannot be read, or it is of another number of channels.
    """
    source = wanted
    if wanted is None:
        if recording.has_probe():
            return recording, "the recording"
        found = _beside(beside) if beside is not None else []
        if len(found) != 1:
            listing = f"; {', '.join(path.name for path in found)} lie beside it: which?" if found else ""
            raise ConfigError(f"the recording does not say where its channels are{listing}; {HOW}")
        wanted, source = str(found[0]), f"{found[0].name}, beside the recording"
    names = [str(name) for name in _names(recording)]
    probe = _probe(wanted, names)
    n = int(recording.get_num_channels())
    if probe.get_contact_count() != n:
        raise ConfigError(
            f"a probe of {probe.get_contact_count()} contacts ({source}) for a recording of {n} channels; give the "
            "probe that was recorded from, or choose a stream of its channels alone"
        )
    wiring = probe.device_channel_indices
    if wiring is None or np.any(np.asarray(wiring) < 0):
        probe.set_device_channel_indices(np.arange(n))
    elif sorted(np.asarray(wiring).tolist()) != list(range(n)):
        raise ConfigError(f"the probe ({source}) is wired to channels {sorted(wiring)[:8]} ...; 0 to {n - 1} expected")
    placed = recording.clone()
    # the channels stay in the stream's order, whatever the order of the probe's contacts
    order = np.argsort(probe.device_channel_indices)
    placed.set_dummy_probe_from_locations(probe.contact_positions[order], axes="xy")
    return placed, str(source)


def utah_positions(n_channels: int) -> NDArray[np.float64]:
    """Positions of a Utah array row by row, in um, shape (n_channels, 2).

    Channel numbers of arrays are wired in many ways: only the array's own map (.cmp) has the true neighbours. What
    depends on them, the order of the proposed encoding, follows the order of channels without it.
    """
    if n_channels not in UTAH_SHAPES:
        raise ConfigError(
            f"there is no Utah array of {n_channels} channels; {', '.join(str(n) for n in sorted(UTAH_SHAPES))} are "
            "known; give the array's map (.cmp)"
        )
    rows, columns = UTAH_SHAPES[n_channels]
    sites = [(x, y) for y in range(rows) for x in range(columns)]
    middle = ((columns - 1) / 2, (rows - 1) / 2)
    # sites that are left out are those furthest from the middle: the corners
    far = sorted(sites, key=lambda site: -((site[0] - middle[0]) ** 2 + (site[1] - middle[1]) ** 2))
    left_out = set(far[: len(sites) - n_channels])
    return np.array([site for site in sites if site not in left_out], dtype=np.float64) * UTAH_PITCH_UM


def _beside(path: Path) -> list[Path]:
    folder = path if path.is_dir() else path.parent
    return sorted({found for pattern in _PATTERNS for found in folder.glob(pattern)}) if folder.is_dir() else []


def _names(recording: Any) -> list[Any]:
    names = recording.get_property("channel_name")
    return list(recording.channel_ids if names is None else names)


def _probe(wanted: str, names: list[str]) -> Any:
    import probeinterface as pi

    n = len(names)
    path = Path(wanted)
    if path.suffix.lower() in (".json", ".prb", ".cmp"):
        if not path.is_file():
            raise ConfigError(f"no probe file {path}; check the path")
        try:
            return _from_cmp(path, names) if path.suffix.lower() == ".cmp" else _from_file(path)
        except ConfigError:
            raise
        except Exception as error:  # each format fails in its own way
            raise ConfigError(
                f"{path} is no probe that can be read ({type(error).__name__}: {error!s:.200})"
            ) from error
    if wanted == "utah":
        return _of_positions(utah_positions(n))
    if wanted == "tetrode":
        if n != 4:
            raise ConfigError(f"a tetrode has 4 channels, the recording has {n}; {HOW}")
        angles = np.pi / 2.0 * np.arange(4)
        return _of_positions(_TETRODE_UM * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    if match := re.fullmatch(r"linear:(\d+(?:\.\d+)?)", wanted):
        pitch = float(match[1])
        if pitch <= 0.0:
            raise ConfigError("linear:PITCH_UM takes a distance above 0, such as linear:25")
        return _of_positions(np.stack([np.zeros(n), pitch * np.arange(n)], axis=1))
    if "/" in wanted:
        manufacturer, _, model = wanted.partition("/")
        try:
            return pi.get_probe(manufacturer, model)
        except Exception as error:  # the network's, or that there is no such file
            raise ConfigError(
                f"probeinterface's library did not give {wanted} ({type(error).__name__}: {error!s:.200}); it is read "
                "over the network: check the name and the connection, or give a file"
            ) from error
    if re.fullmatch(r"(?i)(NP|PRB)[\w-]*", wanted):
        return _neuropixels(wanted, n)
    raise ConfigError(f"no probe {wanted!r}; {HOW}")


def _of_positions(positions_um: NDArray[np.float64]) -> Any:
    import probeinterface as pi

    probe = pi.Probe(ndim=2, si_units="um")
    probe.set_contacts(positions=positions_um, shapes="circle", shape_params={"radius": 5.0})
    probe.set_device_channel_indices(np.arange(len(positions_um)))
    return probe


def _neuropixels(part: str, n: int) -> Any:
    """The contacts nearest to the tip, which is what is recorded from where nobody chooses."""
    from probeinterface.neuropixels_tools import build_neuropixels_probe

    try:
        probe = build_neuropixels_probe(part)
    except Exception as error:
        raise ConfigError(f"probeinterface knows no Neuropixels probe {part!r} ({error!s:.200})") from error
    return probe.get_slice(np.arange(n)) if probe.get_contact_count() > n else probe


def _from_file(path: Path) -> Any:
    import probeinterface as pi

    if path.suffix.lower() == ".prb":
        return _from_prb(path.read_text(encoding="utf-8"))
    probes = pi.read_probeinterface(path).probes
    # of a probe as it is in the file, anything might be of any kind
    merged = _of_positions(np.concatenate([probe.contact_positions for probe in probes]))
    wiring = [probe.device_channel_indices for probe in probes]
    if all(part is not None for part in wiring):
        merged.set_device_channel_indices(np.concatenate(wiring))
    return merged


def _from_prb(text: str) -> Any:
    """Read klusta's groups of channels. They are written as Python, which anybody may have left beside a recording.

    probeinterface would run it; here values are read, and a file with code is refused.
    """
    groups: dict[Any, Any] = {}
    for statement in ast.parse(text).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                if name.lower() == "channel_groups":
                    groups = ast.literal_eval(_Ranges().visit(value))
            case ast.Expr(value=ast.Constant()):
                pass
            case _:
                raise ValueError(
                    f"line {statement.lineno} is code, which is not run: write the probe as .json of probeinterface"
                )
    channels = [int(channel) for group in groups.values() for channel in group["channels"]]
    places = [group["geometry"][channel] for group in groups.values() for channel in group["channels"]]
    probe = _of_positions(np.array(places, dtype=np.float64))
    probe.set_device_channel_indices(channels)
    return probe


class _Ranges(ast.NodeTransformer):
    """Writes `range` out as the list that it is."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(func=ast.Name(id="range"), args=args, keywords=[]):
                numbers = range(*(ast.literal_eval(arg) for arg in args))
                if len(numbers) > _MOST_CHANNELS:
                    raise ValueError(f"{ast.unparse(node)} has more than {_MOST_CHANNELS} channels")
                return ast.List(elts=[ast.Constant(number) for number in numbers], ctx=ast.Load())
            case ast.Call(func=ast.Name(id="list"), args=[inside], keywords=[]):
                written: ast.AST = self.visit(inside)
                return written
        return node


def _from_cmp(path: Path, names: list[str]) -> Any:
    """Read Blackrock's map of an array: column, row, bank, electrode of the bank, label.

    A line belongs to the channel of its label; where labels are others, to the channel of its number.
    """
    places: dict[int, tuple[float, float]] = {}
    labels: dict[str, tuple[float, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        words = line.split()
        if len(words) < 4 or not (words[0].isdigit() and words[1].isdigit()):
            continue  # comments and the description
        if not re.fullmatch(r"[A-Za-z]", words[2]) or not words[3].isdigit():
            raise ConfigError(f"{path}, line {number}: column, row, bank (a letter) and electrode expected: {line:.80}")
        place = (UTAH_PITCH_UM * int(words[0]), UTAH_PITCH_UM * int(words[1]))
        places[(ord(words[2].upper()) - ord("A")) * _PER_BANK + int(words[3])] = place
        if len(words) > 4:
            labels[words[4]] = place
    if not places:
        raise ConfigError(f"{path} maps no electrode; lines of column, row, bank, electrode and label expected")
    if all(name in labels for name in names):
        return _of_positions(np.array([labels[name] for name in names]))
    return _of_positions(np.array([places[number] for number in sorted(places)]))
