"""The learning network through the bridge: in session files, and in a daemon that is rewarded over its sockets.

What a client sends arrives in the order in which it was sent, so the tick at which a reward acts is known: the next one
after the stimuli before it. So everything a daemon does is compared with `SpikingNetwork` called directly, bit for bit.
"""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from harness import MEMORY, GatedSource, Listener, Running, bits, raster, session, started, straight, wait_until
from numpy.typing import NDArray
from typer.testing import CliRunner

from neuromod.adapters.memory import MemorySource
from neuromod.bridge.assembly import assemble, stimuli_stream
from neuromod.bridge.cli import app
from neuromod.bridge.client import Client, RefusedError
from neuromod.bridge.config import SessionConfig, load, parse
from neuromod.bridge.template import session_toml
from neuromod.bridge.toml_text import to_toml
from neuromod.bridge.wire import Flag, SpikesMessage
from neuromod.engine.compiled import JIT_ENABLED
from neuromod.engine.errors import ConfigError
from neuromod.engine.four_choice import FourChoiceTask, network_config, play
from neuromod.engine.models.catalogue import MODELS, model_named
from neuromod.engine.network import SpikingNetwork

ZMQ = 'source = "zmq"\n'

# All models, a preset over a population's preset, noise, delays, a mask, and both kinds of change.
PLASTIC = [[int(source != target and source < 14 and target < 12) for target in range(16)] for source in range(16)]
MIXED = f"""
[network]
seed = 3
delay_ticks = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 62, 5, 2]

[network.sensory]
model = "izhikevich"
preset = "FS"
noise = 3.0

[network.channels.1]
preset = "RS"
[network.channels.2]
model = "lif"
noise = 5.0
[network.channels.3]
model = "adex"
preset = "tonic"
parameters = {{a_ns = 3.0}}
[network.channels.4]
model = "lapicque"
[network.channels.5]
model = "fitzhugh_nagumo"
noise = 0.05
[network.channels.6]
model = "hodgkin_huxley"
[network.channels.7]
model = "pospischil"
preset = "IB"

[network.interneuron]
model = "adex"
bias = 300.0
noise = 200.0

[network.weights]
kind = "random"
low_mv = 0.2
high_mv = 1.5

[network.learning]
rate_per_s = 40.0
pairing = "nearest"
bounds = "soft"
plastic = {PLASTIC}

[network.learning.homeostasis]
target_hz = 30.0
tau_rate_ms = 1000.0
tau_scaling_ms = 5000.0
"""

# No homeostasis: weights move by reward alone.
REWARDED = ZMQ + "[network.learning]\nrate_per_s = 40.0\n"


def stimuli(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(0.0, 3.0, (n, 16)).astype(np.float32)


def state(network: SpikingNetwork) -> bytes:
    return network.state.tobytes()


# -- session files


@pytest.fixture
def mixed_file(tmp_path: Path) -> Path:
    file = tmp_path / "mixed.toml"
    file.write_text(ZMQ + MIXED)
    return file


def test_check_prints_a_mixed_network_complete_and_what_it_prints_is_the_same_network(
    mixed_file: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, ["check", str(mixed_file)])
    config, printed = load(mixed_file), tmp_path / "printed.toml"
    printed.write_text(result.stdout)
    again = load(printed)

    assert result.exit_code == 0
    assert again.effective() == config.effective()
    assert state(SpikingNetwork(again.network)) == state(SpikingNetwork(config.network))
    told = json.loads(CliRunner().invoke(app, ["check", "--json", str(mixed_file)]).stdout)["network"]
    neurons = [told["sensory"], told["interneuron"], *told["channels"].values()]
    for neuron in neurons:
        model = model_named(neuron["model"])
        assert list(neuron["parameters"]) == [parameter.name for parameter in model.parameters]
        assert None not in (neuron["gain"], neuron["bias"], neuron["noise"])
    assert {neuron["model"] for neuron in neurons} == {model.name for model in MODELS}


def test_a_preset_of_one_channel_survives_what_its_population_is_printed_with() -> None:
    text = ZMQ + '[network.sensory]\nmodel = "izhikevich"\npreset = "FS"\n[network.channels.3]\npreset = "LTS"\n'

    again = parse(parse(text).effective_toml()).network

    assert again.channel(2).complete_parameters() == model_named("izhikevich").complete({}, "FS")
    assert again.channel(3).complete_parameters() == model_named("izhikevich").complete({}, "LTS")


def test_a_session_and_its_printed_form_take_the_same_checkpoints() -> None:
    config = parse(ZMQ + MIXED)

    built = [assemble(c, stimuli_stream(c.source)) for c in (config, parse(config.effective_toml()))]  # type: ignore[arg-type]

    assert built[0].built_from == built[1].built_from


ZEROS = ", ".join(["0"] * 16)
ROW = f"[{ZEROS}]"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('# a\nmodel = "izhikevic"', "line 4: network.{}.model should be 'lif', 'lapicque', 'izhikevich', "),
        ('noise = 1\npreset = "FS"', "line 4: network.{}.preset: model lif has no preset 'FS'; it has quick"),
        ('model = "adex"\npreset = "FS"', "line 4: network.{}.preset: model adex has no preset 'FS'; it has tonic, "),
        ('model = "hodgkin_huxley"\npreset = "RS"', ".preset: model hodgkin_huxley has no preset 'RS'; it has none"),
        (
            'model = "izhikevich"\n[network.{}.parameters]\nb = 0.2\na_per_ms = 5',
            "line 6: network.{}.parameters.a_per_ms: a_per_ms must lie within -1 and 2, got 5",
        ),
        ("parameters = {{tau_mem_ms = -1}}", "line 3: network.{}.parameters.tau_mem_ms: tau_mem_ms must lie within "),
        (
            'model = "adex"\n[network.{}.parameters]\ntau_mem_ms = 10',
            "line 5: network.{}.parameters.tau_mem_ms: model adex has no parameter 'tau_mem_ms'; it has c_pf, g_l_ns, ",
        ),
        ('model = "adex"\nparameters = {{c_nf = 1}}', "line 4: network.{}.parameters.c_nf is not a known key: did you"),
        ('model = "adex"\nparameters = {{c_pf = "1 nF"}}', "line 4: network.{}.parameters.c_pf should be a valid num"),
        ('model = "adex"\nparameters = 1', "line 4: network.{}.parameters should be a table, not 1"),
        (
            'model = "adex"\nparameters = {{v_reset_mv = -40, v_peak_mv = -45}}',
            "line 4: network.{}.parameters.v_",
        ),
        ("noise = -2", "line 3: network.{}.noise should be greater than or equal to 0, not -2"),
        ('gain = "1 mV"', "line 3: network.{}.gain should be a valid number"),
    ],
)
@pytest.mark.parametrize("where", ["sensory", "interneuron", "channels.3", "channels.15"])
def test_a_fault_of_a_neuron_names_its_key_and_line_in_population_and_channel_alike(
    where: str, table: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(f"{ZMQ}[network.{where}]\n{table.format(where)}", where="s.toml")

    assert said.format(where) in str(raised.value)
    assert str(raised.value).startswith("s.toml, line ")
    assert "\n" not in str(raised.value)


def test_a_fault_of_a_channel_that_only_comes_with_its_population_names_the_channel() -> None:
    text = ZMQ + '[network.sensory]\nmodel = "adex"\n[network.channels.3]\nparameters = {g_l_na = 1}\n'
    text += '[network.channels.4]\npreset = "quick"\n'

    with pytest.raises(ConfigError, match=r"line 5: network\.channels\.3\.parameters\.g_l_na is not a known key: did"):
        parse(text)
    with pytest.raises(ConfigError, match=r"line 7: network\.channels\.4\.preset: model adex has no preset 'quick'"):
        parse(text.replace("g_l_na", "g_l_ns"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[network.channels.14]\nmodel = 'lif'", "line 2: network.channels.14: channel 14 is the coincidence detector"),
        ("[network.channels.16]\nmodel = 'lif'", "line 2: network.channels.16 should be less than 16"),
        ("[network.channels]\n3 = 'adex'", "line 3: network.channels.3 should be a table, not 'adex'"),
        ("[network]\ndelay_ticks = [0, 1]", "line 3: network.delay_ticks should have at least 16 items, not 2"),
        (
            f"[network]\ndelay_ticks = [63, {ZEROS[3:]}]",
            "line 3: network.delay_ticks.0 should be less than or equal to",
        ),
        ("[network]\ndelay_ms = [1]", "line 3: network.delay_ms is not a known key: did you mean delay_ticks?"),
        (f"[network]\nconnected = [{ROW}]", "line 3: network.connected should have at least 16 items, not 1"),
        (
            f"[network.learning]\nplastic = [{', '.join([ROW] * 17)}]",
            "learning.plastic should have at most 16 items, n",
        ),
        (f"[network.learning]\nplastic = [{', '.join([ROW] * 15)}, [1]]", "plastic.15 should have at least 16 items, "),
        (
            f"[network.learning]\nplastic = [{', '.join([ROW.replace('0', '2')] * 16)}]",
            "line 3: network.learning.plastic.0.0 should be less than or equal to 1, not 2; and 255 more in the same",
        ),
        (
            f"[network.learning]\nrule = 'none'\nplastic = [{', '.join([ROW.replace('0', '1')] * 16)}]",
            "line 4: network.learning.plastic: column 14 of plastic must be 0",
        ),
        (
            "[network.learning]\nrule = 'hebbian'\nw_min_mv = 2\nw_max_mv = 1",
            "line 4: network.learning.w_min_mv: w_min_mv (2) must lie below w_max_mv (1)",
        ),
        ("[network.learning]\nw_max_mv = 0", "line 3: network.learning.w_max_mv: w_min_mv (0) must lie below w_max_mv"),
        ("[network.learning]\nrule = 'stdp'", "learning.rule should be 'reward', 'hebbian' or 'none', not 'stdp'"),
        ("[network.learning]\ntau_eligibility_s = 0.5", "has the wrong unit: write tau_eligibility_ms = 500"),
        ("[network.learning]\nhomeostasis = true", "network.learning.homeostasis should be a table, not True"),
        ("[network.learning.homeostasis]\ntarget_hz = 0", "learning.homeostasis.target_hz should be greater than"),
        (
            "[network.weights]\nkind = 'random'\nhigh_mv = -1",
            "line 4: network.weights.high_mv: low_mv (0) must not exc",
        ),
    ],
)
def test_a_fault_of_the_circuit_or_of_learning_names_its_key_and_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(ZMQ + text, where="s.toml")

    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(not JIT_ENABLED, reason="three seconds of every model take minutes where they are interpreted")
@pytest.mark.parametrize("model", [model.name for model in MODELS])
def test_init_with_another_model_is_a_network_that_answers_stimuli(model: str) -> None:
    """Rates over 1 s of stimuli of 0, 1 and 2: more for more, and none beyond what a cortical cell may fire."""
    network = parse(session_toml("zmq").replace('model = "lif" ', f'model = "{model}" ', 1)).network

    rates_hz = [SpikingNetwork(network).run(np.full((1000, 16), x))[:, :14].sum() / 14 for x in (0.0, 1.0, 2.0)]

    assert network.channel(0).model == model
    assert rates_hz[0] < rates_hz[1] < rates_hz[2]
    assert rates_hz[1] > 10
    assert rates_hz[2] < 120


# -- a running daemon: driven by messages, so that the tick of everything is known


class Driven:
    """A daemon in this process that is fed by messages, and a network of the same configuration that is called."""

    def __init__(self, running: Running) -> None:
        self.running, self.client = running, running.client
        self.network = running.daemon.assembly.network
        self.offline = SpikingNetwork(self.network.config)
        self._listener = running.listen("spikes")
        self._heard = 0

    def drive(self, rows: NDArray[np.float32]) -> None:
        """Send stimuli to both; the daemon's spikes must be those of the network."""
        for row in rows:
            self.client.send_stimuli(row)
        np.testing.assert_array_equal(raster(self.hear(len(rows))), self.offline.run(rows))

    def hear(self, n: int) -> list[SpikesMessage]:
        """Return the next `n` spikes messages."""
        self._heard += n
        return self._listener.spikes(self._heard)[self._heard - n :]

    def reward(self, amount: float) -> None:
        """Send a reward to both."""
        self.client.send_reward(amount)
        self.offline.add_reward(amount)

    def assert_same(self) -> None:
        """Every bit of the two networks is the same."""
        assert state(self.network) == state(self.offline)


@pytest.fixture(scope="module")
def rewarded() -> Iterator[Running]:
    with Running(session(REWARDED)) as running:
        running.client.send_reward(0.0)  # no effect, but that compiled code has been called
        wait_until(lambda: running.health["counters"]["inputs"], "the input")
        yield running


@pytest.fixture
def driven(rewarded: Running, tmp_path_factory: pytest.TempPathFactory) -> Driven:
    """The daemon in the state in which it was started."""
    path = tmp_path_factory.getbasetemp() / "learning.checkpoint"
    if not path.exists():
        rewarded.client.request("checkpoint", path=str(path))
    rewarded.client.request("restore", path=str(path))
    return Driven(rewarded)


@pytest.mark.compiled_loop
def test_a_reward_over_zeromq_changes_the_plastic_weights_and_only_these(driven: Driven) -> None:
    before = driven.network.weights
    driven.drive(stimuli(200))
    unrewarded = driven.network.weights
    driven.reward(0.75)
    driven.drive(stimuli(200, seed=1))

    plastic = driven.network.state[0]["plastic"] > 0
    np.testing.assert_array_equal(unrewarded, before)  # dopamine has never left its baseline
    changed = driven.network.weights != before
    assert changed[plastic].sum() > 100
    assert not changed[~plastic].any()
    driven.assert_same()


@pytest.mark.compiled_loop
def test_learning_off_freezes_every_weight_and_on_lets_them_move_again(driven: Driven) -> None:
    driven.drive(stimuli(150))
    driven.reward(0.75)
    driven.drive(stimuli(50, seed=1))
    frozen = driven.network.weights

    assert driven.running.health["learning"]
    assert driven.client.request("learning", on=False) == {"tick": 200}
    assert not driven.client.request("status")["health"]["learning"]
    driven.offline.set_learning(False)
    driven.reward(-0.5)
    driven.drive(stimuli(150, seed=2))
    np.testing.assert_array_equal(driven.network.weights, frozen)
    assert driven.network.modulators.dopamine != 0
    assert np.abs(driven.network.state[0]["eligibility_mv"]).max() > 0
    driven.assert_same()

    driven.client.request("learning", on=True)
    driven.offline.set_learning(True)
    driven.drive(stimuli(50, seed=3))
    assert driven.running.health["learning"]
    assert (driven.network.weights != frozen).any()
    driven.assert_same()


@pytest.mark.compiled_loop
def test_a_network_without_a_rule_says_that_it_does_not_learn() -> None:
    with Running(session(ZMQ + '[network.learning]\nrule = "none"\n')) as running:
        driven = Driven(running)
        before = driven.network.weights
        driven.drive(stimuli(100))
        driven.reward(1.0)
        driven.drive(stimuli(100, seed=1))
        assert not running.client.request("status")["health"]["learning"]
        np.testing.assert_array_equal(driven.network.weights, before)
        driven.assert_same()


@pytest.mark.compiled_loop
def test_the_rate_of_learning_is_set_while_it_learns(driven: Driven) -> None:
    name = "network.learning.rate_per_s"
    driven.drive(stimuli(150))
    driven.reward(0.75)
    driven.drive(stimuli(20, seed=1))
    before = driven.network.weights

    assert driven.client.request("set", parameters={name: 0})["parameters"][name] == 0
    driven.offline.set_parameters(learning_rate_per_s=0.0)
    driven.drive(stimuli(50, seed=2))
    np.testing.assert_array_equal(driven.network.weights, before)

    driven.client.request("set", parameters={name: 5.5})
    driven.offline.set_parameters(learning_rate_per_s=5.5)
    driven.drive(stimuli(50, seed=3))
    assert (driven.network.weights != before).any()
    driven.assert_same()
    for wrong in (-1.0, 1e6):
        with pytest.raises(RefusedError, match=rf"set: {name}: .*got {wrong}"):
            driven.client.request("set", parameters={name: wrong})


@pytest.mark.compiled_loop
def test_a_pause_leaves_every_bit_of_the_network_as_it_is(driven: Driven) -> None:
    driven.drive(stimuli(150))
    driven.reward(0.75)
    driven.drive(stimuli(20, seed=1))
    before = state(driven.network)

    assert driven.client.request("pause") == {"tick": 170}
    for row in stimuli(100, seed=2):
        driven.client.send_stimuli(row)
    paused = driven.hear(100)
    assert all(message.flags & Flag.PAUSED for message in paused)
    assert state(driven.network) == before

    weights = driven.network.weights
    driven.reward(-0.5)  # taken at once, and learnt from once the network moves
    wait_until(lambda: driven.network.modulators.dopamine < 0.5, "the reward")
    np.testing.assert_array_equal(driven.network.weights, weights)
    driven.client.request("resume")
    driven.drive(stimuli(50, seed=3))
    driven.assert_same()


@pytest.mark.compiled_loop
def test_every_model_learns_in_a_daemon_as_it_does_when_called() -> None:
    with Running(session(ZMQ + MIXED)) as running:
        driven = Driven(running)
        before = driven.network.weights
        for k, amount in enumerate((0.5, -0.25, 1.0)):
            driven.drive(stimuli(150, seed=k))
            driven.reward(amount)
        driven.drive(stimuli(100, seed=9))
        counts = running.daemon.collector.spike_counts

        assert (counts > 0).all()
        changed = driven.network.weights != before
        assert changed[np.array(PLASTIC) == 1].mean() > 0.9
        assert not changed[np.array(PLASTIC) == 0].any()
        driven.assert_same()


# -- checkpoints


def run_script(client: Client, listener: Listener, seed: int, n_heard: int) -> NDArray[np.bool_]:
    """Send 300 stimuli with two rewards and a boost of acetylcholine among them; return the spikes."""
    sent = stimuli(300, seed)
    for k, row in enumerate(sent):
        client.send_stimuli(row)
        if k in (50, 200):
            client.send_reward(0.5)
        if k == 100:
            client.send_modulators(acetylcholine=0.6)
    return raster(listener.spikes(n_heard + len(sent))[n_heard:])


@pytest.mark.compiled_loop
def test_a_new_daemon_learns_on_bit_for_bit_where_a_killed_one_was_saved(
    session_file: Callable[[str], Path], tmp_path: Path
) -> None:
    file = session_file(ZMQ + MIXED)
    saved, end = tmp_path / "saved.checkpoint", [tmp_path / "first.checkpoint", tmp_path / "second.checkpoint"]
    with started(file) as (child, client):
        listener = Listener(client, "spikes")
        run_script(client, listener, 1, 0)
        assert client.request("checkpoint", path=str(saved))["tick"] == 300
        uninterrupted = run_script(client, listener, 2, 300)
        client.request("checkpoint", path=str(end[0]))
        child.end(signal.SIGKILL)
    with started(file) as (child, client):
        listener = Listener(client, "spikes")
        assert client.request("restore", path=str(saved))["tick"] == 300
        resumed = run_script(client, listener, 2, 0)
        client.request("checkpoint", path=str(end[1]))
        child.end(signal.SIGTERM)

    np.testing.assert_array_equal(resumed, uninterrupted)
    assert resumed.any(axis=0).sum() == 16
    first, second = (network_in(path, load(file)) for path in end)
    assert first == second
    assert first != network_in(saved, load(file))


def network_in(path: Path, config: SessionConfig) -> bytes:
    """The block of the network in a checkpoint, weights and random numbers included."""
    from neuromod.bridge import checkpoint

    assembly = assemble(config, stimuli_stream(config.source))  # type: ignore[arg-type]
    parts = assembly.parts()
    k = next(k for k, part in enumerate(parts) if part is assembly.network.state)
    begin = sum(part.nbytes for part in parts[:k])
    return checkpoint.load(path, assembly)[begin : begin + parts[k].nbytes].tobytes()


# -- a source with a clock of its own: rewards act when they come, and the records say when that was


@pytest.mark.compiled_loop
def test_rewards_among_a_stream_are_replayed_at_the_ticks_that_are_flagged() -> None:
    n, amounts = 1500, [0.5, -0.75, 0.25, 1.0]
    config = session(MEMORY + MIXED)
    source = GatedSource(stimuli(n, 1), 1000.0, kind="features")
    with Running(config, source=source, speed=1.0) as running:
        source.let_go()

        def modulated() -> int:
            return int((running.records.live()["flags"] & Flag.MODULATED > 0).sum())

        running.records.wait_for(100)
        for k, amount in enumerate(amounts):
            running.client.send_reward(amount)
            wait_until(lambda k=k: modulated() > k, "the reward")  # type: ignore[misc]
        records = running.records.wait_for(n)
        learnt = state(running.daemon.assembly.network)

    offline = SpikingNetwork(config.network)
    before = offline.weights
    at = np.flatnonzero(records["flags"] & Flag.MODULATED)
    rewards = dict(zip(at.tolist(), amounts, strict=True))
    spikes = []
    for tick, row in enumerate(records["stimuli"]):
        if tick in rewards:
            offline.add_reward(rewards[tick])
        spikes.append(offline.step(row))
    np.testing.assert_array_equal(bits(records), spikes)
    assert learnt == state(offline)
    assert (offline.weights != before).any()


@pytest.mark.compiled_loop
def test_a_silent_source_neither_teaches_nor_forgets() -> None:
    config, n = session(MEMORY + MIXED), 600
    source = GatedSource(stimuli(n, 1), 1000.0, kind="features")
    with Running(config, source=source, speed=0) as running:
        network = running.daemon.assembly.network
        source.let_go(300)
        running.records.wait_for(300)
        running.client.send_reward(0.75)
        wait_until(lambda: network.modulators.dopamine > 0.5, "the reward")
        before = state(network)
        running.wait_for_health(lambda health: health["counters"]["fillers"] > 100, "fillers")
        assert state(network) == before
        source.let_go()
        records = running.records.wait_for(n)
        learnt = state(network)

    offline = SpikingNetwork(config.network)
    sent = straight(config, MemorySource(stimuli(n, 1), 1000.0, kind="features"))["stimuli"]
    first = offline.run(sent[:300])
    offline.add_reward(0.75)
    np.testing.assert_array_equal(bits(records), np.concatenate([first, offline.run(sent[300:])]))
    assert learnt == state(offline)


# -- the four-choice task


class OverSockets:
    """What `four_choice.play` needs of a network, by way of a daemon's sockets."""

    def __init__(self, running: Running) -> None:
        self._client = running.client
        self._subscription = running.listen("spikes").subscription

    def step(self, row: NDArray[np.float32], /) -> NDArray[np.bool_]:
        """Send one tick's stimuli, and wait for its spikes."""
        self._client.send_stimuli(row)
        while not isinstance(message := self._subscription.receive(20.0), SpikesMessage):
            pass
        return message.spikes

    def add_reward(self, amount: float, /) -> None:
        """Send a reward: it acts on the tick of the next stimuli."""
        self._client.send_reward(amount)


@pytest.mark.compiled_loop
def test_the_four_choice_task_goes_the_same_way_over_sockets_as_when_called() -> None:
    def task() -> FourChoiceTask:
        return FourChoiceTask(5, n_trials=6, delay_ticks=(40, 80), rest_ticks=60)

    config = session(ZMQ + to_toml({"network": network_config(5).model_dump(mode="json")}))
    offline = SpikingNetwork(config.network)
    with Running(config) as running:
        live, called = play(task(), OverSockets(running)), play(task(), offline)
        learnt = running.daemon.assembly.network

    for name in ("cue", "choice", "reward", "delay_ticks"):
        np.testing.assert_array_equal(getattr(live, name), getattr(called, name))
    assert state(learnt) == state(offline)
    assert (learnt.weights != SpikingNetwork(network_config(5)).weights).any()
    assert {0.5, -0.5} == set(live.reward.tolist())
