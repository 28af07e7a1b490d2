"""A simulated board behind a pseudo-terminal, which a host opens as it would a board's serial port.

The board's Verilog runs, byte by byte; what is not simulated is the time that bytes take on a line. Faults happen on
the way to it and back, and to it (`faults.py`).

    with SimulatedBoard(words=to_words(network.state)) as board:
        serial.Serial(board.path, 3_000_000)
"""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.fpga.board_model import TICK_ADDRESS, BoardModel, BoardProtocol
from neuromod.adapters.fpga.faults import (
    FAULTS,
    KINDS,
    Delay,
    Fault,
    Injection,
    LineFaults,
    Memory,
    Reorder,
    Reset,
    Stop,
)
from neuromod.engine.errors import AdapterError, AdapterTimeoutError, ConfigError

TICKS = 1 << 32
MAX_UNDER_WAY = 512  # bytes, as the FIFO of the board
MAX_INJECTIONS = 100_000  # that are told one by one; all are counted
START_S, STOP_S = 180.0, 10.0  # the first start compiles the board: 30 s of one core


class BoardServer:
    """The board and its pseudo-terminal, served by whoever calls `serve`.

    Parameters
    ----------
    protocol : {"neuromod", "siliconbridge"}
        What it speaks.
    words : array_like of int, shape (768,), optional
        Registers that it comes up with, as from `images.to_words`; without, all are 0.
    faults : sequence of Fault
        What is to go wrong.
    seed : int
        Of the faults.
    link : Path, optional
        Symbolic link to the pseudo-terminal, made anew.

    Attributes
    ----------
    path : str
        Of the terminal.
    injections : list of Injection
        Faults that happened, the first 100,000.

    Raises
    ------
    AdapterError
        If there are no pseudo-terminals here, the link cannot be made, or the board cannot be compiled.
    """

    def __init__(
        self,
        *,
        protocol: BoardProtocol = "neuromod",
        words: NDArray[Any] | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        link: Path | None = None,
    ) -> None:
        self._master = self._slave = -1
        self._link: Path | None = None
        self._board = BoardModel(protocol, words)
        self._to_board = LineFaults(faults, "to_board", seed)
        self._to_host = LineFaults(faults, "to_host", seed)
        self._delays = [fault for fault in faults if isinstance(fault, Delay)]
        self._swaps = {tick: fault for fault in faults if isinstance(fault, Reorder) for tick in fault.ticks}
        self._at_ticks: list[Stop | Reset | Memory] = [
            fault for fault in faults if isinstance(fault, Stop | Reset | Memory)
        ]
        self._next_tick = self._board.peek(TICK_ADDRESS)
        self._pending = bytearray()  # on their way to the board
        self._answers: deque[tuple[int, bytes]] = deque()  # when each may go, and what
        self._swapped: tuple[int, bytes] | None = None  # an answer that waits for the next one; until when
        self._stopped_until_ns: float = 0.0
        self._counts = dict.fromkeys(("bytes_in", "bytes_out", "answers", "overrun", *KINDS), 0)
        self.injections: list[Injection] = []
        self._open(link)

    def _open(self, link: Path | None) -> None:
        try:
            import tty

            self._master, self._slave = os.openpty()
            tty.setraw(self._slave)
            os.set_blocking(self._master, False)
            self.path = os.ttyname(self._slave)
        except (ImportError, AttributeError, OSError) as error:
            self.close()
            raise AdapterError(
                f"no pseudo-terminal ({error}); a simulated board needs one: use Linux, macOS or WSL"
            ) from None
        if link is not None:
            try:
                if link.is_symlink():
                    link.unlink()
                link.symlink_to(self.path)
            except OSError as error:
                self.close()
                raise AdapterError(
                    f"{link} cannot be made ({error.strerror}); name another place for the link"
                ) from None
            self._link = link

    def close(self) -> None:
        """Take the terminal away. Safe to call twice."""
        for name in ("_master", "_slave"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)
        if self._link is not None and self._link.is_symlink():
            self._link.unlink()
        self._link = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def counts(self) -> dict[str, int]:
        """Ticks run, bytes and answers carried, bytes overrun, and faults that happened by kind."""
        return {"ticks": self._board.ticks, "clocks": self._board.clocks, **self._counts}

    # -- serving

    def serve(self, wake: int) -> None:
        """Serve the host until `wake` can be read.

        Parameters
        ----------
        wake : int
            File descriptor, of a pipe for instance.
        """
        while True:
            # bytes that nothing is to befall never come here: the board takes and answers them by itself
            alone = self._alone()
            served = self._board.serve(self._master, wake, self._wait_ns(), **alone)
            self._to_board.skip(served.n_in)
            self._to_host.skip(served.n_out)
            self._counts["bytes_in"] += served.n_in
            self._counts["bytes_out"] += served.n_sent
            self._counts["answers"] += served.n_answers
            if served.is_woken:
                return
            if served.data:
                self._next_tick = self._board.peek(TICK_ADDRESS)
                self._take(served.data)
            self._send()

    def _alone(self) -> dict[str, Any]:
        """How far the board may be served with nothing of what stands here."""
        if self._answers or self._swapped is not None or self._is_stopped():
            return {"bytes_in": 0}
        limits: dict[str, Any] = {"bytes_in": self._to_board.n_whole, "bytes_out": self._to_host.n_whole}
        if self._at_ticks or self._delays or self._swaps:
            first = self._board.peek(TICK_ADDRESS)
            limits["ticks"] = first, self._quiet_ticks(first)
        return limits

    def _quiet_ticks(self, first: int) -> int:
        """How many ticks from one on are run and answered just so."""
        due = [*self._swaps, *(fault.tick for fault in self._at_ticks)]
        for fault in self._delays:
            due += fault.ticks
            if fault.every:
                due += [first + -first % fault.every, 0]  # their numbers begin anew where ticks do
        return min(((tick - first) % TICKS for tick in due), default=TICKS)

    def _take(self, data: bytes) -> None:
        """Carry bytes to the board, and its answers to where they wait to be sent."""
        self._counts["bytes_in"] += len(data)
        self._pending += self._to_board.carry(data, self._next_tick, self._report)
        if (excess := len(self._pending) - MAX_UNDER_WAY) > 0:
            # a board's FIFO is full then
            del self._pending[MAX_UNDER_WAY:]
            self._board.lose(excess)
            self._counts["overrun"] += excess
        while self._pending:
            self._befall()
            if self._is_stopped():
                self._pending.clear()
                return
            ticks = self._board.ticks
            n_taken, answer = self._board.run(bytes(self._pending))
            del self._pending[:n_taken]
            if answer:
                self._queue(answer, self._next_tick if self._board.ticks != ticks else None)
            self._next_tick = self._board.peek(TICK_ADDRESS)

    def _befall(self) -> None:
        """Do to the board what is due before its next tick, once each."""
        for fault in [fault for fault in self._at_ticks if fault.tick == self._next_tick]:
            self._at_ticks.remove(fault)
            self._report(Injection(fault.kind, self._next_tick))
            if isinstance(fault, Memory):
                word = self._board.peek(fault.address)
                self._board.poke(fault.address, word ^ (1 << fault.bit))
            elif isinstance(fault, Reset):
                self._board.reset()
                self._next_tick = self._board.peek(TICK_ADDRESS)
            else:
                for_ns = float("inf") if fault.for_ms is None else fault.for_ms * 1e6
                self._stopped_until_ns = time.monotonic_ns() + for_ns

    def _is_stopped(self) -> bool:
        return self._stopped_until_ns > 0 and time.monotonic_ns() < self._stopped_until_ns

    def _queue(self, answer: bytes, tick: int | None) -> None:
        """Let an answer wait until it may go; `tick` is the one that it answers, if any."""
        due_ns = self._answers[-1][0] if self._answers else 0
        for fault in self._delays:
            if tick is not None and (tick in fault.ticks or (fault.every and tick % fault.every == 0)):
                due_ns = max(due_ns, time.monotonic_ns() + int(fault.ms * 1e6))
                self._report(Injection("delay", tick))
        if self._swapped is not None:
            self._answers.append((due_ns, answer))
            self._answers.append((due_ns, self._swapped[1]))
            self._swapped = None
        elif tick is not None and (swap := self._swaps.pop(tick, None)) is not None:
            self._swapped = (time.monotonic_ns() + int(swap.within_ms * 1e6), answer)
            self._report(Injection("reorder", tick))
        else:
            self._answers.append((due_ns, answer))

    def _wait_ns(self) -> float:
        """How long until an answer may go."""
        due_ns = [self._answers[0][0]] if self._answers else []
        if self._swapped is not None:
            due_ns.append(self._swapped[0])
        return max(0, min(due_ns) - time.monotonic_ns()) if due_ns else math.inf

    def _send(self) -> None:
        """Send what may go."""
        now_ns = time.monotonic_ns()
        if self._swapped is not None and self._swapped[0] <= now_ns:
            self._answers.append((now_ns, self._swapped[1]))
            self._swapped = None
        while self._answers and self._answers[0][0] <= now_ns:
            data = self._to_host.carry(self._answers.popleft()[1], self._next_tick, self._report)
            # nobody may be reading: what the terminal does not take is lost, as on a line
            with contextlib.suppress(BlockingIOError):
                self._counts["bytes_out"] += os.write(self._master, data)
            self._counts["answers"] += 1

    def _report(self, injection: Injection) -> None:
        self._counts[injection.kind] += 1
        if len(self.injections) < MAX_INJECTIONS:
            self.injections.append(injection)


class SimulatedBoard:
    """A `BoardServer` in a process of its own, so that it and its host do not wait for each other's interpreter.

    Parameters are those of `BoardServer`. Used in a `with` statement, or by `start` and `stop`.

    Attributes
    ----------
    path : str
        Of the terminal, once started.

    Raises
    ------
    AdapterError
        On start, as from `BoardServer`, or if it does not come up.
    """

    def __init__(
        self,
        *,
        protocol: BoardProtocol = "neuromod",
        words: NDArray[Any] | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        link: Path | None = None,
    ) -> None:
        self._settings = {
            "protocol": protocol,
            "words": None if words is None else np.asarray(words, np.int64).tolist(),
            "faults": FAULTS.dump_python(tuple(faults), mode="json", by_alias=True),
            "seed": seed,
            "link": None if link is None else str(link),
        }
        self._process: subprocess.Popen[str] | None = None
        self._last: dict[str, Any] = {"counts": {}, "injections": []}
        self.path = ""

    def start(self) -> Self:
        """Start the process, and wait until the terminal is there."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt at the keyboard is its parent's business
        )
        try:
            answer = self._ask(json.dumps(self._settings), START_S)
            if "error" in answer:
                raise AdapterError(answer["error"])
        except BaseException:
            self._end()
            raise
        self.path = answer["path"]
        return self

    def stop(self) -> None:
        """End the process; counts stay. Safe to call twice."""
        if self._process is not None:
            with contextlib.suppress(AdapterError):
                self._refresh()
            self._end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def counts(self) -> dict[str, int]:
        """Ticks run, bytes and answers carried, bytes overrun, and faults that happened by kind."""
        return dict(self._refresh()["counts"])

    @property
    def injections(self) -> list[Injection]:
        """Faults that happened."""
        return [Injection(*each) for each in self._refresh()["injections"]]

    def _refresh(self) -> dict[str, Any]:
        if self._process is not None:
            self._last = self._ask("tell", STOP_S)
        return self._last

    def _ask(self, line: str, timeout_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(line + "\n")
            process.stdin.flush()
        ready, _, _ = select.select((process.stdout,), (), (), timeout_s)
        if not ready:
            raise AdapterTimeoutError(f"the simulated board's process says nothing within {timeout_s:g} s")
        answer = process.stdout.readline()
        if not answer:
            raise AdapterError("the simulated board's process has ended; what it said stands above")
        result: dict[str, Any] = json.loads(answer)
        return result

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # the process ends with it
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _main() -> None:
    """Serve a board for `SimulatedBoard`: settings come on stdin, then requests to tell; its end is ours."""
    settings = json.loads(sys.stdin.readline())
    words, link = settings["words"], settings["link"]
    try:
        server = BoardServer(
            protocol=settings["protocol"],
            words=None if words is None else np.array(words),
            faults=FAULTS.validate_python(settings["faults"]),
            seed=settings["seed"],
            link=None if link is None else Path(link),
        )
    except (AdapterError, ConfigError, ImportError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    with server:
        print(json.dumps({"path": server.path}), flush=True)
        while True:
            server.serve(sys.stdin.fileno())
            if not sys.stdin.readline():
                return
            print(json.dumps({"counts": server.counts, "injections": server.injections}), flush=True)


if __name__ == "__main__":
    _main()
