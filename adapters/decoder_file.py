"""Fitted decoders as files: one JSON file a version, with a hash over its content and a word on where it comes from."""

import datetime
import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from neuromod.adapters.decoder_config import FittedConfig
from neuromod.adapters.regular_file import read_regular_file
from neuromod.engine.errors import ConfigError

FORMAT: Literal["neuromod-decoder"] = "neuromod-decoder"
FORMAT_VERSION: Literal[1] = 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LARGEST_FILE_BYTES = 16 * 2**20


class Provenance(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Where a decoder comes from.

    Attributes
    ----------
    fitted_at : datetime
        When it was fitted.
    dt_ms : float
        Length of a tick in the data; the session that uses it must have the same.
    session : str
        What it was fitted to: name or identifier of the session.
    config_hash : str
        Hash of that session's configuration.
    options : dict
        Options of the fit.
    metrics : dict
        How well it did on held-out blocks.
    """

    fitted_at: datetime.datetime
    dt_ms: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    session: str = ""
    config_hash: str = ""
    options: dict[str, pydantic.JsonValue] = {}
    metrics: dict[str, pydantic.JsonValue] = {}


class DecoderFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One version of a fitted decoder, as it lies on disk.

    Attributes
    ----------
    format, format_version : str, int
        What kind of file this is.
    name : str
        Of the decoder; its versions are the files ``name-v1.json``, ``name-v2.json``, ...
    version : int
        Number of this version, from 1.
    decoder : FittedConfig
        Kind and numbers.
    provenance : Provenance
        Where it comes from.
    sha256 : str
        Over everything else, in canonical JSON.
    """

    format: Literal["neuromod-decoder"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    name: str
    version: Annotated[int, Field(ge=1, lt=2**63)]
    decoder: FittedConfig
    provenance: Provenance
    sha256: str = ""


def save_decoder(folder: Path, name: str, decoder: FittedConfig, provenance: Provenance) -> Path:
    """Write the next version of a decoder; never over an older one.

    Parameters
    ----------
    folder : Path
        Where to; made where it does not exist.
    name : str
        Letters, digits, ``_``, ``-`` and ``.``.
    decoder : FittedConfig
        Kind and numbers.
    provenance : Provenance
        Where it comes from.

    Returns
    -------
    Path
        The file written: ``folder/name-vN.json``. It appears whole or not at all.

    Raises
    ------
    ConfigError
        The name cannot be a file's, or the folder cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f'a decoder called "{name}"; letters, digits, "_", "-" and "." expected, a letter first')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        version = 1 + max((number for number, _ in versions(folder, name)), default=0)
        while True:
            path = folder / f"{name}-v{version}.json"
            file = DecoderFile(name=name, version=version, decoder=decoder, provenance=provenance)
            content = file.model_dump(mode="json")
            content["sha256"] = content_hash(content)
            if _write_new(path, json.dumps(content, indent=1, allow_nan=False) + "\n"):
                return path
            version += 1  # somebody else wrote it in between
    except OSError as error:
        raise ConfigError(f"cannot write a decoder into {folder}: {error}") from error


def load_decoder(path: Path) -> DecoderFile:
    """Read a decoder file and check everything in it.

    Raises
    ------
    ConfigError
        There is no such file, it is no decoder of this format, its content was changed after it was written, or its
        name is that of another version. The message says which.
    """
    try:
        text = read_regular_file(path, _LARGEST_FILE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the decoder {path}: {error}; fit one with `neuromod calibrate`") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no decoder file: it is not JSON ({error}); was it cut off?") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f'{path} is no decoder file: "format": "{FORMAT}" expected')
    if content.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"{path} has format version {content.get('format_version')!r}; this neuromod reads {FORMAT_VERSION}: "
            "calibrate again, or use the neuromod that wrote it"
        )
    if content.get("sha256") != content_hash(content):
        raise ConfigError(f"{path} was changed after it was written: its sha256 does not fit; calibrate again")
    try:
        file = DecoderFile.model_validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path} is no usable decoder: {where}: {first['msg']}; calibrate again") from error
    if path.name != f"{file.name}-v{file.version}.json":
        raise ConfigError(
            f'{path} holds version {file.version} of "{file.name}" and was renamed; '
            f"call it {file.name}-v{file.version}.json again"
        )
    return file


def versions(folder: Path, name: str) -> list[tuple[int, Path]]:
    """Return the number and file of every version of a decoder in a folder, oldest first."""
    pattern = re.compile(re.escape(name) + r"-v([1-9][0-9]{0,17})\.json")
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name))]
    return sorted(found)


def content_hash(content: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON of everything but `sha256`: keys in order, no spaces."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_new(path: Path, text: str) -> bool:
    """Write a file that does not exist yet, whole or not at all; False where it does."""
    handle, partial = tempfile.mkstemp(prefix=path.name + ".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # unlike a rename, refuses to replace
        except FileExistsError:
            return False
        path.chmod(0o644)
        return True
    finally:
        Path(partial).unlink()
