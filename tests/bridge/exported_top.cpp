// The top of an exported folder on its own pins: bytes bit by bit into its serial line, and bytes out of it.

#include <cstdint>
#include <memory>

#include "Vmodel.h"
#include "verilated.h"

namespace {

struct Top {
    VerilatedContext context;
    std::unique_ptr<Vmodel> model;
    uint64_t clocks_per_bit_x256;

    void clock() {
        model->CLK100MHZ = 0;
        model->eval();
        model->CLK100MHZ = 1;
        model->eval();
    }
};

}  // namespace

extern "C" {

Top* top_new(uint32_t clock_hz, uint32_t baud) {
    auto* top = new Top;
    top->model = std::make_unique<Vmodel>(&top->context);
    top->clocks_per_bit_x256 = 256ull * clock_hz / baud;
    top->model->UART_TXD_IN = 1;
    top->model->CPU_RESETN = 0;
    for (int k = 0; k < 16; ++k) top->clock();
    top->model->CPU_RESETN = 1;
    for (int k = 0; k < 1000; ++k) top->clock();  // its image is copied in 768 clocks
    return top;
}

void top_delete(Top* top) {
    top->model->final();
    delete top;
}

// sends all bytes, and listens until the line has been still for 20 bytes' time; returns how many came, or -1
int32_t top_exchange(Top* top, uint32_t n, const uint8_t* in, uint32_t room, uint8_t* out) {
    const uint64_t bit = top->clocks_per_bit_x256;
    uint32_t n_out = 0;
    uint64_t still = 0, heard = 0, now = 0;  // `heard`: time since the start bit, 0 where none
    uint8_t byte = 0;
    int n_bits = 0;
    for (; still < 200 * bit; now += 256, still += 256) {
        const uint64_t place = now / bit;  // of the bit that is on the line
        const uint64_t k = place / 10, b = place % 10;
        if (k < n) still = 0;
        top->model->UART_TXD_IN = k >= n || b == 9 ? 1 : b == 0 ? 0 : in[k] >> (b - 1) & 1;
        top->clock();
        const int level = top->model->UART_RXD_OUT;
        if (!heard) {
            if (!level) heard = 256, n_bits = 0;
            continue;
        }
        still = 0;
        heard += 256;
        if (heard < bit * (n_bits + 1) + bit / 2) continue;
        if (n_bits == 8) {
            if (!level || n_out == room) return -1;  // no stop bit
            out[n_out++] = byte;
            heard = 0;
        } else {
            byte = static_cast<uint8_t>(byte >> 1 | level << 7);
            ++n_bits;
        }
    }
    return static_cast<int32_t>(n_out);
}

}  // extern "C"
