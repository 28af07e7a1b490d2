// A simulated board, byte by byte, for `simulated.py`: clocks are run while there is something to do, and no longer.

#include <cstdint>

#include "verilated_clock.h"

namespace {

constexpr int kImageWords = 768;

struct Board {
    VerilatedContext context;
    Vmodel model{&context};
    uint64_t clocks = 0;
    uint64_t ticks = 0;

    void clock() {
        verilated_clock::rise(model);
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

// Hands over bytes, one a clock, until one of them has something answered or done, and runs to its end; the bytes after
// it are left. Returns how many bytes came out (at most `room`); `n_taken` says how many went in.
int board_run(Board* board, const uint8_t* in, int n, int* n_taken, uint8_t* out, int room) {
    Vmodel& m = board->model;
    int taken = 0, given = 0;
    bool worked = false;
    for (;;) {
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
        board->clock();
    }
    *n_taken = taken;
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

}  // extern "C"
