"""How much of one core the front end takes: `python tests/bench/bench_front_end.py [--json]`.

Each case pushes one second of 30 kHz signal in chunks of 30 samples from compiled code, as the loop does, and reports
the CPU time of the fastest and the median of several such seconds, as a share of one core, along with the slowest
single millisecond, encoder included.
"""

import argparse
import json
import platform
import time
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from neuromod.engine.compiled import jit
from neuromod.sorting.config import EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder, encode
from neuromod.sorting.front_end import FrontEnd, finish_block, push

FS = 30000.0
CHUNK = 30
CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("crossings, clipped mean", 96, {}),
    ("crossings, clipped mean", 384, {}),
    ("crossings, no reference", 384, {"reference": "none"}),
    ("crossings, median", 96, {"reference": "median"}),
    ("crossings, median", 384, {"reference": "median"}),
    ("crossings + spiking band, clipped mean", 96, {"features": ["crossings", "spiking_band"]}),
    ("crossings + 4 LFP bands, clipped mean", 96, {"features": ["crossings", "bands"]}),
    ("crossings, clipped mean", 1024, {}),
)


@jit
def second(
    front_end: Any, encoder: Any, samples: NDArray[np.float32], features: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """One second of signal, a millisecond at a time."""
    for start in range(0, samples.shape[0], 30):
        push(front_end, samples[start : start + 30])
        finish_block(front_end, features)
        encode(encoder, features, out)


def measure(name: str, n_channels: int, settings: dict[str, Any], repeats: int) -> dict[str, Any]:
    """CPU shares of one case."""
    config = FrontEndConfig.model_validate({"warmup_s": 1.0} | settings)
    front_end = FrontEnd(config, n_channels, FS)
    encoder = Encoder(EncoderConfig(warmup_s=0.5), front_end.n_features, front_end.feature_names)
    samples = np.random.default_rng(0).normal(0.0, 10.0, (int(FS), n_channels)).astype(np.float32)
    features, out = np.zeros(front_end.n_features, np.float32), np.zeros(16, np.float32)
    second(front_end.state, encoder.state, samples[:0], features, out)
    shares = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        second(front_end.state, encoder.state, samples, features, out)
        shares.append(time.process_time() - begin)
    slowest = 0.0
    for start in range(0, len(samples), CHUNK):
        begin = time.perf_counter()
        second(front_end.state, encoder.state, samples[start : start + CHUNK], features, out)
        slowest = max(slowest, time.perf_counter() - begin)
    return {
        "case": name,
        "n_channels": n_channels,
        "warmup_share": shares[0],
        "best_share": min(shares[1:]),
        "median_share": float(np.median(shares[1:])),
        "slowest_ms_us": slowest * 1e6,
    }


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = [measure(*case, repeats=arguments.repeats) for case in CASES]
    host = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    host |= {"numba": numba.__version__, "numpy": np.__version__}
    if arguments.json:
        print(json.dumps({"host": host, "rows": rows}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in host.items()))
    print(f"{'share of one core at 30 kHz':<42}{'channels':>9}{'warm-up':>9}{'best':>8}{'median':>8}{'slowest ms':>13}")
    for row in rows:
        print(
            f"{row['case']:<42}{row['n_channels']:>9}{row['warmup_share']:>9.1%}{row['best_share']:>8.1%}"
            f"{row['median_share']:>8.1%}{row['slowest_ms_us']:>10.0f} us"
        )


if __name__ == "__main__":
    main()
