// A clock of a verilated model, for a third of what two calls of its `eval` cost.

#pragma once

#include "Vmodel.h"
#include "Vmodel___024root.h"

// what `Vmodel::eval` calls; the rest of it looks for messages of other threads, of which there are none
void Vmodel___024root___eval(Vmodel___024root* root);
// what `eval` calls for registers, and for what hangs on them
void Vmodel___024root___eval_nba(Vmodel___024root* root);

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

// Only what a rising edge does: neither looks at the inputs, nor asks whether it was one.
template <class Root>
auto registers(Root& root, int) -> decltype(static_cast<void>(root.__VnbaTriggered[0U] = 1U)) {
    root.__VnbaTriggered[0U] = 1U;
    Vmodel___024root___eval_nba(&root);
    root.__VnbaTriggered[0U] = 0U;
}
template <class Root>
void registers(Root& root, long) {
    lower(root, 0);
    root.clk = 1;
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

// The same, where no input is another than at the edge before: a sixth less time.
inline void rise_again(Vmodel& model) { registers(*model.rootp, 0); }

}  // namespace verilated_clock
