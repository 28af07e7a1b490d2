"""The control socket: one request, one reply, from a thread that the loop never waits for."""

import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from neuromod.bridge import checkpoint, wire
from neuromod.bridge import loop_state as rt
from neuromod.bridge.collector import Collector
from neuromod.bridge.commands import (
    NETWORK_PARAMETERS,
    CommandError,
    LearningArgs,
    OptionalPathArgs,
    PathArgs,
    SetArgs,
    parse_args,
)
from neuromod.bridge.config import PublishConfig
from neuromod.engine.config import check_live
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import LAYOUT_ID, LAYOUT_VERSION, LIVE

log = logging.getLogger(__name__)

_PUBLISH = ("state_hz", "health_s")
_POLL_MS = 50


class Control:
    """Answers requests on a bound ROUTER socket; one thread calls `run`, and owns the socket while it does.

    Parameters
    ----------
    socket : zmq.Socket
        ROUTER, bound.
    collector : Collector
        The way to the loop.
    on_stop : callable
        Called for the command `stop`, after the reply went out.
    monitor : zmq.Socket, optional
        Tells each end of a connection to ingest, which is all there is to see of a message too large for libzmq.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        collector: Collector,
        on_stop: Callable[[], None],
        monitor: "zmq.Socket[bytes] | None" = None,
    ) -> None:
        self._socket, self._collector, self._on_stop, self._monitor = socket, collector, on_stop, monitor

    def run(self, stop: threading.Event) -> None:
        """Answer until `stop` is set."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        if self._monitor is not None:
            poller.register(self._monitor, zmq.POLLIN)
        while not stop.is_set():
            ready = dict(poller.poll(_POLL_MS))
            if self._monitor is not None and self._monitor in ready:
                self._monitor.recv_multipart()
                log.info(
                    "a connection to ingest ended: the client left, or sent more than libzmq takes (1 MiB) at once"
                )
                self._collector.disconnects += 1
            if self._socket in ready:
                self._answer(self._socket.recv_multipart())

    def _answer(self, frames: list[bytes]) -> None:
        cmd, number = "", None
        try:
            envelope, payload = wire.split_envelope(frames)
        except wire.MessageError as error:
            self._collector.refuse(error.reason, str(error))
            return
        try:
            request = wire.unpack_request(payload)
            cmd, number = request.cmd, request.id
            reply = wire.Reply(True, self._do(cmd, parse_args(cmd, request.args)), id=number)
        except (wire.MessageError, CommandError) as error:
            self._collector.refuse(error.reason, str(error))
            reply = wire.Reply(False, error=str(error), reason=error.reason, id=number)
        except (ConfigError, OSError, TimeoutError) as error:
            reply = wire.Reply(False, error=str(error), reason="refused", id=number)
        except Exception:  # a fault of ours must not take control of the session away
            log.exception("command %r failed", cmd)
            reply = wire.Reply(False, error=f"{cmd}: a fault of the daemon; see its log", reason="internal", id=number)
        # a client that left is no reason to wait
        self._socket.send_multipart([*envelope, wire.pack_reply(reply)], zmq.DONTWAIT)
        if cmd == "stop" and reply.ok:
            self._on_stop()

    def _do(self, cmd: str, args: Any) -> dict[str, Any]:
        collector = self._collector
        match cmd, args:
            case "status", _:
                return {"health": collector.health(), "parameters": self._parameters()}
            case "pause", _:
                return {"tick": collector.call(rt.PAUSE)}
            case "resume", _:
                return {"tick": collector.call(rt.RESUME)}
            case "stop", _:
                return {"tick": collector.last_tick}
            case "learning", LearningArgs():
                return {"tick": collector.call(rt.LEARNING, word=int(args.on))}
            case "set", SetArgs():
                return self._set(args.parameters)
            case "checkpoint", OptionalPathArgs():
                return self._checkpoint(args.path)
            case "restore", PathArgs():
                return self._restore(Path(args.path))
            case "version", _:
                return {
                    "package": importlib.metadata.version("neuromod-bridge"),
                    "protocol": wire.PROTOCOL_VERSION,
                    "layout": LAYOUT_VERSION,
                    "layout_id": LAYOUT_ID.hex(),
                }
        raise CommandError("unknown_command", f"{cmd!r} is known but not carried out by this daemon")

    def _parameters(self) -> dict[str, float]:
        live = self._collector.assembly.network.state[0]["live"]
        found = {name: float(live[LIVE.index(key)]) for name, key in NETWORK_PARAMETERS.items()}
        return found | {f"publish.{name}": float(getattr(self._collector, name)) for name in _PUBLISH}

    def _set(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Change all of the parameters, or none where one of them cannot be."""
        known = self._parameters()
        for name, value in parameters.items():
            if name not in known:
                raise CommandError("bad_args", f"set: {name!r} cannot be set; these can: {', '.join(known)}")
            if isinstance(value, bool | str):
                raise CommandError("bad_args", f"set: {name} must be a number, not {value!r}")
            try:
                if name in NETWORK_PARAMETERS:
                    check_live(NETWORK_PARAMETERS[name], float(value))
                else:
                    PublishConfig.model_validate({name.removeprefix("publish."): value})
            except ValueError as error:
                # the engine's own name for the parameter says nothing to who set it
                why = str(error).removeprefix(f"{NETWORK_PARAMETERS.get(name)}: ")
                raise CommandError("bad_args", f"set: {name}: {why}") from None
        tick, word, values = None, 0, [0.0] * len(LIVE)
        for name, value in parameters.items():
            if name in NETWORK_PARAMETERS:
                at = LIVE.index(NETWORK_PARAMETERS[name])
                word |= 1 << at
                values[at] = float(value)
        if word:  # one input, so that all of them change at the same boundary
            tick = self._collector.call(rt.SET, word=word, values=values)
        for name in parameters.keys() - NETWORK_PARAMETERS.keys():
            setattr(self._collector, name.removeprefix("publish."), float(parameters[name]))
        return {"tick": tick, "parameters": self._parameters()}

    def _checkpoint(self, name: str | None) -> dict[str, Any]:
        path = Path(name) if name else Path(time.strftime("neuromod-%Y%m%d-%H%M%S.checkpoint"))
        tick = self._collector.call(rt.SNAPSHOT)
        checkpoint.save(path, self._collector.assembly, self._collector.loop.snapshot, tick)
        return {"path": str(path.absolute()), "tick": tick}

    def _restore(self, path: Path) -> dict[str, Any]:
        # only this thread writes the copy, and the loop reads it only when told to
        self._collector.loop.snapshot[:] = checkpoint.load(path, self._collector.assembly)
        return {"tick": self._collector.call(rt.RESTORE)}
