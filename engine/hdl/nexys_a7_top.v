// A Digilent Nexys A7-100T with the network: its USB serial port speaks the protocol, its LEDs show spikes.
//
// neuromod_config.vh is written by `neuromod export verilog`: image, clock, baud and protocol.

`default_nettype none
`include "neuromod_config.vh"

module nexys_a7_top (
    input  wire        CLK100MHZ,
    input  wire        CPU_RESETN,
    input  wire        UART_TXD_IN,     // from the host
    output wire        UART_RXD_OUT,    // to the host
    input  wire [15:0] SW,
    output wire [15:0] LED
);

    wire clk = CLK100MHZ;

    // ---- reset: at once when pressed, off in step with the clock; a pressed button bounces for longer than this lasts
    reg [3:0] released;
    initial released = 4'd0;
    always @(posedge clk or negedge CPU_RESETN)
        if (!CPU_RESETN) released <= 4'd0;
        else released <= {released[2:0], 1'b1};
    reg rst;
    initial rst = 1'b1;
    always @(posedge clk) rst <= !released[3];

    reg [15:0] switches_1, switches_2;
    always @(posedge clk) {switches_2, switches_1} <= {switches_1, SW};

    // ---- the board on its line
    wire [7:0] rx_data, tx_data;
    wire rx_valid, rx_error, tx_valid, tx_ready, done, receiving, idle;
    wire [15:0] spikes;
    wire [31:0] side_rdata;
    neuromod_uart #(.CLOCK_HZ(`NEUROMOD_CLOCK_HZ), .BAUD(`NEUROMOD_BAUD)) uart (
        .clk(clk), .rst(rst), .rx(UART_TXD_IN), .tx(UART_RXD_OUT),
        .rx_data(rx_data), .rx_valid(rx_valid), .rx_error(rx_error),
        .tx_data(tx_data), .tx_valid(tx_valid), .tx_ready(tx_ready)
    );
    neuromod_board #(
        .PROTOCOL(`NEUROMOD_PROTOCOL), .CLOCK_HZ(`NEUROMOD_CLOCK_HZ), .IMAGE(`NEUROMOD_IMAGE)
    ) board (
        .clk(clk), .rst(rst),
        .rx_valid(rx_valid), .rx_data(rx_data), .rx_error(rx_error),
        .tx_valid(tx_valid), .tx_data(tx_data), .tx_ready(tx_ready),
        .switches(switches_2), .spikes(spikes), .done(done), .receiving(receiving), .idle(idle),
        .side(1'b0), .side_we(1'b0), .side_address(10'd0), .side_wdata(32'd0), .side_rdata(side_rdata)
    );
    wire unused = &{1'b0, receiving, idle, side_rdata};

    // ---- a spike is too short to be seen: each lights its LED for 2^21 to 2^22 clocks, 21 to 42 ms
    reg [20:0] count;
    reg [15:0] now, earlier;
    wire shifts = count == 21'd0;
    always @(posedge clk) begin
        if (rst) begin
            count <= 21'd0;
            now <= 16'd0;
            earlier <= 16'd0;
        end else begin
            count <= count + 21'd1;
            now <= (shifts ? 16'd0 : now) | (done ? spikes : 16'd0);
            if (shifts) earlier <= now;
        end
    end
    assign LED = now | earlier;
endmodule

`default_nettype wire
