"""What `array` says of the source's channels, against a signal whose spikes are known."""

from typing import Any

import numpy as np
import pytest
from harness import GatedSource, Running, session
from numpy.typing import NDArray

from neuromod.bridge import loop_state as rt
from neuromod.bridge import wire
from neuromod.bridge.wire import ArrayMessage

pytestmark = pytest.mark.compiled_loop

FS = 15_000.0
SIGNAL = """
source = {kind = "lsl", name = "in memory here"}
front_end = {warmup_s = 0.2, reference = "none", exclude_channels = [2]}
encoder = {warmup_s = 0.2}
[publish]
array_hz = 10.0
health_s = 0.1
"""
SPIKE_UV = -200.0 * np.array([0.3, 1.0, 0.8, 0.3, -0.3, -0.4, -0.3, -0.2, -0.1])
PERIODS = {0: 300, 1: 1500, 2: 300}
"""Samples from one spike to the next, by channel; channel 3 has none."""


def signal(seconds: float) -> NDArray[np.float32]:
    """Noise of 10 uV, and spikes at known times."""
    x = np.random.default_rng(5).normal(0.0, 10.0, (int(seconds * FS), 4))
    for channel, period in PERIODS.items():
        for start in range(100, len(x) - len(SPIKE_UV), period):
            x[start : start + len(SPIKE_UV), channel] += SPIKE_UV
    return x.astype(np.float32)


def running(text: str, samples: NDArray[Any], rate_hz: float, kind: Any) -> Running:
    return Running(session(text), source=GatedSource(samples, rate_hz, kind=kind), speed=1.0)


def listen(run: Running, condition: Any, what: str) -> list[ArrayMessage]:
    listener = run.listen("array")
    run.daemon.intake.source.let_go()  # type: ignore[union-attr]
    listener.until(lambda: condition(listener.of(ArrayMessage)), what)
    found: list[ArrayMessage] = listener.of(ArrayMessage)
    return found


def seen(messages: list[ArrayMessage]) -> set[int]:
    return {snippet.channel for message in messages for snippet in message.snippets}


@pytest.mark.parametrize("raw", [False, True], ids=["unrecorded", "raw recorded"])
def test_rates_noise_and_snippets_are_those_of_the_signal(raw: bool, tmp_path: Any) -> None:
    text = SIGNAL + (f'[record]\nfolder = "{tmp_path}"\nraw = true\n' if raw else "")
    with running(text, signal(20.0), FS, "signal") as run:
        messages = listen(run, lambda got: seen(got) >= {0, 1} and len(got) > 12, "snippets of two channels")
        assert run.daemon.assembly.front_end.is_ready

    last = messages[-1]
    assert (last.n, last.first, last.counts, last.excluded) == (4, 0, "crossings", (2,))
    known = [message for message in messages if np.isfinite(message.rates_hz).all()]
    assert len(known) > 5
    # each is of a tenth of a second: all of them of a second, of which the ends may cut one spike
    mean = np.mean([message.rates_hz for message in known], axis=0)
    assert mean[0] == pytest.approx(FS / PERIODS[0], rel=0.1)
    assert 0.0 < mean[1] < 2 * FS / PERIODS[1]
    assert mean[2] == 0.0  # takes no part
    assert mean[3] < 2.0
    assert last.noise[[0, 1, 3]] == pytest.approx(8.6, abs=1.5)  # 10 uV, less what the filter takes
    assert seen(messages) <= {0, 1, 3}
    for message in messages:
        for snippet in message.snippets:
            assert snippet.data[snippet.crossing] < -4.5 * 7.0
            assert snippet.data[snippet.crossing - 1] > snippet.data[snippet.crossing]
            assert len(snippet.data) == round(0.0007 * FS + 0.5) + round(0.0013 * FS + 0.5)
    assert [message.seq for message in messages] == list(range(messages[0].seq, messages[-1].seq + 1))


def test_nothing_is_counted_of_features() -> None:
    text = 'source = {kind = "lsl", name = "in memory here", content = "features"}\n[publish]\narray_hz = 10\n'
    with running(text, np.ones((400, 20), np.float32), 100.0, "features") as run:
        messages = listen(run, lambda got: len(got) > 2, "array")

    assert messages[-1].counts == ""
    assert messages[-1].n == 20
    assert np.isnan(messages[-1].rates_hz).all()
    assert np.isnan(messages[-1].noise).all()
    assert messages[-1].snippets == ()


def test_no_samples_are_kept_where_nobody_wants_any() -> None:
    text = SIGNAL.replace("array_hz = 10.0", "array_hz = 0")
    with running(text, signal(1.0), FS, "signal") as run:
        assert run.daemon.loop.block[0]["words"][rt.W_KEEP_SAMPLES] == 0
        assert len(run.daemon.rings.raw.stamps) == 2


def test_a_source_of_many_channels_takes_several_messages_which_all_fit_into_a_frame() -> None:
    n_channels = 600
    samples = np.tile(signal(3.0)[:, :1], (1, n_channels))
    text = SIGNAL.replace("exclude_channels = [2]", f"exclude_channels = {list(range(2, n_channels, 2))}")
    with running(text, samples, FS, "signal") as run:
        messages = listen(run, lambda got: len(seen(got)) > 20, "snippets of many channels")

    assert {message.first for message in messages} == set(range(0, n_channels, 512))
    for message in messages:
        assert len(wire.TOPIC_ARRAY) + len(wire.pack_array(message)) <= rt.FRAME_BYTES
