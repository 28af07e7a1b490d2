"""Takes a network out to hardware, and images back: files for the texts that `engine.manifest` and `published` make.

A network comes from a session file, with the weights of a checkpoint where one is given; or from a folder of images.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.link import BAUD, Protocol
from neuromod.adapters.regular_file import read_regular_file
from neuromod.bridge import checkpoint as checkpoints
from neuromod.bridge.config import SessionConfig, complete, load
from neuromod.bridge.config_errors import checked
from neuromod.engine import images, manifest, published
from neuromod.engine.arrays import NO_ARRAYS
from neuromod.engine.config import GivenWeightsConfig, NetworkConfig, with_live
from neuromod.engine.errors import ConfigError, ImageError, StimulusError
from neuromod.engine.fixed_network import FixedNetwork
from neuromod.engine.layout import N_CHANNELS

HEADER, README = "neuromod_config.vh", "README.txt"

_LARGEST_IMAGE = 1 << 20
# The board's UART carries the remainder of a bit on, so that its bits are right on average, and it is off by 3 clocks
# at the stop bit at most. With n clocks a bit (n / 2 - 3) / (9.5 n) is left for the other side: 2.1 % at 10.
_FEWEST_CLOCKS_PER_BIT = 10
_SLOWEST_BAUD = 300
_FROM_CHECKPOINT = (
    "from the checkpoint: weights, and the parameters that may change while it runs; left there: membranes, traces, "
    "eligibility, neuromodulators and counters, which the fixed-point network starts anew"
)


@dataclass(frozen=True, eq=False)
class Source:
    """A network to export, and what to say of it."""

    network: FixedNetwork
    named: str
    notes: tuple[str, ...] = ()
    output_weights: NDArray[np.int64] | None = None

    def texts(self) -> dict[str, str]:
        """Its images and their manifest, by name of file."""
        return manifest.export(
            self.network,
            source=self.named,
            neuromod=version("neuromod-bridge"),
            notes=self.notes,
            output_weights=self.output_weights,
        )


def source_of(path: Path, *, checkpoint: Path | None = None, dt_ms: float | None = None, clip: bool = False) -> Source:
    """Return the network of a session file, or of a folder of images.

    Parameters
    ----------
    path : Path
        A session file; or a folder, as for `read`.
    checkpoint : Path, optional
        What the session learnt.
    dt_ms : float, optional
        Length of a tick; without, that of the checkpoint, of the manifest, or the one that the session file says.
    clip : bool
        Clip numbers that do not fit, rather than refuse them.

    Raises
    ------
    NeuromodError
        If one of them cannot be read, or does not go with the other, or a number does not fit.
    """
    if path.is_dir():
        if checkpoint is not None or clip:
            raise ConfigError(f"{path} holds images, which are whole and fit: --checkpoint and --clip go without")
        return read([path], dt_ms=dt_ms)
    session = load(path)
    config, notes, named = complete(session.network), [], path.name
    if checkpoint is not None:
        config, learnt_ms = _learnt(config, checkpoint)
        if dt_ms is not None and dt_ms != learnt_ms:
            raise ConfigError(f"{checkpoint} has ticks of {learnt_ms:g} ms: leave --dt-ms out")
        dt_ms = learnt_ms
        notes.append(_FROM_CHECKPOINT)
        named += f" and {checkpoint.name}"
    elif dt_ms is None:
        dt_ms = tick_length_ms(session)
    return Source(FixedNetwork(config, dt_ms=dt_ms, clip=clip), named, tuple(notes))


def tick_length_ms(session: SessionConfig) -> float:
    """Length of a tick that a session file says; a stream of signal slower than its blocks makes it longer."""
    source = session.source
    block_ms = getattr(source, "block_ms", None) or getattr(source, "bin_ms", None) or session.timing.block_ms
    return float(block_ms / max(1.0, np.ceil(block_ms - 1e-9)))


def read(paths: Sequence[Path], *, dt_ms: float | None = None) -> Source:
    """Return the network of images: a folder with `parameters.json`, `registers.mem` alone, or a published set.

    Parameters
    ----------
    paths : sequence of Path
        One folder, or files.
    dt_ms : float, optional
        Length of a tick where no manifest says it: 1 ms.

    Raises
    ------
    NeuromodError
        If there are none, they cannot be read, or are not what they should be.
    """
    files = _image_files(paths)
    named = paths[0].name if len(paths) == 1 else ", ".join(path.name for path in files.values())
    texts = {name: _read_text(path) for name, path in files.items()}
    if manifest.MANIFEST in files:
        if dt_ms is not None:
            raise ConfigError(f"{files[manifest.MANIFEST]} says how long a tick is: leave --dt-ms out")
        network, told = manifest.read(texts, f"{files[manifest.MANIFEST].parent}/")
        last = texts.get(manifest.OUTPUT_IMAGE)
        output = manifest.read_output_weights(last) if last is not None else None
        return Source(network, told.source, told.notes, output)
    if manifest.REGISTERS_IMAGE in files:
        path = files[manifest.REGISTERS_IMAGE]
        state = images.read_registers(texts[manifest.REGISTERS_IMAGE], str(path))
        return Source(FixedNetwork.from_registers(state, dt_ms=1.0 if dt_ms is None else dt_ms), named)
    found = published.read_published(texts)
    network = published.to_network(found, dt_ms=1.0 if dt_ms is None else dt_ms)
    return Source(network, named, (published.NOTE,), found.output_weights)


def write(folder: Path, texts: Mapping[str, str], *, force: bool = False) -> None:
    """Write files into a folder, which is made where it is not there.

    Raises
    ------
    ConfigError
        If one of them is there already and `force` is not set, or cannot be written.
    """
    try:
        there = sorted(name for name in texts if (folder / name).exists())
        if there and not force:
            raise ConfigError(
                f"{folder / there[0]} is there already; give another folder with -o, or --force to replace it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); choose another folder") from None


def run(network: FixedNetwork, n_ticks: int, stimuli: Path | None, level: float) -> NDArray[np.bool_]:
    """Run a network on the rows of a `.npy` file, over and over, or on one level for all channels.

    Returns
    -------
    ndarray of bool, shape (n_ticks, 16)
        Which channels fired at which tick.

    Raises
    ------
    ConfigError
        If the file cannot be read as stimuli.
    """
    rows: Any = np.full((1, N_CHANNELS), level)
    if stimuli is not None:
        try:
            with stimuli.open("rb") as file:  # numpy leaves open what it cannot read
                rows = np.load(file)
        except NO_ARRAYS as error:
            raise ConfigError(f"{stimuli} cannot be read as a .npy file: {error}") from None
        if not isinstance(rows, np.ndarray):
            raise ConfigError(f"{stimuli} holds several arrays; expected a .npy file, with one")
        if rows.ndim != 2 or rows.shape[1] != N_CHANNELS or not len(rows) or rows.dtype.kind not in "fiu":
            raise ConfigError(
                f"{stimuli} holds {rows.dtype} of shape {rows.shape}; expected numbers, (n, {N_CHANNELS})"
            )
    try:
        return network.run(np.take(rows, np.arange(n_ticks) % len(rows), axis=0))
    except StimulusError as error:
        raise ConfigError(f"{stimuli or '--stimulus'}: {error}") from None


def verilog(source: Source, *, clock_hz: int, baud: int | None, protocol: Protocol) -> dict[str, str]:
    """Return all files of a board with this network: our Verilog, its images, and the header that configures it.

    Parameters
    ----------
    source : Source
        The network.
    clock_hz : int
        Clock of the core.
    baud : int, optional
        Of the serial line; without, `BAUD`.
    protocol : {"neuromod", "siliconbridge"}
        What the board speaks.

    Raises
    ------
    ConfigError
        If the clock cannot make the baud rate.
    """
    from neuromod.adapters.fpga.verilated import HDL

    rate = BAUD[protocol] if baud is None else baud
    check_baud(clock_hz, rate)
    ours = [path for pattern in ("*.v", "*.xdc", "*.tcl") for path in sorted(HDL.glob(pattern))]
    texts = {path.name: path.read_text(encoding="utf-8") for path in ours} | source.texts()
    digest = manifest.network_sha256(source.network.config)
    header = _header(source.named, digest, clock_hz, rate, protocol)
    return texts | {HEADER: header, README: _readme(source, clock_hz, rate, protocol)}


def check_baud(clock_hz: int, baud: int) -> None:
    """Refuse a baud rate that the board's UART cannot make.

    Raises
    ------
    ConfigError
        If a bit has so few clocks that the other side may not be wrong by 2 %, or so many that the UART cannot count.
    """
    if clock_hz < _FEWEST_CLOCKS_PER_BIT * baud:
        raise ConfigError(
            f"a clock of {clock_hz} Hz cannot make {baud} baud within 2 %: {clock_hz / baud:.3g} clocks a bit, "
            f"expected at least {_FEWEST_CLOCKS_PER_BIT}; take up to {clock_hz // _FEWEST_CLOCKS_PER_BIT} baud, or a "
            "faster clock"
        )
    if baud < _SLOWEST_BAUD or clock_hz >= 2**30:
        raise ConfigError(f"expected at least {_SLOWEST_BAUD} baud and a clock below 2**30 Hz, got {baud}, {clock_hz}")


def _learnt(config: NetworkConfig, path: Path) -> tuple[NetworkConfig, float]:
    """Configuration with what a checkpoint's network has learnt, and the length of its ticks in ms."""
    from neuromod.engine.network import SpikingNetwork, as_checkpoint

    block = checkpoints.network_block(path)
    dt_ms = float(block["dt_ms"])
    network = SpikingNetwork(config, dt_ms=dt_ms)
    network.restore(as_checkpoint(block.tobytes()))  # which checks that it was built from this configuration
    given = checked(GivenWeightsConfig, {"matrix_mv": network.weights.tolist()}, "", str(path))
    return with_live(config, block["live"].tolist()).model_copy(update={"weights": given}), dt_ms


def _image_files(paths: Sequence[Path]) -> dict[str, Path]:
    """Files of a set, by name."""
    for path in paths:
        if not _is_there(path):
            raise ConfigError(f"{path}: no such file or folder; name a folder of images, or the images")
    if len(paths) == 1 and paths[0].is_dir():
        folder = paths[0]
        if _is_there(folder / manifest.MANIFEST):
            names = {manifest.MANIFEST, *_named_in(folder / manifest.MANIFEST)}
            return {name: folder / name for name in sorted(names) if _is_there(folder / name)}
        if _is_there(folder / manifest.REGISTERS_IMAGE):
            return {manifest.REGISTERS_IMAGE: folder / manifest.REGISTERS_IMAGE}
        paths = sorted(path for path in folder.glob("*.mem") if published.part_of(path.name) is not None)
        if not paths:
            raise ConfigError(
                f"{folder} holds no images: expected {manifest.MANIFEST}, {manifest.REGISTERS_IMAGE}, or a set of "
                "thresholds.mem, decay.mem and weights.mem"
            )
    files = {path.name: path for path in paths}
    if len(files) < len(paths):
        raise ConfigError("two images have the same name; give the files of one set")
    if len(files) > 1 and (manifest.REGISTERS_IMAGE in files or manifest.MANIFEST in files):
        raise ConfigError(f"give the folder of {manifest.MANIFEST}, or {manifest.REGISTERS_IMAGE} alone")
    return files


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - that of pathlib raises where a folder is closed to us


def _named_in(path: Path) -> list[str]:
    return list(manifest.read_manifest(_read_text(path), str(path)).files)


def _read_text(path: Path) -> str:
    try:
        return read_regular_file(path, _LARGEST_IMAGE).decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ImageError(f"{path} is no text (byte {error.start})") from None


def _header(named: str, digest: str, clock_hz: int, baud: int, protocol: Protocol) -> str:
    return f"""// Written by 'neuromod export verilog': what the top is built with.
// Network: {named!r}
// Configuration: sha256 {digest}

`ifndef NEUROMOD_CONFIG_VH
`define NEUROMOD_CONFIG_VH

`define NEUROMOD_IMAGE "{manifest.REGISTERS_IMAGE}"
`define NEUROMOD_CLOCK_HZ {clock_hz}
`define NEUROMOD_BAUD {baud}
// 0: ours, with frames and checksums; 1: SiliconBridge v3.0
`define NEUROMOD_PROTOCOL {int(protocol == "siliconbridge")}

`endif
"""


def _readme(source: Source, clock_hz: int, baud: int, protocol: Protocol) -> str:
    notes = "".join(f"- {note}\n" for note in source.notes)
    return f"""A network of neuromod in Verilog
================================

Network: {source.named}
Clock {clock_hz} Hz, serial line of {baud} baud, protocol {protocol}.
{notes}
Build, in this folder, with Vivado, for a Nexys A7-100T:

    vivado -mode batch -source build.tcl

It writes build/nexys_a7_top.bit, and reports of timing and utilisation beside it; where timing is not met it ends with
an error. That board's clock has 100000000 Hz: another --clock-hz is for a top of your own around neuromod_board.v.

neuromod_config.vh says clock, baud rate, protocol and image; registers.mem is the network, with which the board comes
up. To change the network, export again, or write its registers over the serial line. parameters.json says what lies in
each .mem file, what was rounded or clipped, and their checksums.

What was tried: the Verilog runs in Verilator and is compared bit for bit with the reference in fixed point.
What was not: neither Vivado nor a board was at hand. Timing after routing, the pins and the USB bridge are for you to
see; read the timing report before you trust a board.
"""
