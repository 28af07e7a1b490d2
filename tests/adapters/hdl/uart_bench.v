// UARTs at 100 MHz: at 115,200 baud, at 3,000,000 (33 1/3 clocks a bit), and at 12,000,000 (8 1/3).

module uart_bench (
    input  wire        clk,
    input  wire        rst,
    input  wire [2:0]  rx,
    output wire [2:0]  tx,
    output wire [23:0] rx_data,
    output wire [2:0]  rx_valid,
    output wire [2:0]  rx_error,
    input  wire [7:0]  tx_data,
    input  wire [2:0]  tx_valid,
    output wire [2:0]  tx_ready
);
    neuromod_uart #(.CLOCK_HZ(100000000), .BAUD(115200)) slow (
        .clk(clk), .rst(rst), .rx(rx[0]), .tx(tx[0]), .rx_data(rx_data[7:0]), .rx_valid(rx_valid[0]),
        .rx_error(rx_error[0]), .tx_data(tx_data), .tx_valid(tx_valid[0]), .tx_ready(tx_ready[0])
    );
    neuromod_uart #(.CLOCK_HZ(100000000), .BAUD(3000000)) fast (
        .clk(clk), .rst(rst), .rx(rx[1]), .tx(tx[1]), .rx_data(rx_data[15:8]), .rx_valid(rx_valid[1]),
        .rx_error(rx_error[1]), .tx_data(tx_data), .tx_valid(tx_valid[1]), .tx_ready(tx_ready[1])
    );
    neuromod_uart #(.CLOCK_HZ(100000000), .BAUD(12000000)) faster (
        .clk(clk), .rst(rst), .rx(rx[2]), .tx(tx[2]), .rx_data(rx_data[23:16]), .rx_valid(rx_valid[2]),
        .rx_error(rx_error[2]), .tx_data(tx_data), .tx_valid(tx_valid[2]), .tx_ready(tx_ready[2])
    );
endmodule
