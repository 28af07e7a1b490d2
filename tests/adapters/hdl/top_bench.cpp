// The pins of nexys_a7_top, and a serial line on them with a baud rate of its own.

#include <cstdint>

#include "Vmodel.h"
#include "verilated.h"

struct Top {
    VerilatedContext context;
    Vmodel model{&context};
    double bit_clocks;
    uint64_t now = 0;
    uint16_t lit = 0;
    // what the host hears
    bool hears = false, old = true;
    double began = 0;
    int heard_bits = 0, heard = 0, n_wrong = 0;

    int clock() {
        model.CLK100MHZ = 1;
        model.eval();
        model.CLK100MHZ = 0;
        model.eval();
        ++now;
        lit |= model.LED;
        const bool level = model.UART_RXD_OUT;
        int result = -1;
        if (!hears && old && !level) {
            hears = true;
            began = now;
            heard_bits = heard = 0;
        } else if (hears && now >= began + (heard_bits + 1.5) * bit_clocks) {
            if (heard_bits < 8) heard |= level << heard_bits;
            else {
                hears = false;
                if (level) result = heard;
                else ++n_wrong;
            }
            ++heard_bits;
        }
        old = level;
        return result;
    }
};

extern "C" {

Top* top_new(double bit_clocks) {
    auto* top = new Top;
    top->bit_clocks = bit_clocks;
    top->model.UART_TXD_IN = 1;
    top->model.SW = 0x8001;
    top->model.CPU_RESETN = 0;
    top->model.CLK100MHZ = 0;
    top->model.eval();
    for (int k = 0; k < 8; ++k) top->clock();
    top->model.CPU_RESETN = 1;
    return top;
}

void top_delete(Top* top) { delete top; }
void top_button(Top* top, int pressed) { top->model.CPU_RESETN = !pressed; }
int top_lit(const Top* top) { return top->lit; }
int top_wrong(const Top* top) { return top->n_wrong; }

// Sends bytes without a pause, then listens until `n_clocks` have gone since the last one, or `room` bytes came.
int top_talk(Top* top, const uint8_t* in, int n, uint8_t* out, int room, int n_clocks) {
    int n_out = 0;
    const double began = static_cast<double>(top->now);
    double last = began;
    for (;;) {
        const double bits = (static_cast<double>(top->now) - began) / top->bit_clocks;
        const int byte = static_cast<int>(bits / 10), bit = static_cast<int>(bits - 10 * byte);
        const bool sends = byte < n;
        top->model.UART_TXD_IN = !sends || bit == 9 || (bit > 0 && (in[byte] >> (bit - 1) & 1));
        if (sends) last = static_cast<double>(top->now);
        if (n_out == room || static_cast<double>(top->now) > last + n_clocks) return n_out;
        const int heard = top->clock();
        if (heard >= 0) {
            out[n_out++] = static_cast<uint8_t>(heard);
            last = static_cast<double>(top->now);
        }
    }
}
}
