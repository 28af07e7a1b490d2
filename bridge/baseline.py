"""`neuromod baseline`: measures a stream at rest and writes what the session is then frozen to."""

import logging
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from neuromod.bridge.assembly import block_length_ms
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.lsl_list import source_of
from neuromod.bridge.pipeline import clean, make_pipeline
from neuromod.engine.errors import AdapterTimeoutError, ConfigError
from neuromod.sorting.measure import BaselineEstimator

log = logging.getLogger(__name__)

_READ_S = 0.1
_SILENCE_S = 10.0


def measure(config: SessionConfig, seconds: float, folder: Path) -> int:
    """Measure a baseline of the session's source and write it to a dated file in `folder`.

    The path of the file goes to stdout, all else to stderr.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    ConfigError
        If the source has nothing to measure, or it ends too early.
    AdapterError
        If the source cannot be opened, or falls silent.
    """
    if config.source_content == "stimuli":
        raise ConfigError("source 'zmq' brings stimuli as they are: a baseline needs a signal or features")
    source = source_of(config)
    source.open()
    try:
        info = source.info
        block_ms = block_length_ms(config, info)
        estimator = BaselineEstimator(
            config.front_end if info.kind == "signal" else None,
            config.encoder,
            info.n_channels,
            info.sampling_frequency,
            info.channel_names,
            duration_s=seconds,
            block_ms=block_ms,
            stream_name=info.name,
        )
        # only its hold of values that are not finite is used: the time grid does not matter to noise
        pipeline = make_pipeline(
            n_channels=info.n_channels,
            n_features=1,
            sampling_frequency=info.sampling_frequency,
            block_ms=block_ms,
            ticks_per_block=1,
            regular=False,
            jitter_ms=1.0,
            fill="hold",
            max_fill_ms=0.0,
        )
        n_read = max(1, round(_READ_S * info.sampling_frequency))
        console = Console(stderr=True)
        heard = time.monotonic()
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(f"baseline of {info.name}", total=seconds)
            while not estimator.is_done and not source.ended:
                chunk = source.read(n_read, 0.2)
                if len(chunk):
                    heard = time.monotonic()
                    clean(pipeline, chunk.samples)
                    estimator.push(chunk.samples)
                    progress.update(task, completed=estimator.seen_s)
                elif time.monotonic() - heard > _SILENCE_S:
                    raise AdapterTimeoutError(
                        f"{info.name}: silent for {_SILENCE_S:g} s after {estimator.seen_s:.1f} s; is it still sending?"
                    )
        baseline = estimator.result()
    finally:
        source.close()
    folder.mkdir(parents=True, exist_ok=True)
    path = baseline.save(folder)
    for name, why in baseline.excluded.items():
        log.warning("channel %s takes no part: %s", name, why)
    print(f"measured {baseline.duration_s:.1f} s; name the file under [session] as baseline", file=sys.stderr)
    print(path)
    return 0
