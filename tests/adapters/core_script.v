// Runs a script on the core, for simulators that nothing else can drive; see test_hdl.py.
//
// One command a line, three hexadecimal words: 1 ADDRESS WORD writes a register, 2 INDEX WORD a stimulus, 3 0 SPIKES
// runs a tick and compares its spikes, 4 ADDRESS WORD reads a register and compares it, 0 0 0 ends. The last line that
// is printed tells how many ticks were run, how many words were compared, and how many were wrong.

`default_nettype none

module core_script;
    reg clk = 0, rst = 1, stimulus_we = 0, start = 0, we = 0;
    reg [3:0] stimulus_index = 0;
    reg [15:0] stimulus_word = 0;
    reg [9:0] address = 0;
    reg [31:0] wdata = 0;
    wire ready, done;
    wire [15:0] spikes;
    wire [31:0] rdata;
    neuromod_core core (
        .clk(clk), .rst(rst), .stimulus_we(stimulus_we), .stimulus_index(stimulus_index),
        .stimulus_word(stimulus_word), .start(start), .ready(ready), .done(done), .spikes(spikes), .address(address),
        .we(we), .wdata(wdata), .rdata(rdata)
    );
    always #1 clk = !clk;                 // inputs change at the falling edge

    reg [8*512-1:0] path;
    integer file, n_read, n_ticks, n_compared, n_wrong, clocks;
    reg [31:0] command, where, word;

    task compare(input [31:0] got);
        begin
            n_compared = n_compared + 1;
            if (got !== word) begin       // an unknown bit is a wrong one
                n_wrong = n_wrong + 1;
                if (n_wrong <= 10)
                    $display("after %0d ticks: command %0d at %h gave %h, expected %h", n_ticks, command, where, got, word);
            end
        end
    endtask

    initial begin
        if (!$value$plusargs("script=%s", path)) $finish;
        file = $fopen(path, "r");
        n_ticks = 0; n_compared = 0; n_wrong = 0; command = 1;
        repeat (4) @(negedge clk);
        rst = 0;
        n_read = $fscanf(file, "%h %h %h", command, where, word);
        while (n_read == 3 && command != 0) begin
            case (command)
                1: begin
                    address = where[9:0]; wdata = word; we = 1;
                    @(negedge clk) we = 0;
                end
                2: begin
                    stimulus_index = where[3:0]; stimulus_word = word[15:0]; stimulus_we = 1;
                    @(negedge clk) stimulus_we = 0;
                end
                3: begin
                    start = 1;
                    @(negedge clk) start = 0;
                    clocks = 1;
                    while (done !== 1'b1 && clocks < 4096) @(negedge clk) clocks = clocks + 1;
                    n_ticks = n_ticks + 1;
                    compare({16'd0, spikes});
                end
                default: begin
                    address = where[9:0];
                    repeat (2) @(negedge clk);
                    compare(rdata);
                end
            endcase
            n_read = $fscanf(file, "%h %h %h", command, where, word);
        end
        $display("%0d ticks, %0d words, %0d wrong", n_ticks, n_compared, n_wrong);
        $finish;
    end
endmodule

`default_nettype wire
