// Levels on the line, clock by clock, and what the UARTs make of them.

#include <cstdint>

#include "Vmodel.h"
#include "verilated.h"

struct Bench {
    VerilatedContext context;
    Vmodel model{&context};
    void clock() {
        model.clk = 1;
        model.eval();
        model.clk = 0;
        model.eval();
    }
};

extern "C" {

Bench* bench_new() {
    auto* bench = new Bench;
    bench->model.clk = 0;
    bench->model.rx = 7;
    bench->model.tx_valid = 0;
    bench->model.eval();
    bench->model.rst = 1;
    for (int k = 0; k < 8; ++k) bench->clock();
    bench->model.rst = 0;
    return bench;
}

void bench_delete(Bench* bench) { delete bench; }

// Puts `levels` on the line of one UART; `out` gets a number for each event: a byte, or 256 for an error.
int bench_receive(Bench* bench, int which, const uint8_t* levels, int n, int* out) {
    int n_out = 0;
    for (int k = 0; k < n; ++k) {
        bench->model.rx = levels[k] ? 7 : 7 & ~(1 << which);
        bench->clock();
        if (bench->model.rx_valid >> which & 1) out[n_out++] = bench->model.rx_data >> 8 * which & 255;
        if (bench->model.rx_error >> which & 1) out[n_out++] = 256;
    }
    return n_out;
}

// Sends bytes one after the other; `levels` gets the line, clock by clock, beginning when the first byte is offered.
void bench_send(Bench* bench, int which, const uint8_t* bytes, int n, uint8_t* levels, int n_clocks) {
    int sent = 0;
    for (int k = 0; k < n_clocks; ++k) {
        bench->model.tx_valid = sent < n ? 1 << which : 0;
        bench->model.tx_data = sent < n ? bytes[sent] : 0;
        bench->model.eval();
        const bool takes = sent < n && (bench->model.tx_ready >> which & 1);
        bench->clock();
        sent += takes;
        levels[k] = bench->model.tx >> which & 1;
    }
}
}
