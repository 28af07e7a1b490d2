"""The network once more, slow and obvious: one neuron at a time, scalars of the width that the kernels use."""

import math
from typing import Protocol

import numpy as np

from naive.adex import NaiveAdEx
from naive.fitzhugh_nagumo import NaiveFitzHughNagumo
from naive.hodgkin_huxley import NaiveHodgkinHuxley
from naive.izhikevich import NaiveIzhikevich
from naive.lapicque import NaiveLapicque
from naive.lif import NaiveLif
from naive.noise import seeded
from naive.plasticity import NaivePlasticity
from naive.pospischil import NaivePospischil
from neuromod.engine.config import ChannelConfig, NetworkConfig
from neuromod.engine.layout import MAX_DELAY_TICKS
from neuromod.engine.models.catalogue import model_named
from neuromod.engine.modulators import MODULATORS

F = np.float32
LEVEL_RANGES = {"dopamine": (-1.0, 1.0), "cortisol": (0.0, 1.0), "acetylcholine": (0.0, 1.0), "tempo": (0.1, 4.0)}


class NaiveNeuron(Protocol):
    """`advance` takes drive, charge (mV), step (ms) and the factor on thresholds; it says whether the neuron fired."""

    v: np.float32

    def __init__(self, config: ChannelConfig) -> None: ...

    def advance(self, drive: np.float32, kick: np.float32, step: np.float32, threshold_gain: np.float32) -> bool: ...


NEURONS: dict[str, type[NaiveNeuron]] = {
    "lif": NaiveLif,
    "lapicque": NaiveLapicque,
    "izhikevich": NaiveIzhikevich,
    "fitzhugh_nagumo": NaiveFitzHughNagumo,
    "hodgkin_huxley": NaiveHodgkinHuxley,
    "pospischil": NaivePospischil,
    "adex": NaiveAdEx,
}


class NaiveNetwork:
    """`weights[j][i]` is the weight from channel j to channel i."""

    def __init__(self, config: NetworkConfig, weights: np.ndarray, dt_ms: float) -> None:
        self.config, self.weights, self.dt_ms = config, weights.copy(), dt_ms
        self.channels = {i: config.channel(i).complete() for i in range(16) if i != 14}
        self.neurons = {i: NEURONS[channel.model](channel) for i, channel in self.channels.items()}
        self.levels = {name: float(getattr(config.modulation.baseline, name)) for name in MODULATORS}
        self.reward_baseline = 0.0
        self.past = [[False] * 16] * (MAX_DELAY_TICKS + 1)  # spikes of each tick, the last tick's at the end
        self.random = seeded(config.seed)
        self.noisy = any(channel.noise for channel in self.channels.values())
        self.plasticity = NaivePlasticity(config)
        self.learning = True
        self.since_spike = [F(1e9)] * 14
        self.inhibition_left = F(0)
        self.detector_left = F(0)
        self.n_close_channels = 0
        self.bad_stimuli = 0

    def set_modulator(self, name: str, level: np.float32) -> None:
        low, high = LEVEL_RANGES[name]
        self.levels[name] = min(max(float(level), low), high)

    def add_reward(self, amount: np.float32) -> None:
        error = float(amount) - self.reward_baseline
        self.reward_baseline += self.config.modulation.reward_rate * error
        self.levels["dopamine"] = min(max(self.levels["dopamine"] + error, -1.0), 1.0)

    def add_stress(self, amount: np.float32) -> None:
        self.levels["cortisol"] = min(max(self.levels["cortisol"] + float(amount), 0.0), 1.0)

    def boost_focus(self, amount: np.float32) -> None:
        self.levels["acetylcholine"] = min(max(self.levels["acetylcholine"] + float(amount), 0.0), 1.0)

    def membrane(self) -> list[np.float32]:
        return [F(self.n_close_channels) if i == 14 else self.neurons[i].v for i in range(16)]

    def tick(self, stimuli: np.ndarray) -> list[bool]:
        level, modulation = self.levels, self.config.modulation
        step = F(self.dt_ms * level["tempo"])

        arriving = self._leaving()
        inhibition = self._inhibition(step, arriving[15])
        input_gain = F(
            self.config.input_gain
            * (1 + modulation.acetylcholine_input * level["acetylcholine"])
            * (1 + modulation.dopamine_input * level["dopamine"])
        )
        recurrent_gain = F(
            self.config.recurrent_gain * (1 - modulation.acetylcholine_recurrent * level["acetylcholine"])
        )
        threshold_gain = F(1 + modulation.cortisol_threshold * level["cortisol"])

        self.bad_stimuli += sum(not np.isfinite(x) for x in stimuli)
        detected = self._detect(step)
        noise = [random.draw(step) for random in self.random] if self.noisy else [F(0)] * 16
        spikes = []
        for i in range(16):
            if i == 14:
                spikes.append(detected)
                continue
            channel = self.channels[i]
            model = model_named(channel.model)
            drive = F(channel.bias) + F(channel.gain) * (self._clean(stimuli[i]) * input_gain)
            if i != 15:
                drive = drive - inhibition * F(model.input_per_mv(channel.parameters))
            limit = F(model.input_limit)
            drive = min(max(drive, -limit), limit)
            drive = min(max(drive + F(channel.noise) * noise[i], -limit), limit)
            kick = F(0)
            for j in range(16):
                if arriving[j]:
                    kick += self.weights[j][i] * recurrent_gain
            spikes.append(self.neurons[i].advance(drive, kick, step, threshold_gain))

        self.since_spike = [F(0) if spikes[i] else self.since_spike[i] + step for i in range(14)]
        self.past.append(spikes)
        fired = [spikes[i] and i != 14 for i in range(16)]  # the detector has no membrane for weights to act on
        self.plasticity.follow(self.weights, self._leaving(), fired, step, F(level["dopamine"]), self.learning)
        for name in MODULATORS:
            part = -math.expm1(-self.dt_ms / getattr(modulation, f"{name}_tau_ms"))
            gap = getattr(modulation.baseline, name) - level[name]
            level[name] = level[name] + gap * part if abs(gap) > 1e-12 else getattr(modulation.baseline, name)
        return spikes

    def _leaving(self) -> list[bool]:
        """Channels whose spikes have spent their delay and arrive at the next tick."""
        return [self.past[-1 - self.config.delay_ticks[j]][j] for j in range(16)]

    def _clean(self, stimulus: np.float32) -> np.float32:
        if not np.isfinite(stimulus):
            return F(0)
        limit = F(self.config.stimulus_limit)
        return min(max(stimulus, -limit), limit)

    def _inhibition(self, step: np.float32, starts: bool) -> np.float32:
        circuit, modulation = self.config.inhibition, self.config.modulation
        if starts:
            self.inhibition_left = F(circuit.duration_ms)
        active = self.inhibition_left > step / F(2)
        self.inhibition_left = max(self.inhibition_left - step, F(0))
        if not active:
            return F(0)
        return F(circuit.strength_mv * (1 + modulation.cortisol_inhibition * self.levels["cortisol"]))

    def _detect(self, step: np.float32) -> bool:
        circuit = self.config.coincidence
        edge = F(circuit.window_ms) + step / F(2)
        self.n_close_channels = sum(bool(since < edge) for since in self.since_spike)
        fires = (
            any(self.past[-1][:14])
            and self.n_close_channels >= circuit.min_channels
            and self.detector_left <= step / F(2)
        )
        self.detector_left = F(circuit.refractory_ms) if fires else max(self.detector_left - step, F(0))
        return bool(fires)
