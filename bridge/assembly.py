"""Builds the parts of a loop from its configuration and the stream it will work on.

The daemon, replay and benchmarks all come through here, so that they run the same front end, encoder and network.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuromod.adapters.base import StreamInfo
from neuromod.adapters.config import ZmqConfig
from neuromod.adapters.decoder import make_decoder
from neuromod.bridge.config import SessionConfig, complete
from neuromod.bridge.offload import check_offload
from neuromod.bridge.pipeline import N_DECISIONS, N_UNITS, TICK, TICK_NEXT, Pipeline, consume, make_pipeline, set_time
from neuromod.bridge.safety_config import StimulationConfig, is_sent
from neuromod.bridge.stimulation import StimulationState, make_stimulation
from neuromod.engine.layout import N_CHANNELS
from neuromod.engine.network import SpikingNetwork
from neuromod.sorting.baseline import Baseline
from neuromod.sorting.config import EncoderConfig, FrontEndConfig
from neuromod.sorting.encoder import Encoder
from neuromod.sorting.front_end import FrontEnd

LONGEST_TICK_MS = 1.0

# A feature vector is a block of one sample that needs no filter, so that all kinds of source share one path.
_NO_FRONT_END = FrontEndConfig(features=("raw",), reference="none")
# Stimuli messages reach the network as they are.
_NO_ENCODER = EncoderConfig(kind="identity", smoothing_ms=0.0, normalisation="none", offset=0.0, clip=(-3e38, 3e38))
_STIMULI_NAMES = tuple(f"stimulus{i}" for i in range(N_CHANNELS))


@dataclass(frozen=True, slots=True)
class Assembly:
    """The parts of one loop, ready to run.

    Attributes
    ----------
    info : StreamInfo
        The stream it was built for.
    block_ms : float
        Length of a block, in ms.
    ticks_per_block : int
        Network steps per block, of `block_ms` / `ticks_per_block` each.
    pipeline : Pipeline
        State of `consume`.
    front_end, encoder, network
        The parts themselves.
    decoder : ndarray of DECODER, shape (1,)
        From spikes to commands.
    stimulation : StimulationState
        Programs, triggers and the safety gate.
    stimulation_config : StimulationConfig or None
        What it was made from.
    built_from : str
        Hash of all that was configured: equal for loops that may take each other's checkpoints.
    """

    info: StreamInfo
    block_ms: float
    ticks_per_block: int
    pipeline: Pipeline
    front_end: FrontEnd
    encoder: Encoder
    network: SpikingNetwork
    decoder: NDArray[Any]
    stimulation: StimulationState
    stimulation_config: StimulationConfig | None
    built_from: str

    @property
    def samples_per_block(self) -> float:
        """Samples of a block; not necessarily a whole number."""
        return max(1.0, self.info.sampling_frequency * self.block_ms / 1000.0)

    @property
    def states(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        """State of each part, in the order in which compiled functions take them."""
        return (
            self.pipeline,
            self.front_end.state,
            self.encoder.state,
            self.network.state,
            self.decoder,
            self.stimulation,
        )

    def parts(self) -> list[NDArray[Any]]:
        """Return the arrays that together are the state of the loop: what a checkpoint holds.

        Decisions of the gate and spikes of units are none: they are made, and sent, within one turn of the loop.
        """
        return [
            *(part for name, part in self.pipeline._asdict().items() if name not in ("decisions", "units")),
            *self.front_end.parts(),
            *self.encoder.state,
            self.network.state,
            self.decoder,
            self.stimulation.gate,
        ]

    def consume(
        self, samples: NDArray[np.float32], stamps: NDArray[np.float64], first: int, records: NDArray[Any]
    ) -> tuple[int, int]:
        """Call `pipeline.consume` on the parts, without a loop: the gate goes by the time of the network."""
        words = self.pipeline.words
        words[N_DECISIONS] = words[N_UNITS] = 0
        set_time(self.pipeline, int(words[TICK_NEXT] * self.network.dt_ms * 1e6), 0)
        done: tuple[int, int] = consume(*self.states, samples, stamps, first, stamps.shape[0], records)
        return done

    def records(self, at_least: int = 1024) -> NDArray[Any]:
        """Return room for the records of at least one block."""
        return np.zeros(max(at_least, self.ticks_per_block), TICK)


def stimuli_stream(config: ZmqConfig) -> StreamInfo:
    """Describe the stream that stimuli messages make up."""
    return StreamInfo(
        name="zmq",
        kind="features",
        n_channels=N_CHANNELS,
        sampling_frequency=1000.0 / config.block_ms,
        channel_names=_STIMULI_NAMES,
        units=("",) * N_CHANNELS,
        is_regular=False,
    )


def block_length_ms(config: SessionConfig, info: StreamInfo) -> float:
    """Return the length of a block: of signal at least one sample, of features exactly one vector."""
    period_ms = 1000.0 / info.sampling_frequency
    return max(config.timing.block_ms, period_ms) if info.kind == "signal" else period_ms


def assemble(
    config: SessionConfig,
    info: StreamInfo,
    *,
    scale: NDArray[np.float32] | None = None,
    yoked: NDArray[Any] | None = None,
) -> Assembly:
    """Build the parts of a loop.

    Parameters
    ----------
    config : SessionConfig
        The session.
    info : StreamInfo
        The stream, of a source that is open.
    scale : ndarray of float32, shape (n_channels,), optional
        Factor of each raw sample to microvolts, where the source has not applied it.
    yoked : ndarray, optional
        Trains of another session, for the mode "yoked".

    Raises
    ------
    ConfigError
        Where front end, encoder, baseline or a board that is the network do not fit the stream.
    """
    block_ms = block_length_ms(config, info)
    ticks_per_block = max(1, math.ceil(block_ms / LONGEST_TICK_MS - 1e-9))
    if config.offload is not None:
        check_offload(config.offload, config.network, block_ms / ticks_per_block, ticks_per_block)
    is_stimuli = config.source_content == "stimuli"
    baseline = Baseline.load(config.session.baseline) if config.session.baseline is not None else None
    is_signal = info.kind == "signal"
    front_end = FrontEnd(
        config.front_end if is_signal else _NO_FRONT_END,
        info.n_channels,
        info.sampling_frequency,
        info.channel_names,
        baseline if is_signal else None,
        # stimuli messages come from a program, which no pulse disturbs
        artefacts=config.artefacts if config.stimulation is not None and not is_stimuli else None,
        electrode_names=[e.name for e in config.stimulation.electrodes] if config.stimulation is not None else (),
    )
    names = front_end.feature_names if is_signal else info.channel_names
    encoder = Encoder(
        _NO_ENCODER if is_stimuli else config.encoder,
        front_end.n_features,
        names,
        baseline,
        block_ms=block_ms,
        bundle=front_end.bundle,
    )
    timing = config.timing
    built_from = hashlib.sha256(repr((info.kind, info.n_channels, info.sampling_frequency, block_ms)).encode())
    for part in (
        "".join(info.channel_names),
        front_end.config.model_dump_json(),
        encoder.config.model_dump_json(),
        complete(config.network).model_dump_json(),
        timing.model_dump_json(include={"jitter_ms", "fill", "max_fill_ms"}),
        config.decoder.model_dump_json() if config.decoder is not None else "",
        config.offload.model_dump_json() if config.offload is not None else "",
        config.stimulation.model_dump_json() + config.artefacts.model_dump_json() if config.stimulation else "",
        baseline.model_dump_json() if baseline is not None else "",
        front_end.bundle.info.model_dump_json() if front_end.bundle is not None else "",
    ):
        built_from.update(part.encode() + b"\0")
    if encoder.config.matrix_path is not None:
        built_from.update(encoder.config.matrix_path.read_bytes())
    if scale is not None:
        built_from.update(scale.tobytes())
    network = SpikingNetwork(config.network, dt_ms=block_ms / ticks_per_block)
    return Assembly(
        info=info,
        block_ms=block_ms,
        ticks_per_block=ticks_per_block,
        pipeline=make_pipeline(
            n_channels=info.n_channels,
            n_features=front_end.n_features,
            sampling_frequency=info.sampling_frequency,
            block_ms=block_ms,
            ticks_per_block=ticks_per_block,
            regular=info.is_regular,
            jitter_ms=timing.jitter_ms,
            fill=timing.fill,
            max_fill_ms=timing.max_fill_ms,
            scale=scale,
            delay_ticks=config.offload.delay_ticks if config.offload is not None else 0,
            checked_only=config.stimulation is not None
            # a sham of a blind pair that took others would tell itself by them
            and (is_sent(config.stimulation.mode) or config.stimulation.blind),
        ),
        front_end=front_end,
        encoder=encoder,
        network=network,
        decoder=make_decoder(config.decoder, network.dt_ms),
        stimulation=make_stimulation(config.stimulation, dt_ms=network.dt_ms, yoked=yoked),
        stimulation_config=config.stimulation,
        built_from=built_from.hexdigest(),
    )
