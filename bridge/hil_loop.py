"""The loop of a run at true time, in a process of its own: as in a session, it shares no interpreter with a device.

The daemon runs as ever and publishes the stimuli of every tick. Settings come as a line of JSON on stdin; a second line
lets the source begin, once who sent it listens; the end of stdin ends the process.
"""

import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from neuromod.adapters.base import Chunk, Marker, Source, StreamInfo, create_source, empty_chunk
from neuromod.bridge.config import SessionConfig
from neuromod.bridge.warm import LONGEST_START_S
from neuromod.engine.errors import AdapterError, AdapterTimeoutError, NeuromodError

_FREE = "tcp://127.0.0.1:*"
_STOP_S = 10.0


class HeldSource:
    """A source that gives nothing before it is released: nobody must miss its first tick.

    Parameters
    ----------
    source : Source
        Who gives then.
    """

    def __init__(self, source: Source) -> None:
        self._source, self.is_released = source, False

    @property
    def info(self) -> StreamInfo:
        """What the stream is."""
        return self._source.info

    @property
    def ended(self) -> bool:
        """True once the last sample was read."""
        return self._source.ended

    @property
    def quirks(self) -> dict[str, int]:
        """Oddities met so far."""
        return self._source.quirks

    def open(self) -> None:
        """Open it."""
        self._source.open()

    def read(self, max_samples: int, timeout_s: float = 0.0) -> Chunk:
        """Return the next samples; none before the release."""
        if not self.is_released:
            time.sleep(min(timeout_s, 0.005))
            return empty_chunk(self.info.n_channels)
        return self._source.read(max_samples, timeout_s)

    def markers(self) -> list[Marker]:
        """Return the markers that became available."""
        return self._source.markers() if self.is_released else []

    def close(self) -> None:
        """Let go of everything held."""
        self._source.close()


def live_session(config: SessionConfig) -> SessionConfig:
    """Return the session as a run has it: all that is compared goes out, on free ports, and nothing is recorded.

    The device under test is compared, not in the loop: of `[offload]` the session is without, and its network the
    daemon's own.
    """
    publish = config.publish.model_copy(update={"spikes": "every", "stimuli": True, "state_hz": 10.0})
    sockets = config.sockets.model_copy(update={"ingest": _FREE, "output": _FREE, "control": _FREE})
    return config.model_copy(update={"publish": publish, "sockets": sockets, "record": None, "offload": None})


class LoopProcess:
    """The process, seen from outside; used in a `with` statement.

    Parameters
    ----------
    config : SessionConfig
        With a recording as its source.
    speed : float
        Multiple of true time.

    Attributes
    ----------
    output : str
        Address at which the daemon publishes.
    counters : dict of str to int
        Of the loop, once `has_ended`.
    """

    def __init__(self, config: SessionConfig, speed: float) -> None:
        self._settings = json.dumps({"config": live_session(config).effective(), "speed": speed})
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.output = ""
        self.counters: dict[str, int] = {}
        self._is_over = False
        self._reader = threading.Thread()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the keyboard is its parent's business
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), name="hil-loop", daemon=True)
        self._reader.start()
        try:
            self._tell(self._settings)
            self.output = self._next(LONGEST_START_S)["output"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def release(self) -> None:
        """Let the source begin."""
        self._tell("go")

    def has_ended(self) -> bool:
        """Whether the recording has been played to its end; what was published may still be on its way.

        Raises
        ------
        AdapterError
            If the loop failed, with its own words.
        """
        with contextlib.suppress(queue.Empty):
            if not self._is_over:
                self.counters = self._checked(self._lines.get_nowait())["counters"]
                self._is_over = True
        return self._is_over

    def stop(self) -> None:
        """End it before the recording ends, and take its counters."""
        if not self._is_over:
            self._tell("stop")
            self.counters = self._next(_STOP_S)["counters"]
            self._is_over = True

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put(json.loads(line))
        self._lines.put({"error": "the loop's process has ended; what it said stands above"})

    def _next(self, timeout_s: float) -> dict[str, Any]:
        try:
            return self._checked(self._lines.get(timeout=timeout_s))
        except queue.Empty:
            raise AdapterTimeoutError(f"the loop's process says nothing within {timeout_s:g} s") from None

    @staticmethod
    def _checked(answer: dict[str, Any]) -> dict[str, Any]:
        if "error" in answer:
            raise AdapterError(f"the loop could not run: {answer['error']}")
        return answer

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join(_STOP_S)


def _main() -> None:
    from neuromod.bridge.service import Daemon

    settings = json.loads(sys.stdin.readline())
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line.strip())
        orders.put("stop")

    def say(**what: Any) -> None:
        print(json.dumps(what), flush=True)

    threading.Thread(target=listen, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = SessionConfig.model_validate(settings["config"])
        held = HeldSource(create_source(config.source))
        with Daemon(config, source=held, speed=settings["speed"]) as daemon:
            say(output=daemon.addresses["output"])
            held.is_released = orders.get() == "go"
            while held.is_released and not daemon.stopped.is_set() and not daemon.has_ended():
                with contextlib.suppress(queue.Empty):
                    held.is_released = orders.get(timeout=0.02) != "stop"
            if daemon.failure is not None:
                raise daemon.failure
            say(counters={name: int(n) for name, n in daemon.collector.counters().items()})
            while orders.get() != "stop":  # what was published leaves with the sockets
                pass
    except NeuromodError as error:
        say(error=str(error))


if __name__ == "__main__":
    _main()
