// A clock of a verilated model, for a third of what two calls of its `eval` cost.

#pragma once

#include "Vmodel.h"
#include "Vmodel___024root.h"

// what `Vmodel::eval` calls; the rest of it looks for messages of other threads, of which there are none
void Vmodel___024root___eval(Vmodel___024root* root);

namespace verilated_clock {

// Forgets that the clock was high, rather than evaluate it low: nothing here happens at a falling edge.
template <class Root>
auto lower(Root& root, int) -> decltype(static_cast<void>(root.__Vtrigprevexpr___TOP__clk__0)) {
    root.__Vtrigprevexpr___TOP__clk__0 = 0;
}
// Where this version of Verilator names that memory otherwise.
template <class Root>
void lower(Root& root, long) {
    root.clk = 0;
    Vmodel___024root___eval(&root);
}

// To be called once, before `rise`.
inline void begin(Vmodel& model) {
    model.clk = 0;
    model.eval();
}

// One rising edge. Inputs are those set before it; outputs are up to date after it.
inline void rise(Vmodel& model) {
    Vmodel___024root& root = *model.rootp;
    lower(root, 0);
    root.clk = 1;
    Vmodel___024root___eval(&root);
}

}  // namespace verilated_clock
