"""The session file that `neuromod init` writes: every section with its defaults and what they mean."""

from typing import Literal

SourceKind = Literal["lsl", "recording", "features", "zmq"]

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
features = ["crossings"]         # any of crossings, spiking_band, bands, raw
reference = "auto"               # none, mean, median, clipped-mean; auto: clipped-mean from 16 channels up
exclude_channels = []            # by name, or number from 0

[front_end.crossings]
low_hz = 300.0
high_hz = 6000.0
threshold_noise = -4.5           # multiple of each channel's robust noise (MAD / 0.6745)
dead_time_ms = 1.0
"""

_ENCODER = """\
[encoder]                        # from features to the sixteen stimuli
kind = "groups"                  # groups: pooled into the 14 sensory channels; identity; matrix: from a file
normalisation = "zscore"         # with the constants of the baseline, or of the first warmup_s seconds
smoothing_ms = 30.0
"""

_REST = """\
[network]
seed = 0                         # of the initial weights
input_gain = 1.0
recurrent_gain = 1.0

[network.coincidence]            # channel 14 fires when so many sensory channels fire within the window
window_ms = 3.0
min_channels = 4

[network.inhibition]             # channel 15 holds the sensory channels down for a while
strength_mv = 15.0
duration_ms = 5.0

# [[markers]]                    # LSL streams of markers, aligned to ticks and published as events
# name = "MyTask"

[sockets]                        # loopback only, until encrypted sockets come with a later release
ingest = "tcp://127.0.0.1:5555"  # stimuli, modulators, rewards and events come in
output = "tcp://127.0.0.1:5556"  # spikes, state, health and events go out
control = "tcp://127.0.0.1:5557" # status, pause, resume, stop, set, checkpoint, restore

[publish]
spikes = "every"                 # "every" tick, or "spiking" ticks only
stimuli = false                  # publish the stimuli of each tick too
state_hz = 10.0                  # membranes, modulators and rates; 0 for never
health_s = 1.0

[timing]
{block_ms}stall_ms = 50.0                  # silence after which the source has stalled (at least three blocks)
late_ms = 10.0                   # a tick this long after its sample counts as late
jitter_ms = 20.0                 # a stamp may be off the grid by this before it counts as a gap or a step
fill = "hold"                    # missing samples: "hold" the last one, or "zero"
max_fill_ms = 1000.0             # longer gaps are not filled

[runtime]                        # 'neuromod doctor' says which of these this host permits
loop = "compiled"
realtime_priority = 0            # SCHED_FIFO, 1 to 98; 0 leaves the scheduler alone
cpus = []                        # the loop's thread runs on these only
lock_memory = false
timer_slack_ns = 1
"""


def session_toml(kind: SourceKind = "lsl") -> str:
    """Return a commented session file for a kind of source; it passes `neuromod check` once its path exists."""
    has_signal = kind in ("lsl", "recording")
    block_ms = (
        "block_ms = 1.0                   # length of a block of signal, at least one sample\n" if has_signal else ""
    )
    parts = [
        "# A neuromod session. 'neuromod check FILE' prints it complete, 'neuromod start FILE' runs it.\n",
        """\
[session]
name = "session"
# baseline = "baseline.json"     # what 'neuromod baseline' wrote: thresholds, exclusions, normalisation
""",
        _SOURCES[kind],
        *([_FRONT_END] if has_signal else []),
        *([_ENCODER] if kind != "zmq" else []),
        _REST.replace("{block_ms}", block_ms if has_signal else ""),
    ]
    return "\n".join(parts)
