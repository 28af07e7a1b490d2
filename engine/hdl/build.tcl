# Builds nexys_a7_top.bit with Vivado, no project:
#
#   vivado -mode batch -source build.tcl
#
# in the folder that `neuromod export verilog` wrote, with sources, neuromod_config.vh and registers.mem beside it. It ends
# with an error where timing is not met, and writes no bitstream then.
# Neither Vivado nor a board was at hand when this was written: it has not been run.

set here [file dirname [file normalize [info script]]]
set out [file join $here build]
set part xc7a100tcsg324-1
file mkdir $out
cd $here

read_verilog [glob [file join $here neuromod_*.v]]
read_verilog [file join $here nexys_a7_top.v]
read_mem [glob [file join $here *.mem]]
read_xdc [file join $here nexys_a7.xdc]

synth_design -top nexys_a7_top -part $part -include_dirs $here
write_checkpoint -force [file join $out synthesised.dcp]
opt_design
place_design
phys_opt_design
route_design
write_checkpoint -force [file join $out routed.dcp]
report_utilization -file [file join $out utilisation.txt]
report_timing_summary -file [file join $out timing.txt]
report_drc -file [file join $out drc.txt]

foreach {what option} {setup -setup hold -hold} {
    set path [lindex [get_timing_paths $option -max_paths 1] 0]
    if {$path eq ""} { error "no $what path was found: is the clock constrained?" }
    set slack [get_property SLACK $path]
    puts "worst $what slack: $slack ns"
    if {$slack < 0} { error "timing is not met ($what slack $slack ns); see [file join $out timing.txt]" }
}
write_bitstream -force [file join $out nexys_a7_top.bit]
