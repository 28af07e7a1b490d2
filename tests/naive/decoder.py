"""Decoders, slow and obvious: Python lists and floats, one tick after another.

Additions go in the order of the compiled kernels, so that both give the same bits. The numbers of a decoder come from
the record that `make_decoder` made; what is in it is checked elsewhere, against numpy.
"""

import math
import struct
from typing import Any

Row = list[float]
Matrix = list[Row]

RUNNING = (
    "n_ticks", "in_bin", "newest", "n_bins", "runaways", "rates_hz", "filling", "counts", "state", "covariance",
    "event_level", "event_wait", "held",
)  # fmt: skip


class Decoder:
    """One decoder of `neuromod.adapters.decoder`, with every field of its record as an attribute of Python's own."""

    dt_ms: float
    state_id: int
    n_outputs: int
    n_events: int
    n_states: int
    n_lags: int
    bin_ticks: int
    settle_ticks: int
    rate_decay: float
    rate_step: float
    weights: Matrix
    bias: Row
    limit: Row
    output_state: list[int]
    state_mean: Row
    count_mean: Row
    transition: Matrix
    transition_noise: Matrix
    projection: Matrix
    information: Matrix
    root: Matrix
    initial_covariance: Matrix
    event_channel: list[int]
    event_output: list[int]
    event_above: Row
    event_below: Row
    event_refractory: list[int]
    n_ticks: int
    in_bin: int
    newest: int
    n_bins: int
    runaways: int
    rates_hz: Row
    filling: Row
    counts: Matrix
    state: Row
    covariance: Matrix
    event_level: list[int]
    event_wait: list[int]
    held: Row

    def __init__(self, record: Any) -> None:
        for name in record.dtype.names:
            setattr(self, name, record[name].tolist())

    def decode(self, spikes: int) -> tuple[Row, int]:
        """Outputs and events of one tick."""
        spiked = [float(spikes >> c & 1) for c in range(16)]
        if self.n_outputs + self.n_events == 0:
            return [0.0] * 8, 0
        self.n_ticks += 1
        if self.n_outputs and self.bin_ticks == 0:
            self.rates_hz = [
                r * self.rate_decay + self.rate_step * s for r, s in zip(self.rates_hz, spiked, strict=True)
            ]
            self._publish(self._weighted([self.rates_hz]), self.n_ticks > self.settle_ticks)
        elif self.n_outputs:
            self.filling = [a + b for a, b in zip(self.filling, spiked, strict=True)]
            self.in_bin += 1
            if self.in_bin == self.bin_ticks:
                self.newest = (self.newest + 1) % 10
                self.counts[self.newest] = self.filling
                self.filling, self.in_bin = [0.0] * 16, 0
                self.n_bins += 1
                lagged = [self.counts[(self.newest - lag) % 10] for lag in range(self.n_lags)]
                values = self._kalman(lagged[0]) if self.n_states else self._weighted(lagged)
                self._publish(values, self.n_bins >= self.n_lags)
        return list(self.held), self._events(spiked)

    def install(self, other: "Decoder") -> None:
        """Go on as another decoder."""
        before = dict(vars(self))
        counts_alike = self.bin_ticks == other.bin_ticks and self.dt_ms == other.dt_ms
        rates_alike = self.bin_ticks > 0 or self.rate_decay == other.rate_decay
        same_filter = bool(self.n_outputs and other.n_outputs and counts_alike and rates_alike)
        both_kalman = self.n_states > 0 and other.n_states > 0
        same_states = same_filter and both_kalman and (self.n_states, self.state_id) == (other.n_states, other.state_id)
        for name, value in vars(other).items():
            if name not in RUNNING:
                setattr(self, name, value)
        for j in range(16):
            old = (before["event_channel"][j], before["event_output"][j]) if j < before["n_events"] else None
            if j >= self.n_events:
                self.event_level[j] = self.event_wait[j] = 0
                continue
            watched = (self.event_channel[j], self.event_output[j])
            was_high = self.event_channel[j] < 0 and self.held[self.event_output[j]] > self.event_above[j]
            self.event_level[j] = int(was_high or (watched == old and self.event_level[j] == 1))
            self.event_wait[j] = self.event_wait[j] if watched == old else self.event_refractory[j]
        if not same_filter:
            self.n_ticks = self.in_bin = self.newest = self.n_bins = 0
            self.rates_hz, self.filling = [0.0] * 16, [0.0] * 16
            self.counts = [[0.0] * 16 for _ in self.counts]
            self.held = [0.0] * 8
        if same_states:
            for i in range(self.n_states):
                self.state[i] += before["state_mean"][i] - self.state_mean[i]
        else:
            self.state = [0.0] * len(self.state)
            self.covariance = [list(row) for row in self.initial_covariance]
        for o, value in enumerate(self.held):
            clipped = max(-self.limit[o], min(self.limit[o], value)) if o < self.n_outputs else 0.0
            self.held[o] = struct.unpack("f", struct.pack("f", clipped))[0]

    def _weighted(self, lagged: Matrix) -> Row:
        features = [value for row in lagged for value in row]
        values = []
        for o in range(self.n_outputs):
            total = self.bias[o]
            for feature, weights in zip(features, self.weights, strict=False):
                total = total + feature * weights[o]
            values.append(total)
        return values

    def _publish(self, values: Row, known: bool) -> None:
        for o, value in enumerate(values):
            value = value if known else 0.0
            value = max(-self.limit[o], min(self.limit[o], value))
            self.held[o] = struct.unpack("f", struct.pack("f", value))[0]

    def _kalman(self, counts: Row) -> Row:
        n = self.n_states
        a, w, s, root = (_top(m, n) for m in (self.transition, self.transition_noise, self.information, self.root))
        x, p = self.state[:n], _top(self.covariance, n)
        predicted = [_sum(0.0, [a[i][k] * x[k] for k in range(n)]) for i in range(n)]
        prior = symmetric(added(product(product(a, p), transposed(a)), w))
        innovation = []
        for i in range(n):
            total = _sum(0.0, [self.projection[i][c] * (counts[c] - self.count_mean[c]) for c in range(16)])
            innovation.append(_sum(total, [-(s[i][k] * predicted[k]) for k in range(n)]))
        pl = product(prior, root)
        inner = [[_sum(float(i == j), [root[k][i] * pl[k][j] for k in range(n)]) for j in range(n)] for i in range(n)]
        y = _solved(pl, _factor(inner))
        yy = product(y, transposed(y))
        p = symmetric([[prior[i][j] - yy[i][j] for j in range(n)] for i in range(n)])
        ps = product(p, s)
        fp = [[_sum(prior[i][j], [-(ps[i][k] * prior[k][j]) for k in range(n)]) for j in range(n)] for i in range(n)]
        fpf = [[_sum(fp[i][j], [-(fp[i][k] * ps[j][k]) for k in range(n)]) for j in range(n)] for i in range(n)]
        joseph = added(fpf, product(ps, transposed(p)))
        bounded = all(abs(v) <= 1e18 for row in joseph for v in row)
        p = symmetric(joseph)
        x = [_sum(predicted[i], [p[i][k] * innovation[k] for k in range(n)]) for i in range(n)]
        if not (bounded and all(abs(v) <= 1e9 for v in x)):
            self.runaways += 1
            x, p = [0.0] * n, _top(self.initial_covariance, n)
        self.state[:n] = x
        for i in range(n):
            self.covariance[i][:n] = p[i]
        shown = self.output_state[: self.n_outputs]
        return [x[k] + self.state_mean[k] + self.bias[o] for o, k in enumerate(shown)]

    def _events(self, spiked: Row) -> int:
        bits = 0
        for j in range(self.n_events):
            self.event_wait[j] = max(0, self.event_wait[j] - 1)
            if self.event_channel[j] >= 0:
                happened = spiked[self.event_channel[j]] == 1.0
            else:
                value = self.held[self.event_output[j]]
                was_high = self.event_level[j] == 1
                is_high = value >= self.event_below[j] if was_high else value > self.event_above[j]
                self.event_level[j] = int(is_high)
                happened = is_high and not was_high
            if happened and self.event_wait[j] == 0:
                bits |= 1 << j
                self.event_wait[j] = self.event_refractory[j]
        return bits


def _top(matrix: Matrix, n: int) -> Matrix:
    return [row[:n] for row in matrix[:n]]


def _sum(start: float, terms: Row) -> float:
    """From left to right: `sum` of Python 3.12 compensates for rounding, the kernel does not."""
    for term in terms:
        start = start + term
    return start


def product(a: Matrix, b: Matrix) -> Matrix:
    """The matrix a b."""
    return [[_sum(0.0, [x * y for x, y in zip(row, column, strict=True)]) for column in transposed(b)] for row in a]


def transposed(a: Matrix) -> Matrix:
    """The matrix a'."""
    return [list(column) for column in zip(*a, strict=True)]


def added(a: Matrix, b: Matrix) -> Matrix:
    """The matrix a + b."""
    return [[x + y for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]


def symmetric(a: Matrix) -> Matrix:
    """The mean of a and a'."""
    mean = [[0.5 * (x + y) for x, y in zip(r, s, strict=True)] for r, s in zip(a, transposed(a), strict=True)]
    return [[mean[i][j] if i != j else a[i][i] for j in range(len(a))] for i in range(len(a))]


def _factor(a: Matrix) -> Matrix:
    """Lower Cholesky factor of a matrix with eigenvalues of at least 1."""
    n = len(a)
    lower = [[0.0] * n for _ in range(n)]
    for j in range(n):
        square = _sum(a[j][j], [-(lower[j][k] * lower[j][k]) for k in range(j)])
        lower[j][j] = math.sqrt(max(1.0, square))
        for i in range(j + 1, n):
            lower[i][j] = _sum(a[i][j], [-(lower[i][k] * lower[j][k]) for k in range(j)]) / lower[j][j]
    return lower


def _solved(a: Matrix, lower: Matrix) -> Matrix:
    """The y of y lower' = a."""
    rows = []
    for row in a:
        y: Row = []
        for j, value in enumerate(row):
            y.append(_sum(value, [-(y[k] * lower[j][k]) for k in range(j)]) / lower[j][j])
        rows.append(y)
    return rows
