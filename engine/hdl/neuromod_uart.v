// A serial line: 8 data bits, no parity, one stop bit, sent and received.
//
// Bits are timed by a remainder that is carried on, so that BAUD bits last CLOCK_HZ clocks exactly, whether or not one
// divides the other: no edge is further than one clock from where it belongs, however many bits came before. At
// 3,000,000 baud and 100 MHz (33 1/3 clocks a bit) that is 3 % of a bit; a divider of 33 would drift by 10 % in a byte.
// The receiver begins anew at each start bit, which it sees up to a clock late, and samples in the middle of bits: at
// the stop bit it is off by 3 clocks at most, so that at 33 clocks a bit the other side may be wrong by 4 % and is
// still understood, at 8 clocks by 1 %. Fewer than 8 clocks a bit are not supported.

`default_nettype none

module neuromod_uart #(
    parameter CLOCK_HZ = 100000000,
    parameter BAUD = 3000000
) (
    input  wire       clk,
    input  wire       rst,
    input  wire       rx,               // from outside, in no step with the clock
    output reg        tx,
    output reg  [7:0] rx_data,
    output reg        rx_valid,         // one clock
    output reg        rx_error,         // one clock, in place of rx_valid: the stop bit was wrong
    input  wire [7:0] tx_data,
    input  wire       tx_valid,
    output wire       tx_ready
);

    // Remainders run from -CLOCK_HZ up by BAUD a clock, both over what divides them; where one passes 0, a bit is over.
    function integer divisor(input integer a, input integer b);
        integer rest, left;
        begin
            divisor = a;
            left = b;
            while (left != 0) begin
                rest = divisor % left;
                divisor = left;
                left = rest;
            end
        end
    endfunction
    localparam integer COMMON = divisor(CLOCK_HZ, BAUD);
    localparam integer WIDTH = $clog2(CLOCK_HZ / COMMON) + 2;
    localparam integer CLOCKS = CLOCK_HZ / COMMON, BITS = BAUD / COMMON, HALVES = (CLOCKS + 1) / 2;
    localparam signed [WIDTH-1:0] PER_CLOCK = BITS[WIDTH-1:0], PER_BIT = CLOCKS[WIDTH-1:0], HALF = HALVES[WIDTH-1:0];

    // ---- receiver
    reg [4:0] line;                     // two clocks to settle, and the last three samples
    always @(posedge clk) line <= rst ? 5'h1F : {line[3:0], rx};
    // a spike of one clock on the line is voted down
    wire level = (line[2] && line[3]) || (line[3] && line[4]) || (line[2] && line[4]);

    localparam [1:0] WAITS = 0, START = 1, DATA = 2, BREAK = 3;
    reg [1:0] rx_state;
    reg [3:0] rx_bit;
    reg [7:0] rx_bits;
    reg signed [WIDTH-1:0] rx_phase;
    wire rx_middle = !rx_phase[WIDTH-1];

    always @(posedge clk) begin
        rx_valid <= 1'b0;
        rx_error <= 1'b0;
        rx_phase <= rx_phase + (rx_middle ? PER_CLOCK - PER_BIT : PER_CLOCK);
        if (rst) begin
            rx_state <= BREAK;          // a byte may be half over: begin at a line that is at rest
        end else case (rx_state)
            WAITS: begin
                rx_bit <= 4'd0;
                rx_phase <= PER_CLOCK - HALF;
                if (!level) rx_state <= START;
            end
            // a start bit that is over before its middle was none
            START: if (rx_middle) rx_state <= level ? WAITS : DATA;
            DATA: if (rx_middle) begin
                rx_bit <= rx_bit + 4'd1;
                if (rx_bit == 4'd8) begin
                    rx_data <= rx_bits;
                    rx_valid <= level;
                    rx_error <= !level;
                    rx_state <= level ? WAITS : BREAK;
                end else rx_bits <= {level, rx_bits[7:1]};
            end
            BREAK: if (level) rx_state <= WAITS;
        endcase
    end

    // ---- transmitter
    reg [3:0] tx_left;
    reg [8:0] tx_bits;
    reg signed [WIDTH-1:0] tx_phase;
    wire tx_over = !tx_phase[WIDTH-1];
    assign tx_ready = tx_left == 4'd0;

    always @(posedge clk) begin
        if (rst) begin
            tx <= 1'b1;
            tx_left <= 4'd0;
        end else if (tx_ready) begin
            tx_phase <= PER_CLOCK + PER_CLOCK - PER_BIT;
            if (tx_valid) begin
                tx <= 1'b0;
                tx_bits <= {1'b1, tx_data};
                tx_left <= 4'd10;
            end
        end else begin
            tx_phase <= tx_phase + (tx_over ? PER_CLOCK - PER_BIT : PER_CLOCK);
            if (tx_over) begin
                tx_left <= tx_left - 4'd1;
                tx <= tx_bits[0];
                tx_bits <= {1'b1, tx_bits[8:1]};
            end
        end
    end
endmodule

`default_nettype wire
