"""The online sorter beside what one would write down: the same chain, and the same spikes for the same reasons."""

import numpy as np
import pytest

from naive import matching
from naive.sorted_signals import FREQUENCY, NAMES, bundle_of, known
from neuromod.sorting import chain, dense, sparse
from neuromod.sorting.events import N_EVENTS
from neuromod.sorting.offline import _push
from neuromod.sorting.online import Sorter

SECONDS = 2.0


def test_the_chain_is_that_of_scipy() -> None:
    bundle = bundle_of(known(5.0, 1, 20.0), 20.0)
    samples = known(0.5, 2, 20.0).signal + np.float32(300.0)

    state = chain.make_chain(bundle.info.chain, FREQUENCY, len(NAMES), bundle.noise, bundle.whitening)
    ours = chain.whitened(state, samples)

    # float32 at the end of each stage: seven digits of values up to some 30
    np.testing.assert_allclose(ours, matching.whitened(bundle, samples), atol=2e-4)


@pytest.mark.parametrize(("engine", "pitch_um"), [("sparse", 400.0), ("dense", 20.0)])
def test_an_engine_finds_what_is_likeliest_first(engine: str, pitch_um: float) -> None:
    bundle = bundle_of(known(10.0, 1, pitch_um), pitch_um)
    signal = known(SECONDS, 2, pitch_um).signal
    least = dense.LEAST_GAIN if engine == "dense" else 30.0

    expected = matching.match(
        bundle, matching.whitened(bundle, signal), prior=dense.PRIOR, least=least, ridge=sparse._FLOOR
    )
    sorter = Sorter(bundle, engine=engine, tracking=False)  # type: ignore[arg-type]
    _push(sorter.state, signal, np.zeros(sorter.state.last_x.shape[0]))
    rows = sorter.state.events.rows[: int(sorter.state.events.counters[N_EVENTS])]

    end = round(SECONDS * FREQUENCY) - 120  # what comes later is told later
    ours = {(int(row["unit"]), int(row["sample"])): float(row["amplitude"]) for row in rows if row["sample"] < end}
    theirs = {(spike.unit, spike.sample): spike.amplitude for spike in expected if spike.sample < end}
    pairs = [
        (a, theirs[unit, at + shift])
        for (unit, at), a in ours.items()
        for shift in (0, -1, 1)
        if (unit, at + shift) in theirs
    ]
    # the loop decides with a millisecond of what is to come, and fits between samples: some overlaps come out
    # otherwise
    assert len(theirs) > 100
    assert len(pairs) >= 0.97 * max(len(ours), len(theirs))
    found, wanted = np.array(pairs).T
    assert np.abs(found - wanted).mean() < 0.02
