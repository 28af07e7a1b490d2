"""The session file that `neuromod init` writes: what a user will want to change, with its meaning and its default."""

from typing import Any, Literal

from neuromod.bridge.config import parse
from neuromod.bridge.toml_text import value_toml

SourceKind = Literal["lsl", "recording", "features", "zmq"]
Mode = Literal["crossings", "sorted", "features"]

COMMENT_COLUMN = 33

_SOURCES: dict[str, str] = {
    "lsl": """\
[source]
kind = "lsl"                     # a Lab Streaming Layer stream; 'neuromod streams' lists those on the network
name = "MyAmplifier"             # any of name, type, source_id, hostname; all that are given must match
# source_id = "serial-1234"      # the surest way to mean one device
content = "signal"               # "signal": raw samples; "features": one vector per bin, straight to the encoder
""",
    "recording": """\
[source]
kind = "recording"               # anything that neo or spikeinterface opens
path = "my_recording.ns5"        # file or folder, from the folder of this file
# stream_id = "imec0.ap"         # where a recording holds several streams
""",
    "features": """\
[source]
kind = "features"                # a matrix of counts or rates per bin
path = "counts.npy"              # .npy or .mat, (n_bins, n_features)
bin_ms = 50.0                    # length of a bin, 1 to 100 ms
""",
    "zmq": """\
[source]
kind = "zmq"                     # no stream: each stimuli message to ingest is one block
block_ms = 1.0                   # how long its stimuli stand
""",
}

_FRONT_END = """\
[front_end]                      # from raw signal to features, one vector per block
features = FEATURES
reference = @  # none, mean, median, clipped-mean; auto: clipped-mean from 16 channels up
exclude_channels = @  # by name, or number from 0
"""

_MODES: dict[str, tuple[str, str]] = {
    "crossings": (
        '"auto"                # any of crossings, units, spiking_band, bands, raw; auto: crossings, or raw if slow',
        """\
[front_end.crossings]
low_hz = @
high_hz = @
threshold_noise = @  # multiple of each channel's robust noise (MAD / 0.6745)
dead_time_ms = @
""",
    ),
    "sorted": (
        '["units"]             # spikes of sorted units, recognised while the signal comes in',
        """\
[front_end.units]
bundle = "sorting"               # folder that 'neuromod sort RECORDING -o sorting' wrote
engine = @  # sparse (Utah), dense (Neuropixels); auto: as the sorting says
tracking = @  # templates follow slow change; false where runs are to be compared
""",
    ),
    "features": (
        '["spiking_band"]      # power of 300 to 1000 Hz; or "bands" for slower signals: LFP, ECoG, EEG',
        """\
[front_end.spiking_band]
low_hz = @
high_hz = @
window_ms = @  # time constant of the exponential that smooths it
log = @  # 10 log10 of the power
""",
    ),
}

_ENCODER = """\
[encoder]                        # from features to the sixteen stimuli
kind = @  # groups: pooled into the 14 sensory channels; identity; matrix: from a file
normalisation = @  # with the constants of the baseline, or of the first warmup_s seconds
smoothing_ms = @
"""

_REST = """\
[network]
seed = @  # of the initial weights and of the noise
input_gain = @
recurrent_gain = @

[network.sensory]                # channels 0 to 13; [network.channels.3] sets one of them apart
model = @  # 'neuromod models' lists them and their parameters
noise = @  # white noise on the drive, its standard deviation over 1 ms
# gain = 10.0                    # drive per unit of stimulus; without it, what suits the model
# bias = 12.0                    # drive without stimulus; likewise

[network.coincidence]            # channel 14 fires when so many sensory channels fire within the window
window_ms = @
min_channels = @

[network.learning]               # from pairs of spikes and, with rule "reward", dopamine
rule = @  # reward, hebbian or none
rate_per_s = @  # change of a weight per second, dopamine of 1 and mV of eligibility
tau_eligibility_ms = @  # how long a pair of spikes waits for its reward
w_min_mv = @
w_max_mv = @

[network.inhibition]             # channel 15 holds the sensory channels down for a while
strength_mv = @
duration_ms = @

# [[markers]]                    # LSL streams of markers, aligned to ticks and published as events
# name = "MyTask"

[sockets]                        # away from loopback only with [security], for which see neuromod keys
ingest = @  # stimuli, modulators, rewards and events come in
output = @  # spikes, state, health and events go out
control = @  # commands, as those of 'neuromod status', 'arm' or 'set', are answered here

[publish]
spikes = @  # "every" tick, or "spiking" ticks only
stimuli = @  # publish the stimuli of each tick too
state_hz = @  # membranes, modulators and rates; 0 for never
array_hz = @  # rates, noise and snippets of the source's channels, for 'neuromod monitor'; 0 for never
health_s = @

[timing]
block_ms = @  # length of a block of signal, at least one sample
stall_ms = @  # silence after which the source has stalled (at least three blocks)
late_ms = @  # a tick this long after its sample counts as late
behind = @  # LSL, where the loop has fallen behind: drop to the "newest" sample, or "stop"
behind_ms = @  # samples this old, with as much waiting, mean to have fallen behind
jitter_ms = @  # a stamp may be off the grid by this before it counts as a gap or a step
device_delay_ms = @  # known delay from electrode to stamp, taken off t_sample
fill = @  # missing samples: "hold" the last one, or "zero"
max_fill_ms = @  # longer gaps are not filled

[record]                         # what is kept, for 'neuromod session' and 'replay'; take it out to keep nothing
folder = @
raw = @  # the samples as they came, too: 12 MB/s for 96 channels at 30 kHz
warn_free_mb = @  # free space on the disk below which it is announced,
min_free_mb = @  # and below which recording ends; the session goes on

# [offload]                      # a board outside is the network; needs publish.stimuli = true and spikes = "every"
# delay_ticks = 2                # tick k publishes its answer to tick k - delay_ticks; 1 to 64

# [decoder]                      # from spikes to commands; or path = "NAME-v1.json", which 'neuromod calibrate' wrote
# kind = "rates"
# tau_ms = 100.0
# events = [{channel = 14, refractory_ms = 100.0}]    # what may trigger stimulation

# [stimulation]                  # nothing is ever stimulated without it; read "Stimulation" in the README first
# mode = "dry_run"               # the default: everything is judged, nothing is sent; others need the next two
# key_file = "lab.key"           # 'neuromod key lab.key' writes one
# ledger = "dose.ledger"         # in which the dose survives restarts
# [[stimulation.electrodes]]
# name = "e1"
# area_um2 = 2000.0              # geometric; with the material it limits the charge density
# material = "sirof"
# impedance_kohm = 50.0
# [[stimulation.programs]]
# name = "pulse"
# electrode = "e1"
# amplitude_ua = -10.0           # cathodic first; the second phase takes the charge back
# phase_us = 200.0
# [[stimulation.triggers]]
# event = 0
# program = "pulse"

[runtime]                        # 'neuromod doctor' says which of these this host permits
loop = @
realtime_priority = @  # SCHED_FIFO, 1 to 98; 0 leaves the scheduler alone
cpus = @  # the loop's thread runs on these only
lock_memory = @
timer_slack_ns = @

[watchdog]                       # how long each may be wrong before it is announced; 0 for never
source_s = @  # the source is silent or gone
tick_s = @  # the loop is stuck: the process ends with code 70, to be started anew
peers = @  # names whose 'alive' is expected, beside those of stimulation
peer_s = @
write_s = @  # one write of the record
sample_age_s = @  # samples are older than timing.late_ms
clock_step_ms = @  # the clock on the wall was set
clock_jump_ms = @  # the source's clock
clock_uncertainty_ms = @
hold_s = @  # all must be well for so long before it is said to be

# [checkpoint]                   # the state of the loop, in a file, by the clock
# path = "session.checkpoint"
# every_s = 10.0
# keep = 3
# resume = "crash"               # begin from it where the last life did not end in order; or "never", or "always"

# [security]                     # keys for every socket, which then may bind away from loopback
# keys = "keys"                  # 'neuromod keys init' makes it, 'neuromod keys new NAME --roles ...' lets a client in
# lsl_sources = ["rig/emg-1"]    # hostname/source_id of each LSL stream that may be used, as 'neuromod streams' shows
# requests_per_s = 200.0         # to the control socket, of one client

# [metrics]                      # numbers for Prometheus; deploy/observability has a board and alerts for them
# address = "127.0.0.1:9464"     # loopback only: scrape from elsewhere through ssh -L, or by an agent on this host
"""


def session_toml(kind: SourceKind = "lsl", mode: Mode = "crossings") -> str:
    """Return a commented session file for a kind of source; it passes `neuromod check` once its paths exist.

    `mode` is what becomes of raw signal; a stream of features or of stimuli is what it is.
    """
    features, section = _MODES[mode]
    front_end = _FRONT_END.replace("FEATURES", features), section
    parts = [
        "# A neuromod session. 'neuromod check FILE' prints it complete, 'neuromod start FILE' runs it.\n",
        """\
[session]
name = "session"
# baseline = "baseline.json"     # what 'neuromod baseline' wrote: thresholds, exclusions, normalisation
""",
        _SOURCES[kind],
        *(front_end if kind in ("lsl", "recording") else []),
        *([_ENCODER] if kind != "zmq" else []),
        _REST,
    ]
    return _fill_in("\n".join(parts), parse(_SOURCES[kind] + "\n[record]\n").effective())


def _fill_in(text: str, effective: dict[str, Any]) -> str:
    """Put each default where the text has an @; leave out what this kind of session does not have."""
    lines, table = [], effective
    for line in text.splitlines():
        if line.startswith("["):
            table = effective
            for part in line[1 : line.index("]")].split("."):
                table = table[part]
        key, at, comment = line.partition(" = @")
        if at and key not in table:
            continue
        filled = f"{key} = {value_toml(table[key])}" if at else line
        lines.append(f"{filled:<{COMMENT_COLUMN}}{comment.strip()}" if comment else filled)
    return "\n".join(lines) + "\n"
