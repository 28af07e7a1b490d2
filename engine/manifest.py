"""The images of a network together: all its files as texts, and `parameters.json`, which says what lies in which.

Texts in, texts out: who calls it reads and writes the files.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from neuromod.engine import images
from neuromod.engine.config import NetworkConfig
from neuromod.engine.errors import FixedPointError, ImageError
from neuromod.engine.fixed_network import MAX_FIXED_DT_MS, FixedNetwork, misfit
from neuromod.engine.fixed_registers import register
from neuromod.engine.layout import COINCIDENCE
from neuromod.engine.layout_types import State
from neuromod.engine.network import MIN_DT_MS

MANIFEST = "parameters.json"
REGISTERS_IMAGE = "registers.mem"
OUTPUT_IMAGE = "parameters_output_weights.mem"
VERSION: Literal[1] = 1
"""Raised whenever the images, or what the manifest says, change their meaning."""


class ImageEntry(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What one image holds.

    Attributes
    ----------
    holds, order, unit : str
        In words.
    format : str
        Q8.8 and the like; or that each word has the format of its register.
    signed : bool
        Two's complement.
    digits : int
        Hexadecimal digits of a word; a word a line.
    shape : tuple of int
        Of the numbers, in C order.
    sha256 : str
        Of the file, byte for byte.
    """

    holds: str
    format: str
    signed: bool
    digits: int
    shape: tuple[int, ...]
    order: str
    unit: str
    sha256: str


class Clipped(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A number that did not fit its register: its value, and the nearest, which the register holds instead."""

    name: str
    value: pydantic.FiniteFloat
    held: pydantic.FiniteFloat
    unit: str


class Rounded(pydantic.BaseModel, frozen=True, extra="forbid"):
    """By how much rounding moved the numbers of a register, or of an image, at most."""

    name: str
    at_most: pydantic.FiniteFloat
    unit: str


class Manifest(pydantic.BaseModel, frozen=True, extra="forbid"):
    """`parameters.json`.

    Attributes
    ----------
    format, version
        That this is one, and of which version.
    neuromod : str
        Version of the program that wrote it.
    source : str
        What the network was made from, in words.
    dt_ms : float
        Wall time of a tick.
    network : NetworkConfig
        The configuration, complete.
    network_sha256 : str
        Of that, as `network_sha256` computes it.
    files : dict of str to ImageEntry
        The images, by name.
    clipped : tuple of Clipped
        Numbers that did not fit and were clipped, since that was asked for.
    rounded : tuple of Rounded
        What rounding took, from the configuration to the registers and from these to the smaller images.
    notes : tuple of str
        What else one has to know.
    """

    format: Literal["neuromod-images"] = "neuromod-images"
    version: Literal[1] = VERSION
    neuromod: str
    source: str
    dt_ms: Annotated[float, pydantic.Field(ge=MIN_DT_MS, le=MAX_FIXED_DT_MS)]
    network: NetworkConfig
    network_sha256: str
    files: dict[str, ImageEntry]
    clipped: tuple[Clipped, ...] = ()
    rounded: tuple[Rounded, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Image:
    """What the manifest says of an image."""

    shape: tuple[int, ...]
    signed: bool
    holds: str
    order: str
    unit: str


_IMAGES = {
    "parameters.mem": _Image(
        (16,),
        True,
        "thresholds",
        f"one word a neuron; {COINCIDENCE} has no neuron here, and a threshold that a neuron does not reach",
        "mV",
    ),
    "parameters_weights.mem": _Image(
        (16, 16),
        True,
        "weights, as membranes see them",
        "neuron-major: row = target, column = source; the matrices of neuromod are row = source",
        "mV per spike",
    ),
    "parameters_decay.mem": _Image(
        (16,),
        False,
        "decays: the part that a tick leaves of a membrane, 1 - rise",
        f"one word a neuron; {COINCIDENCE} has no neuron here, and 1",
        "per tick",
    ),
    OUTPUT_IMAGE: _Image(
        images.OUTPUT_SHAPE,
        True,
        "weights of an output layer, which the network does not have: as they came",
        "row = neuron, column = output",
        "",
    ),
}
_WORDS: dict[str, Callable[[State], NDArray[np.int64]]] = {
    "parameters.mem": images.thresholds,
    "parameters_weights.mem": images.weights,
    "parameters_decay.mem": images.decays,
}
"""Images that follow from the registers."""


def network_sha256(config: NetworkConfig) -> str:
    """Hash of a configuration: equal where every number is."""
    return _sha256(_as_written(config).model_dump(mode="json"))


def export(
    network: FixedNetwork,
    *,
    source: str,
    neuromod: str,
    notes: tuple[str, ...] = (),
    output_weights: NDArray[np.int64] | None = None,
) -> dict[str, str]:
    """Return the images of a network and their manifest: text by name of file.

    Parameters
    ----------
    network : FixedNetwork
        As it stands: membranes, traces and counters too.
    source, neuromod, notes
        As in `Manifest`.
    output_weights : ndarray of int64, shape (16, n), optional
        Q8.8; an output layer that came with a published set, written as it came.
    """
    state = network.state
    texts = {name: images.write_words(words(state), 4) for name, words in _WORDS.items()}
    texts[REGISTERS_IMAGE] = images.write_registers(state)
    if output_weights is not None:
        texts[OUTPUT_IMAGE] = images.write_words(output_weights, 4)
    rounded = [Rounded(name=name, at_most=most, unit=register(name).unit) for name, most in network.rounded.items()]
    manifest = Manifest(
        neuromod=neuromod,
        source=source,
        dt_ms=network.dt_ms,
        network=_as_written(network.config),
        network_sha256=network_sha256(network.config),
        files={name: _entry(name, text) for name, text in texts.items()},
        clipped=tuple(Clipped(name=m.name, value=m.value, held=m.held, unit=m.unit) for m in network.clipped),
        rounded=(*rounded, *_rounded_away(state)),
        notes=tuple(dict.fromkeys((*notes, *_notes(state)))),
    )
    return texts | {MANIFEST: json.dumps(manifest.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"}


def read(texts: Mapping[str, str], where: str = "") -> tuple[FixedNetwork, Manifest]:
    """Return the network that `export` wrote, bit for bit, and its manifest.

    Parameters
    ----------
    texts : mapping of str to str
        By name of file: the manifest, and the images that it names.
    where : str
        What to put before names of files in messages.

    Raises
    ------
    ImageError
        If the manifest is none, or of a version that this program does not know; or an image is missing, is no image,
        is not the one that the manifest was written for, or does not say what the registers do.
    """
    manifest = read_manifest(texts.get(MANIFEST, ""), f"{where}{MANIFEST}")
    known = {*_WORDS, REGISTERS_IMAGE}
    if odd := sorted(known.symmetric_difference(manifest.files.keys() - {OUTPUT_IMAGE})):
        raise ImageError(f"{where}{MANIFEST}: expected the files {', '.join(sorted(known))}; {odd[0]} is at odds")
    for name in manifest.files:
        if name not in texts:
            raise ImageError(f"{where}{name} is missing, and {MANIFEST} names it")
    state = images.read_registers(texts[REGISTERS_IMAGE], f"{where}{REGISTERS_IMAGE}")
    for name, words in _WORDS.items():
        expected = words(state).reshape(-1) & 0xFFFF
        found = images.read_words(texts[name], f"{where}{name}", n_words=expected.size, digits=4)
        for k in np.flatnonzero(found.values != expected):
            raise ImageError(
                f"{where}{name}, line {found.lines[k]}: {found.values[k]:04X}, and {REGISTERS_IMAGE} says "
                f"{expected[k]:04X}: one of them was changed; export both again"
            )
    if OUTPUT_IMAGE in manifest.files:
        read_output_weights(texts[OUTPUT_IMAGE], f"{where}{OUTPUT_IMAGE}")
    for name, entry in manifest.files.items():
        if (digest := hashlib.sha256(texts[name].encode()).hexdigest()) != entry.sha256:
            raise ImageError(
                f"{where}{name} is not the file that {MANIFEST} was written for: its sha256 is {digest[:12]}..., "
                f"expected {entry.sha256[:12]}...; export it again"
            )
        if entry != _entry(name, texts[name]):
            raise ImageError(f"{where}{MANIFEST}: {name} is described otherwise than version {VERSION} writes it")
    network = FixedNetwork.from_registers(state, manifest.network, dt_ms=manifest.dt_ms)
    rounded = {each.name: each.at_most for each in manifest.rounded if not each.name.endswith(".mem")}
    try:
        for name in rounded:
            register(name)
        network.clipped = tuple(misfit(each.name, each.value, each.held) for each in manifest.clipped)
    except FixedPointError as error:
        raise ImageError(f"{where}{MANIFEST}: {error}") from None
    network.rounded = rounded
    return network, manifest


def read_output_weights(text: str, where: str = OUTPUT_IMAGE) -> NDArray[np.int64]:
    """Words of an output layer, shape (16, 3), Q8.8.

    Raises
    ------
    ImageError
        As `images.read_words`.
    """
    words = images.read_words(text, where, n_words=int(np.prod(images.OUTPUT_SHAPE)), digits=4)
    return images.signed(words.values, 16).reshape(images.OUTPUT_SHAPE)


def read_manifest(text: str, where: str = MANIFEST) -> Manifest:
    """Return what `parameters.json` says.

    Raises
    ------
    ImageError
        If it is no manifest, or of another version; or its configuration was changed.
    """
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where} is missing, or no JSON: {error}") from None
    if not isinstance(body, dict) or body.get("format") != "neuromod-images":
        raise ImageError(f"{where} is no manifest of neuromod's images: it does not say so under format")
    if body.get("version") != VERSION:
        raise ImageError(
            f"{where} is of version {body.get('version')!r}, and this program reads version {VERSION}: "
            "read it with the version of neuromod that wrote it"
        )
    try:
        manifest = Manifest.model_validate(body)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ImageError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    # of the text, since the validated configuration may name presets that the text leaves out
    if (found := _sha256(body["network"])) != manifest.network_sha256:
        raise ImageError(
            f"{where}: the configuration in it has sha256 {found[:12]}..., expected "
            f"{manifest.network_sha256[:12]}...; it was changed by hand: export it again"
        )
    return manifest


def _as_written(config: NetworkConfig) -> NetworkConfig:
    """The configuration as it will be read back, where a population without a preset may be given one."""
    return NetworkConfig.model_validate(config.model_dump(mode="json"))


def _sha256(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _entry(name: str, text: str) -> ImageEntry:
    digest = hashlib.sha256(text.encode()).hexdigest()
    if name == REGISTERS_IMAGE:
        return ImageEntry(
            holds="the complete network, membranes and counters too; the other images are for boards that load those, "
            "and leave out resets, floors, refractory times, gains, bias, coincidence, inhibition and learning",
            format="each word has the format that the comment above it says; none where nothing lies",
            signed=True,
            digits=images.REGISTER_DIGITS,
            shape=(images.N_WORDS,),
            order="by address, 000 to 2FF; negative numbers sign-extended; matrices row = source",
            unit="",
            sha256=digest,
        )
    image = _IMAGES[name]
    return ImageEntry(
        holds=image.holds,
        format="Q8.8" if image.signed else "UQ8.8",
        signed=image.signed,
        digits=images.PARAMETER_DIGITS,
        shape=image.shape,
        order=image.order,
        unit=image.unit,
        sha256=digest,
    )


def _rounded_away(state: State) -> list[Rounded]:
    """What the smaller images have not of the registers."""
    decay = np.abs(((1 << 24) - state[0]["rise"]) / 2.0**24 - images.decays(state) / 256.0).max()
    weight = np.abs(state[0]["weights"].T / 2.0**24 - images.weights(state) / 256.0).max()
    return [
        Rounded(name="parameters_decay.mem", at_most=float(decay), unit="per tick"),
        Rounded(name="parameters_weights.mem", at_most=float(weight), unit="mV"),
    ]


def _notes(state: State) -> list[str]:
    notes = []
    rise = state[0]["rise"]
    stuck = np.flatnonzero((rise > 0) & (images.decays(state) == 256)).tolist()
    if stuck:
        notes.append(
            "parameters_decay.mem has no decay between 255/256 and 1: a board that loads it never lets go of what "
            f"neurons {', '.join(map(str, stuck))} integrate"
        )
    return notes
