// Bytes in, in order, 512 of them: what is under way to a board while it computes and answers.
//
// The memory is read a clock ahead, so that it may be a block RAM; a byte can be taken two clocks after it came.

`default_nettype none

module neuromod_fifo (
    input  wire       clk,
    input  wire       rst,
    input  wire       put,              // ignored while full
    input  wire [7:0] put_data,
    output wire       full,
    output wire       empty,            // nothing is in it, and nothing is on its way through the memory
    output reg        has,              // take_data is the oldest byte
    output reg  [7:0] take_data,
    input  wire       take
);

    reg [7:0] memory [0:511];
    reg [9:0] n_put, n_taken;           // a bit more than an address: full is not empty
    wire [9:0] taken_next = n_taken + {9'd0, take && has};
    wire puts = put && !full;
    assign full = n_put - n_taken == 10'd512;
    assign empty = n_put == n_taken;

    always @(posedge clk) begin
        if (puts) memory[n_put[8:0]] <= put_data;
        take_data <= memory[taken_next[8:0]];
    end

    always @(posedge clk) begin
        if (rst) begin
            n_put <= 10'd0;
            n_taken <= 10'd0;
            has <= 1'b0;
        end else begin
            n_put <= n_put + {9'd0, puts};
            n_taken <= taken_next;
            // the byte that is put at this clock is not yet in what was read
            has <= taken_next != n_put;
        end
    end
endmodule

`default_nettype wire
