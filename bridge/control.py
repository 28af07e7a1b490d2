"""The control socket: one request, one reply, from a thread that the loop never waits for."""

import importlib.metadata
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from numpy.typing import NDArray

from neuromod.adapters.decoder import make_decoder
from neuromod.adapters.decoder_config import DecoderFileConfig
from neuromod.bridge import gate as safety
from neuromod.bridge import loop_state as rt
from neuromod.bridge import wire
from neuromod.bridge.admission import Admission
from neuromod.bridge.arming import Arming
from neuromod.bridge.checkpoints import Checkpointer
from neuromod.bridge.collector import Collector
from neuromod.bridge.commands import (
    NETWORK_PARAMETERS,
    ArmArgs,
    CommandError,
    LearningArgs,
    OptionalPathArgs,
    PathArgs,
    SetArgs,
    parse_args,
)
from neuromod.bridge.config import PublishConfig
from neuromod.bridge.doorkeeper import Doorkeeper
from neuromod.bridge.offload import MODULATING
from neuromod.bridge.pipeline import DELAY
from neuromod.bridge.roles import Sender
from neuromod.engine.config import check_live
from neuromod.engine.errors import ConfigError
from neuromod.engine.layout import LAYOUT_ID, LAYOUT_VERSION, LIVE

log = logging.getLogger(__name__)

_PUBLISH = ("state_hz", "array_hz", "health_s")
_POLL_MS = 50
_ARM_WITHIN_S = 0.5  # shorter than the wait for its echo


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
    door : Doorkeeper
        Knows who sent a request.
    admission : Admission
        Says which requests are carried out.
    arming : Arming, optional
        Who may arm; without it nobody is asked for a key.
    ledger_fault : callable
        Says in a sentence what is wrong with the ledger of the dose; empty where nothing is.
    checkpoints : Checkpointer, optional
        Of this session.
    """

    def __init__(
        self,
        socket: "zmq.Socket[bytes]",
        collector: Collector,
        on_stop: Callable[[], None],
        *,
        door: Doorkeeper,
        admission: Admission,
        arming: Arming | None = None,
        ledger_fault: Callable[[], str] = lambda: "",
        checkpoints: Checkpointer | None = None,
    ) -> None:
        self._socket, self._collector, self._on_stop = socket, collector, on_stop
        self._door, self._admission = door, admission
        self._arming, self._ledger_fault = arming or Arming(None), ledger_fault
        self._checkpoints = checkpoints or Checkpointer(collector)
        self._decoders: list[tuple[NDArray[Any], str]] = []  # those that were swapped out, and where they came from

    def run(self, stop: threading.Event) -> None:
        """Answer until `stop` is set."""
        while not stop.is_set():
            if self._socket.poll(_POLL_MS):
                self._answer(self._socket.recv_multipart(copy=False))

    def _answer(self, frames: list[zmq.Frame]) -> None:
        cmd, number = "", None
        sender = self._door.sender(frames[-1])
        try:
            envelope, payload = wire.split_envelope([frame.bytes for frame in frames])
        except wire.MessageError as error:
            self._collector.refuse(error.reason, str(error))
            return
        try:
            request = wire.unpack_request(payload)
            cmd, number = request.cmd, request.id
            self._admission.check(sender, cmd, request.session, request.seq)
            reply = wire.Reply(True, self._do(cmd, parse_args(cmd, request.args), sender), id=number)
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

    def _do(self, cmd: str, args: Any, sender: Sender) -> dict[str, Any]:
        collector = self._collector
        match cmd, args:
            case "status", _:
                return {"health": collector.health(), "parameters": self._parameters()}
            case "pause", _:
                return _tick(collector.call(rt.PAUSE))
            case "resume", _:
                return _tick(collector.call(rt.RESUME))
            case "stop", _:
                return {"tick": collector.last_tick}
            case "learning", LearningArgs():
                return _tick(collector.call(rt.LEARNING, word=int(args.on)))
            case "set", SetArgs():
                return self._set(args.parameters)
            case "checkpoint", OptionalPathArgs():
                return self._checkpoint(args.path)
            case "restore", PathArgs():
                return _tick(self._checkpoints.restore(Path(args.path)))
            case "challenge", _:
                self._check_stimulation("challenge")
                return {"nonce": self._arming.challenge()}
            case "arm", ArmArgs():
                return self._arm(args)
            case "disarm", _:
                return self._disarm()
            case "decoder", PathArgs():
                return self._swap_decoder(Path(args.path))
            case "rollback", _:
                return self._roll_back()
            case "hello", _:
                return {"session": self._admission.hello(sender)}
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
        has_board = self._collector.assembly.pipeline.words[DELAY] > 0
        for name, value in parameters.items():
            if name not in known:
                raise CommandError("bad_args", f"set: {name!r} cannot be set; these can: {', '.join(known)}")
            if has_board and name in NETWORK_PARAMETERS and NETWORK_PARAMETERS[name] not in MODULATING:
                raise CommandError(
                    "refused",
                    f"set: a board is the network of this session, and {name} never reaches it: nothing that is "
                    "published would change; set it in the session file, and start daemon and adapter anew",
                )
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
            tick = int(self._collector.call(rt.SET, word=word, values=values)["tick"])
        for name in parameters.keys() - NETWORK_PARAMETERS.keys():
            setattr(self._collector, name.removeprefix("publish."), float(parameters[name]))
        return {"tick": tick, "parameters": self._parameters()}

    def _checkpoint(self, name: str | None) -> dict[str, Any]:
        path = Path(name) if name else Path(time.strftime("neuromod-%Y%m%d-%H%M%S.checkpoint"))
        tick = self._checkpoints.save(path)
        return {"path": str(path.absolute()), "tick": tick}

    def _keep_and_call(self, kind: int, record_as: str, body: dict[str, Any], word: int = 0) -> Any:
        """Put what an input brings with it into the record, then call the loop with the number that names it."""
        number = self._collector.next_id()
        if self._collector.recorder is not None:
            self._collector.recorder.add_message(record_as, {"id": number, **body})
        return self._collector.call(kind, word=word, number=number)

    def _arm(self, args: ArmArgs) -> dict[str, Any]:
        self._check_stimulation("arm")
        self._arming.check(args.seconds, args.nonce, args.mac)
        if self._ledger_fault():
            raise CommandError("refused", f"arm: {self._ledger_fault()}")
        token = secrets.randbelow(2**53 - 1) + 1  # every language can hold it
        deadline = self._collector.now() + _ARM_WITHIN_S
        try:
            echo = self._collector.call(rt.ARM, word=token, values=[args.seconds, 0.0, 0.0, deadline])
        except TimeoutError:
            self._collector.halt()  # should it have been armed, nobody has the token
            raise
        reason = int(echo["values"][1])
        if reason != safety.ALLOWED:
            raise CommandError("refused", f"arm: refused by the gate: {safety.REASON_TEXTS[reason]}")
        config = self._collector.assembly.stimulation_config
        heartbeat_ms = config.heartbeat_ms if config is not None else 0.0  # what the operator has to keep up with
        until = float(echo["now_ns"]) * 1e-9 + args.seconds
        return _tick(echo) | {
            "token": token,
            "arms": int(self._collector.assembly.stimulation.gate[0]["arms"]),
            "until": until,
            "heartbeat_ms": heartbeat_ms,
        }

    def _disarm(self) -> dict[str, Any]:
        self._check_stimulation("disarm")
        self._collector.halt(safety.DISARMED)  # waits behind nothing; the call then says from which tick on it holds
        return _tick(self._collector.call(rt.DISARM, word=safety.DISARMED))

    def _check_stimulation(self, cmd: str) -> None:
        if self._collector.assembly.stimulation_config is None:
            raise CommandError("refused", f"{cmd}: this session has no [stimulation]")

    def _swap_decoder(self, path: Path) -> dict[str, Any]:
        assembly = self._collector.assembly
        now = assembly.decoder[0]
        if not now["n_outputs"]:
            raise CommandError("refused", "decoder: this session has no [decoder], so nobody listens to its outputs")
        found = make_decoder(DecoderFileConfig(path=path), assembly.network.dt_ms)
        if found[0]["n_outputs"] != now["n_outputs"]:
            raise CommandError(
                "refused",
                f"decoder: {path} has {found[0]['n_outputs']} outputs, the session has {now['n_outputs']}; "
                "fit one with as many",
            )
        _keep_events(found[0], now, path)
        before = (assembly.decoder.copy(), self._collector.decoder_from)
        result = self._install(found, str(path))
        self._decoders.append(before)
        return result

    def _roll_back(self) -> dict[str, Any]:
        if not self._decoders:
            raise CommandError("refused", "rollback: no decoder was swapped in")
        decoder, source = self._decoders[-1]
        result = self._install(decoder, source)
        self._decoders.pop()
        return result

    def _install(self, decoder: NDArray[Any], source: str) -> dict[str, Any]:
        self._checkpoints.check_answered()
        self._collector.loop.next_decoder[:] = decoder
        version = int(decoder[0]["version"])
        body = {"version": version, "from": source, "data": decoder.tobytes()}
        self._collector.decoder_sources[version] = source
        echo = self._keep_and_call(rt.DECODER_SWAP, "decoders", body, word=version)
        return _tick(echo) | {"version": version, "from": source}


def _keep_events(found: Any, running: Any, path: Path) -> None:
    """Give a decoder that has no events those of the running one, which triggers of stimulation may stand on.

    Events of channels mean the same in any decoder. A level of an output does not: its unit may be another.
    """
    n = int(running["n_events"])
    if found["n_events"] or not n:
        return
    if (running["event_channel"][:n] < 0).any():
        raise CommandError(
            "refused",
            f"decoder: {path} has no events, and the session has some at levels of outputs, which would be lost; "
            "add events to the file's decoder, or take those of outputs out of the session",
        )
    for name in ("n_events", "event_channel", "event_output", "event_above", "event_below", "event_refractory"):
        found[name] = running[name]


def _tick(echo: Any) -> dict[str, Any]:
    return {"tick": int(echo["tick"])}
