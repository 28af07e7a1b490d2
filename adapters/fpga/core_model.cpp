// The verilated core, driven through its ports alone: whatever has the ports of engine/hdl/neuromod_core.v, such as
// its netlist, runs behind the same functions.

#include <cstdint>
#include <memory>

#include "Vmodel.h"
#include "verilated.h"
#include "verilated_clock.h"

namespace {

constexpr uint32_t LONGEST_TICK = 4096;  // clocks; the core takes less than 1000

struct Core {
    VerilatedContext context;
    std::unique_ptr<Vmodel> model;

    void clock() { verilated_clock::rise(*model); }
    void write(uint32_t address, uint32_t word) {
        model->address = address;
        model->wdata = word;
        model->we = 1;
        clock();
        model->we = 0;
    }
    // an address a clock; its word comes two clocks later
    void read(const uint16_t* addresses, uint32_t n, uint32_t* words) {
        for (uint32_t k = 0; k <= n; ++k) {
            if (k < n) model->address = addresses[k];
            clock();
            if (k > 0) words[k - 1] = model->rdata;
        }
    }
    // clocks that the tick took, from the one that took `start` to the one that set `done`; 0 where it did not end
    uint32_t tick(const int16_t* stimuli) {
        model->stimulus_we = 1;
        for (uint32_t i = 0; i < 16; ++i) {
            model->stimulus_index = i;
            model->stimulus_word = static_cast<uint16_t>(stimuli[i]);
            clock();
        }
        model->stimulus_we = 0;
        model->start = 1;
        clock();
        model->start = 0;
        uint32_t clocks = 1;
        while (!model->done) {
            if (clocks == LONGEST_TICK) return 0;
            clock();
            ++clocks;
        }
        return clocks;
    }
    void reset(uint32_t clocks) {
        model->rst = 1;
        for (uint32_t k = 0; k < clocks; ++k) clock();
        model->rst = 0;
    }
};

}  // namespace

extern "C" {

// registers and memories power up as zeros for seed 0, and otherwise as whatever the seed gives
Core* core_new(uint32_t seed) {
    auto* core = new Core;
    core->context.randReset(seed ? 2 : 0);
    core->context.randSeed(static_cast<int>(seed));
    core->model = std::make_unique<Vmodel>(&core->context);
    core->model->stimulus_we = 0;
    core->model->start = 0;
    core->model->we = 0;
    core->model->address = 0;
    verilated_clock::begin(*core->model);
    core->reset(4);
    return core;
}

void core_delete(Core* core) {
    core->model->final();
    delete core;
}

void core_write(Core* core, uint32_t n, const uint16_t* addresses, const uint32_t* words) {
    for (uint32_t k = 0; k < n; ++k) core->write(addresses[k], words[k]);
}

void core_read(Core* core, uint32_t n, const uint16_t* addresses, uint32_t* words) { core->read(addresses, n, words); }

// begins a tick, resets it after some clocks
void core_reset(Core* core, uint32_t after_clocks) {
    if (after_clocks) {
        core->model->start = 1;
        core->clock();
        core->model->start = 0;
        for (uint32_t k = 1; k < after_clocks; ++k) core->clock();
    }
    core->reset(1);
}

// `modulation` and `words` may be null; returns how many ticks came to an end
uint32_t core_run(Core* core, uint32_t n_ticks, const int16_t* stimuli, const int64_t* modulation, uint16_t* spikes,
                  uint16_t* clocks, uint32_t n_addresses, const uint16_t* addresses, uint32_t* words) {
    for (uint32_t k = 0; k < n_ticks; ++k) {
        if (modulation)
            for (uint32_t m = 0; m < 5; ++m) core->write(m, static_cast<uint32_t>(modulation[5 * k + m]));
        clocks[k] = core->tick(stimuli + 16 * k);
        if (!clocks[k]) return k;
        spikes[k] = core->model->spikes;
        if (words) core->read(addresses, n_addresses, words + static_cast<size_t>(n_addresses) * k);
    }
    return n_ticks;
}

}  // extern "C"
