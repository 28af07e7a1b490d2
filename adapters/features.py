"""Matrices of counts or rates per bin, `.npy` or `.mat`, played as a stream of feature vectors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.config import FeaturesConfig
from neuromod.adapters.memory import LoadedSource, MemorySource
from neuromod.engine.errors import RecordingError


class FeatureSource(LoadedSource):
    """A matrix of features, one row per bin.

    Parameters
    ----------
    config : FeaturesConfig
        Which file, which variable, and how long a bin is.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__(str(config.path))
        self._config = config

    def _load(self) -> MemorySource:
        config = self._config
        if not config.path.is_file():
            raise RecordingError(f"{self._what}: no such file; check the path")
        try:
            matrix = _load_npy(config.path) if config.path.suffix.lower() == ".npy" else _load_mat(config)
        except RecordingError:
            raise
        except Exception as error:
            raise RecordingError(
                f"{self._what}: expected a {config.path.suffix or 'matrix'} file, but it cannot be read "
                f"({type(error).__name__}: {error}); it may be truncated or corrupt"
            ) from error
        if matrix.ndim != 2 or matrix.dtype.kind not in "biuf" or 0 in matrix.shape:
            raise RecordingError(
                f"{self._what}: expected a matrix of real numbers (n_bins, n_features), got {matrix.dtype} of shape "
                f"{matrix.shape}; name another variable"
            )
        if config.transposed:
            matrix = matrix.T
        n_bins, n_features = matrix.shape
        if config.n_channels is not None and n_features != config.n_channels:
            hint = "; set transposed = true" if n_bins == config.n_channels else ""
            raise RecordingError(f"{self._what}: n_channels says {config.n_channels}, the matrix {n_features}{hint}")
        if n_features > n_bins and config.n_channels is None:
            raise RecordingError(
                f"{self._what}: {n_bins} bins of {n_features} features look turned around; "
                f"set transposed = {str(not config.transposed).lower()}, or n_channels = {n_features} if it is right"
            )
        return MemorySource(
            np.ascontiguousarray(matrix, np.float32),
            1000.0 / config.bin_ms,
            # (i * bin) / 1000 is exact where i / (1000 / bin) is not
            stamps=np.arange(n_bins, dtype=np.float64) * config.bin_ms / 1000.0,
            kind="features",
            name=config.path.stem,
            source_id=config.path.name,
        )


def _load_npy(path: Path) -> NDArray[Any]:
    # numpy.load would take an archive of arrays, too, and leave a damaged one open
    matrix: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return matrix


def _load_mat(config: FeaturesConfig) -> NDArray[Any]:
    with config.path.open("rb") as file:
        is_hdf5 = b"MATLAB 7.3" in file.read(64) or (file.seek(0) == 0 and file.read(8) == b"\x89HDF\r\n\x1a\n")
    return _from_hdf5(config) if is_hdf5 else _from_mat5(config)


def _from_mat5(config: FeaturesConfig) -> NDArray[Any]:
    from scipy.io import loadmat

    content = loadmat(config.path, squeeze_me=True, struct_as_record=False)
    found = dict(_walk({key: value for key, value in content.items() if not key.startswith("__")}))
    return np.asarray(_pick(config, found))


def _walk(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every array of a tree of MATLAB structs by its dotted name."""
    for key, value in node.items():
        name = prefix + key
        if hasattr(value, "_fieldnames"):
            yield from _walk({field: getattr(value, field) for field in value._fieldnames}, f"{name}.")
        elif isinstance(value, np.ndarray):
            yield name, value


def _from_hdf5(config: FeaturesConfig) -> NDArray[Any]:
    import h5py

    with h5py.File(config.path, "r") as file:
        found: dict[str, Any] = {}

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and not name.startswith("#"):
                found[name.replace("/", ".")] = item

        file.visititems(note)
        # MATLAB writes columns first: HDF5 shows every matrix turned around
        return np.asarray(_pick(config, found)[()]).T


def _pick(config: FeaturesConfig, found: dict[str, Any]) -> Any:
    matrices = {
        name: a for name, a in found.items() if len(a.shape) == 2 and min(a.shape) > 1 and a.dtype.kind in "biuf"
    }
    listing = ", ".join(f"{name} {tuple(a.shape)}" for name, a in sorted(matrices.items())) or "none"
    if config.variable is not None:
        if config.variable not in found:
            raise RecordingError(
                f'{config.path}: holds no variable "{config.variable}"; the matrices of numbers in it: {listing}'
            )
        return found[config.variable]
    if len(matrices) != 1:
        raise RecordingError(
            f"{config.path}: expected one matrix of numbers, or variable to say which; the candidates: {listing}"
        )
    return next(iter(matrices.values()))
