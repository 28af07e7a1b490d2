"""Commands and stimulation through the running daemon: from stimuli to trains that leave, and all that stops them."""

import time
import zlib
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from harness import FREE_PORTS, ONE_PROGRAM, WAIT_S, GatedSource, Listener, Running, wait_until

from neuromod.adapters.actuators.base import Command, Stimulation
from neuromod.adapters.base import Chunk
from neuromod.bridge import loop_state as rt
from neuromod.bridge.arming import write_key
from neuromod.bridge.client import RefusedError
from neuromod.bridge.config import SessionConfig, parse
from neuromod.bridge.gate import REASONS
from neuromod.bridge.pipeline import N_DECISIONS

pytestmark = pytest.mark.compiled_loop

STRONG = [5.0] * 14 + [0.0, 0.0]  # every sensory channel fires


def closed_loop(folder: Path, *, mode: str = "live", more: str = "", stimulation: str = "") -> SessionConfig:
    """A session whose first channel's spikes ask for a pulse."""
    key = folder / "key"
    if not key.exists():
        write_key(key)
    return parse(
        f"""
        source = {{kind = "zmq", block_ms = 1.0}}
        {more}
        [timing]
        stall_ms = 5000.0
        [decoder]
        kind = "rates"
        channels = [0, 1]
        tau_ms = 50.0
        events = [{{channel = 0, refractory_ms = 20.0}}]
        [stimulation]
        mode = "{mode}"
        key_file = "{key}"
        ledger = "{folder / "dose.json"}"
        heartbeat_ms = 0.0
        {stimulation}
        {ONE_PROGRAM}
        """
        + FREE_PORTS,
        folder=folder,
    )


def key_of(folder: Path) -> bytes:
    return (folder / "key").read_bytes().strip()


def drive(running: Running, until: Any, what: str) -> Any:
    """Send stimuli, a tick each, until something is true."""

    def turn() -> Any:
        running.client.send_stimuli(STRONG)
        return until()

    return wait_until(turn, what, WAIT_S)


def hear(running: Running, heard: Listener, condition: Any, what: str) -> Any:
    """Send stimuli, a tick for each message heard, until one fulfils a condition; return it."""
    seen = len(heard.messages)

    def turn() -> Any:
        running.client.send_stimuli(STRONG)
        return next((m for m in heard.messages[seen:] if condition(m)), None)

    return heard.until(turn, what)


def is_stimulation(kind: str) -> Any:
    return lambda message: isinstance(message, Stimulation) and message.kind == kind


def told(running: Running) -> dict[str, Any]:
    stimulation: dict[str, Any] = running.health["stimulation"]
    return stimulation


def test_a_train_leaves_only_while_armed_and_a_stop_ends_it_at_once(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running:
        heard = running.listen("stimulation", "spikes")
        drive(running, lambda: told(running)["counts"].get("refused_not_armed"), "a refusal")
        assert told(running)["state"] == "disarmed"
        assert told(running)["counts"]["delivered"] == 0
        running.client.arm(60.0, key_of(tmp_path))

        train = hear(running, heard, is_stimulation("train"), "a train")

        assert (train.amplitude_ua, train.amplitude2_ua, train.phase_us, train.pulses) == (-10.0, 10.0, 200.0, 1)
        assert 0.0 < train.expires - train.t <= 0.0101
        running.client.send_stop()
        stop = hear(running, heard, is_stimulation("stop"), "the stop")
        assert REASONS[stop.reason] == "stopped"
        delivered = told(running)["counts"]["delivered"]
        before = told(running)["counts"]["refused_not_armed"]
        drive(running, lambda: told(running)["counts"]["refused_not_armed"] > before + 2, "more refusals")
        assert told(running)["counts"]["delivered"] == delivered


def test_commands_carry_the_decoders_outputs(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running:
        heard = running.listen("command")
        command = hear(running, heard, lambda m: isinstance(m, Command) and m.values[0] > 0.0, "a rate above zero")
        assert command.values.shape == (2,)
        assert command.expires > command.t_tick >= command.t_sample


def test_arming_needs_the_key_once_for_each_nonce(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running:
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        with pytest.raises(RefusedError, match="needs the key"):
            running.client.arm(10.0)
        with pytest.raises(RefusedError, match="key is not that of this session"):
            running.client.arm(10.0, b"another key of some length")
        assert told(running)["state"] == "disarmed"
        running.client.arm(10.0, key_of(tmp_path))
        assert told(running)["state"] == "armed"
        assert running.client.request("disarm")["tick"] > 0
        assert told(running)["disarmed_by"] == "disarmed"


def test_a_stop_file_holds_stimulation_until_it_is_gone(tmp_path: Path) -> None:
    stop_file = tmp_path / "STOP"
    with Running(closed_loop(tmp_path, stimulation=f'stop_file = "{stop_file}"')) as running:
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        running.client.arm(10.0, key_of(tmp_path))
        stop_file.touch()
        wait_until(lambda: told(running)["state"] == "disarmed", "the end of the arming")
        assert told(running)["disarmed_by"] == "stopped"
        with pytest.raises(RefusedError, match="a stop was asked for"):
            running.client.arm(10.0, key_of(tmp_path))
        stop_file.unlink()

        def armed() -> bool:
            try:
                running.client.arm(10.0, key_of(tmp_path))
            except RefusedError:
                return False
            return True

        wait_until(armed, "an arming after the stop file is gone")


def test_a_dry_run_sends_no_train_and_counts_what_it_would_have(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path, mode="dry_run")) as running:
        heard = running.listen("stimulation", "spikes")
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        running.client.arm(60.0, key_of(tmp_path))
        hear(running, heard, lambda _: told(running)["counts"]["issued"] > 2, "trains that would have been sent")
        assert told(running)["counts"]["delivered"] == 0
        assert told(running)["dose_nc"] > 0.0
        assert {m.kind for m in heard.of(Stimulation)} == {"lease"}


def test_latency_of_inputs_is_told_from_their_sending_to_the_tick_they_act_on(tmp_path: Path) -> None:
    import pylsl

    with Running(closed_loop(tmp_path)) as running:
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        begun = time.monotonic()
        running.client.send_reward(0.5, t=pylsl.local_clock())
        found = drive(running, lambda: running.health["ingest_latency_us"], "a latency")
        assert 0.0 < found["p50"] <= (time.monotonic() - begun) * 1e6


def test_a_stop_is_obeyed_however_it_is_made_up_and_behind_a_flood_of_odd_messages(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running, zmq.Context() as context, context.socket(zmq.PUSH) as push:
        push.connect(running.daemon.addresses["ingest"])
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        odd = [b"event", msgpack.packb({"name": "x"})]
        for parts in ([b"stop"], [b"stop", b"x" * 5000], [b"stop", b"", b""], [b"stop", msgpack.packb({})]):
            running.client.arm(60.0, key_of(tmp_path))
            for _ in range(600):
                push.send_multipart(odd)
            push.send_multipart(parts)
            wait_until(lambda: told(running)["state"] == "disarmed", f"the stop {parts[0]!r} of {len(parts)} parts")
            assert told(running)["disarmed_by"] == "stopped"


def test_a_checkpoint_file_has_nothing_sent(tmp_path: Path) -> None:
    """A file with a train that the gate would have let pass, and a good checksum."""
    path = tmp_path / "forged.checkpoint"
    with Running(closed_loop(tmp_path)) as running:
        heard = running.listen("stimulation", "spikes")
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        running.client.request("checkpoint", path=str(path))
        pipeline = running.daemon.assembly.pipeline
        body = msgpack.unpackb(path.read_bytes())
        data = bytearray(body["data"])
        at = pipeline.numbers.nbytes + 8 * N_DECISIONS  # words follow numbers
        data[at : at + 8] = (1).to_bytes(8, "little")
        body |= {"data": bytes(data), "crc32": zlib.crc32(bytes(data))}
        path.write_bytes(msgpack.packb(body))
        pipeline.decisions[0]["delivered"] = 1
        pipeline.decisions[0]["amplitude_ua"] = -5000.0

        running.client.request("restore", path=str(path))

        restored_at = running.health["tick"]
        hear(running, heard, lambda m: getattr(m, "tick", 0) > restored_at + 20, "ticks after it")
        assert heard.of(Stimulation) == []


def test_an_arming_that_ends_and_one_that_begins_in_one_turn_are_both_told(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running:
        heard = running.listen("stimulation", "spikes")
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        running.client.arm(60.0, key_of(tmp_path))
        hear(running, heard, is_stimulation("lease"), "a lease")
        collector = running.daemon.collector
        late = collector.now() + 60.0
        while not (collector.submit(rt.DISARM, word=1) and collector.submit(rt.ARM, word=9, values=[60, 0, 0, late])):
            pass
        hear(running, heard, is_stimulation("stop"), "the stop of the first")
        hear(running, heard, is_stimulation("lease"), "a lease of the second")


def test_an_arming_that_comes_too_late_arms_nothing(tmp_path: Path) -> None:
    with Running(closed_loop(tmp_path)) as running:
        drive(running, lambda: running.health["tick"] > 3, "ticks")
        collector = running.daemon.collector
        echo = collector.call(rt.ARM, word=9, values=[60.0, 0.0, 0.0, collector.now() - 0.001])
        assert REASONS[int(echo["values"][1])] == "arming"
        assert told(running)["state"] == "disarmed"


class StuckSource(GatedSource):
    """A device that hangs after a while, and gives its last sample again and again."""

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        if self._given < 200:
            self.last = super().read(min(max_samples, 50), timeout_s)
            return self.last
        time.sleep(0.001)
        return Chunk(self.last.samples[-1:].copy(), self.last.stamps[-1:].copy())


def test_a_source_that_repeats_its_last_sample_is_a_stalled_one(tmp_path: Path) -> None:
    text = closed_loop(tmp_path).effective_toml()
    begin, end = text.index("[source]"), text.index("[", text.index("[source]") + 1)
    memory = '[source]\nkind = "features"\npath = "in_memory"\nbin_ms = 1.0\n'
    config = parse(text[:begin] + memory + text[end:].replace("stall_ms = 5000.0", "stall_ms = 50.0"))
    source = StuckSource(np.ones((1000, 16), np.float32), 1000.0, kind="features")
    with Running(config, source=source, speed=1.0) as running:
        source.let_go()
        wait_until(lambda: running.health["tick"] > 3, "ticks")
        wait_until(lambda: running.health["state"] == "stalled", "the stall")
        with pytest.raises(RefusedError, match="stalled"):
            running.client.arm(60.0, key_of(tmp_path))
