"""A subscriber in compiled code: it stamps what arrives without ever waiting for the interpreter."""

import threading
from typing import Any, Self

import numpy as np
import pylsl
import zmq
from numpy.typing import NDArray

from neuromod.bridge import wire
from neuromod.bridge.keys import ClientKey
from neuromod.bridge.native import (
    LSL_LOCAL_CLOCK,
    ZMQ_RECV,
    c_functions,
    call_clock,
    call_recv,
    copy,
    get_word,
    load_acquire,
    set_word,
)
from neuromod.bridge.ring import Ring, commit, drain, make_ring, reserve, rows_of
from neuromod.engine.compiled import jit
from neuromod.engine.layout import N_CHANNELS

_FRAME = wire.spikes_frame(N_CHANNELS)
_SIZE = len(_FRAME.template)
HEARD = np.dtype(
    [
        ("t_arrival", np.float64),
        ("seq", np.uint64),
        ("tick", np.uint64),
        ("t_sample", np.float64),
        ("spikes", np.uint32),
        ("flags", np.uint32),
    ]
)
"""One `spikes` message as it arrived; `t_arrival` in seconds on the local clock."""

_ARRIVED = np.dtype([("t_arrival", np.float64), ("data", np.uint8, (_SIZE,))])
_TIMEOUT_MS = 20


@jit
def _listen(
    functions: NDArray[np.int64],
    stop: NDArray[np.int64],
    socket: int,
    ring: Ring,
    arrival: NDArray[np.float64],
    arrival_bytes: NDArray[np.uint8],
    buffer: NDArray[np.uint8],
) -> None:
    """Receive until ``stop[0]`` is set. Only messages of the fixed layout are kept."""
    room = np.uint64(buffer.shape[0])
    while load_acquire(stop, 0) == 0:
        if call_recv(functions[ZMQ_RECV], (socket, buffer.ctypes.data, room, np.int32(0))) < 0:
            continue
        n = call_recv(functions[ZMQ_RECV], (socket, buffer.ctypes.data, room, np.int32(0)))
        arrival[0] = call_clock(functions[LSL_LOCAL_CLOCK], ())
        at = reserve(ring) if n == ring.rows.shape[1] - 8 else -1
        if at >= 0:
            copy(ring.rows[at, :8], arrival_bytes)
            copy(ring.rows[at, 8:], buffer)  # which may be longer
            commit(ring)


class Listener:
    """Subscribes to `spikes` and keeps each message with the instant of its arrival; a context manager.

    Parameters
    ----------
    address : str
        Of the daemon's output socket.
    key : ClientKey, optional
        For a daemon that asks for keys.
    """

    def __init__(self, address: str, key: ClientKey | None = None) -> None:
        self._ring = make_ring(_ARRIVED, 1 << 16)
        self._stop = np.zeros(1, np.int64)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.rcvtimeo = _TIMEOUT_MS
        self._socket.reconnect_ivl = 10
        self._socket.subscribe(wire.TOPIC_SPIKES)
        if key is not None:
            key.apply(self._socket)
        self._socket.connect(address)
        self._thread = threading.Thread(target=self._run, name="neuromod-listener", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        set_word(self._stop, 0, 1)
        self._thread.join(1.0)
        self._socket.close(0)
        self._context.term()

    def heard(self) -> NDArray[Any]:
        """Return the messages since the last call, as an array of HEARD."""
        arrived = drain(self._ring, _ARRIVED, limit=1 << 16)
        found = np.zeros(len(arrived), HEARD)
        data = arrived["data"]
        found["t_arrival"] = arrived["t_arrival"]
        for name, kind in (("seq", ">u8"), ("tick", ">u8"), ("t_sample", ">f8"), ("flags", ">u4"), ("spikes", "<u2")):
            at = _FRAME.offsets[name]
            found[name] = np.ascontiguousarray(data[:, at : at + np.dtype(kind).itemsize]).view(kind)[:, 0]
        return found

    def _run(self) -> None:
        functions = c_functions()
        arrival = np.zeros(1, np.float64)
        buffer = np.zeros(max(_SIZE, 64), np.uint8)
        if functions[ZMQ_RECV] and functions[LSL_LOCAL_CLOCK]:
            _listen(functions, self._stop, self._socket.underlying, self._ring, arrival, arrival.view(np.uint8), buffer)
        else:
            self._listen_in_python()

    def _listen_in_python(self) -> None:
        record = np.zeros(1, _ARRIVED)
        while not get_word(self._stop, 0):
            try:
                _, payload = self._socket.recv_multipart()
            except zmq.Again:
                continue
            record["t_arrival"] = pylsl.local_clock()
            if len(payload) == _SIZE and (at := reserve(self._ring)) >= 0:
                record["data"][0] = np.frombuffer(payload, np.uint8)
                self._ring.rows[at] = rows_of(record)[0]
                commit(self._ring)
