// A simulated board, byte by byte, for `simulated.py`: clocks are run while there is something to do, and no longer.

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <ctime>

#include <sys/select.h>
#include <unistd.h>

#include "verilated_clock.h"

namespace {

constexpr int kImageWords = 768;
constexpr int kRoom = 256;              // of an answer: at most 255 bytes
constexpr int kMaxUnderWay = 512;       // bytes, as the FIFO of the board
constexpr uint32_t kTickAddress = 0x081;
constexpr int64_t kTurnNs = 100000000;  // 100 ms

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

struct Board {
    VerilatedContext context;
    Vmodel model{&context};
    uint64_t clocks = 0;
    uint64_t ticks = 0;

    void clock(bool has_new_inputs = true) {
        if (has_new_inputs) {
            verilated_clock::rise(model);
        } else {
            verilated_clock::rise_again(model);
        }
        ++clocks;
        ticks += model.done;
    }
};

}  // namespace

extern "C" {

void board_reset(Board* board) {
    Vmodel& m = board->model;
    m.rst = 1;
    board->clock();
    board->clock();
    m.rst = 0;
    while (!m.idle) board->clock();
}

Board* board_new(const uint32_t* image) {
    auto* board = new Board;
    Vmodel& m = board->model;
    m.rx_valid = m.rx_error = 0;
    m.tx_ready = 1;
    m.switches = 0;
    m.side = m.side_we = 0;
    m.side_address = 0;
    m.side_wdata = 0;
    verilated_clock::begin(m);
    for (int k = 0; k < kImageWords; ++k) m.rootp->neuromod_board__DOT__image[k] = image[k];
    board_reset(board);
    return board;
}

void board_delete(Board* board) { delete board; }

uint64_t board_clocks(const Board* board) { return board->clocks; }
uint64_t board_ticks(const Board* board) { return board->ticks; }
void board_switches(Board* board, uint16_t switches) { board->model.switches = switches; }

}  // extern "C"

namespace {

// Hands over bytes, one a clock, until one of them has something answered or done, and runs to the end of the answer; the
// bytes after it are left. Returns how many bytes came out (at most `room`); `n_taken` says how many went in.
int run_to_answer(Board* board, const uint8_t* in, int n, int* n_taken, uint8_t* out, int room) {
    Vmodel& m = board->model;
    int taken = 0, given = 0;
    bool worked = false;
    for (bool had_byte = true;; had_byte = m.rx_valid) {
        m.rx_valid = 0;
        if (!m.receiving) {
            worked = true;
        } else if (worked || (taken == n && m.idle)) {
            break;
        } else if (taken < n) {
            m.rx_valid = 1;
            m.rx_data = in[taken++];
        }
        if (m.tx_valid && given < room) out[given++] = m.tx_data;
        board->clock(had_byte || m.rx_valid);
    }
    *n_taken = taken;
    return given;
}

// Runs until synapses have learnt, which an answer does not wait for.
void settle(Board* board) {
    for (bool first = true; !board->model.rootp->neuromod_board__DOT__core_ready; first = false) {
        board->model.rx_valid = 0;
        board->clock(first);
    }
}

}  // namespace

extern "C" {

// As `run_to_answer`, and then to the end of the tick.
int board_run(Board* board, const uint8_t* in, int n, int* n_taken, uint8_t* out, int room) {
    const int given = run_to_answer(board, in, n, n_taken, out, room);
    settle(board);
    return given;
}

// Bytes one a clock whatever the board does, as a line would that is fast beyond measure; then runs until all is done.
int board_flood(Board* board, const uint8_t* in, int n, uint8_t* out, int room) {
    Vmodel& m = board->model;
    int taken = 0, given = 0;
    while (taken < n || !m.idle) {
        m.rx_valid = taken < n;
        if (taken < n) m.rx_data = in[taken++];
        if (m.tx_valid && given < room) out[given++] = m.tx_data;
        board->clock();
    }
    m.rx_valid = 0;
    return given;
}

// Bytes that were lost before they reached the board, and that it counts.
void board_lose(Board* board, int n) {
    for (; n > 0; --n) {
        board->model.rx_error = 1;
        board->clock();
    }
    board->model.rx_error = 0;
}

// The register at an address, between two calls of the above.
uint32_t board_peek(Board* board, uint32_t address) {
    Vmodel& m = board->model;
    m.side = 1;
    m.side_address = address;
    for (int k = 0; k < 3; ++k) board->clock();
    const uint32_t word = m.side_rdata;
    m.side = 0;
    for (int k = 0; k < 3; ++k) board->clock();  // until the protocol sees again what it looked at
    return word;
}

void board_poke(Board* board, uint32_t address, uint32_t word) {
    Vmodel& m = board->model;
    m.side = m.side_we = 1;
    m.side_address = address;
    m.side_wdata = word;
    board->clock();
    m.side = m.side_we = 0;
    for (int k = 0; k < 3; ++k) board->clock();
}

// What `board_serve` may do by itself, and what it did; `_Serving` in board_model.py.
struct Serving {
    // bytes that may come and go before something is to happen to one, and ticks from a first one on; counted down
    int64_t bytes_in, bytes_out;
    int64_t first_tick, n_ticks;        // n_ticks < 0: any
    // since the call
    int64_t n_in, n_out, n_sent, n_answers;
    // bytes that came, and are not among these: somebody else is to handle them
    int64_t n_data;
    uint8_t data[65536];
};

enum Reason { kWoken = 0, kTime = 1, kData = 2 };  // or an errno, negative

// Serves a host at `line` until `wake` can be read, some time has passed, or bytes came that are not for this function.
// Comes back every 100 ms in any case, since the interpreter has signals to handle.
int board_serve(Board* board, int line, int wake, int64_t wait_ns, Serving* serving) {
    if (line >= FD_SETSIZE || wake >= FD_SETSIZE) return -EINVAL;
    Serving& s = *serving;
    s.n_in = s.n_out = s.n_sent = s.n_answers = s.n_data = 0;
    int64_t now = now_ns();
    const int64_t end = now + (wait_ns < kTurnNs ? wait_ns : kTurnNs);
    for (;; now = now_ns()) {
        const int64_t timeout = now < end ? end - now : 0;
        timeval wait = {static_cast<time_t>(timeout / 1000000000), static_cast<suseconds_t>(timeout % 1000000000 / 1000)};
        fd_set readable;
        FD_ZERO(&readable);
        FD_SET(line, &readable);
        FD_SET(wake, &readable);
        const int n_ready = select((line > wake ? line : wake) + 1, &readable, nullptr, nullptr, &wait);
        if (n_ready < 0) return errno == EINTR ? int{kTime} : -errno;
        if (n_ready == 0) {
            if (timeout == 0) return kTime;
            continue;
        }
        if (FD_ISSET(wake, &readable)) return kWoken;
        const ssize_t n_read = read(line, s.data, sizeof s.data);
        if (n_read < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        if (n_read <= 0) return n_read < 0 ? -errno : -EIO;  // a line that hung up is always ready: not again and again
        int n = static_cast<int>(n_read), at = 0;
        while (at < n || !board->model.idle) {  // what it took may still wait in it
            const bool mine = n <= kMaxUnderWay && n - at <= s.bytes_in && s.bytes_out >= kRoom &&
                (s.n_ticks < 0 || uint32_t(board_peek(board, kTickAddress) - uint32_t(s.first_tick)) < s.n_ticks);
            if (at < n && !mine) {
                s.n_data = n - at;
                memmove(s.data, s.data + at, s.n_data);
                return kData;
            }
            uint8_t out[kRoom];
            int n_taken = 0;
            const int n_out = run_to_answer(board, s.data + at, n - at, &n_taken, out, kRoom);
            at += n_taken;
            s.n_in += n_taken;
            s.bytes_in -= n_taken;
            // nobody may be reading: what the terminal does not take is lost, as on a line
            const ssize_t n_written = n_out == 0 ? 0 : write(line, out, n_out);
            settle(board);
            if (n_out == 0) continue;
            if (n_written < 0 && errno != EAGAIN) return -errno;
            if (n_written > 0) s.n_sent += n_written;
            s.n_out += n_out;
            s.bytes_out -= n_out;
            ++s.n_answers;
        }
    }
}

}  // extern "C"
