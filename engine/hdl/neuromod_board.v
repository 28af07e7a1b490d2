// A board, byte by byte: the core, the protocol in front of it, and the network that it comes up with.
//
// After every reset the image (registers.mem, words 000 to 2FF) is copied into the core, word by word, through the port
// that the protocol uses: so a board has its network before a host speaks, and gets it back by a reset.

`default_nettype none

module neuromod_board #(
    parameter PROTOCOL = 0,             // 0: ours, with frames; 1: SiliconBridge v3.0
    parameter CLOCK_HZ = 100000000,     // told to the host
    parameter IMAGE = ""                // file for $readmemh; without one, every register is 0
) (
    input  wire        clk,
    input  wire        rst,
    input  wire        rx_valid,        // bytes are taken at any time, and lost where 512 wait
    input  wire [7:0]  rx_data,
    input  wire        rx_error,        // a byte was lost on the line
    output wire        tx_valid,
    output wire [7:0]  tx_data,
    input  wire        tx_ready,
    input  wire [15:0] switches,
    output wire [15:0] spikes,
    output wire        done,            // one clock, after a tick
    output wire        receiving,       // no frame is being worked on, and nothing answered
    output wire        idle,            // nor is there a byte that could change this
    // a second way to the registers, for whoever looks into a board that is idle; tied to 0 where nobody does
    input  wire        side,
    input  wire        side_we,
    input  wire [9:0]  side_address,
    input  wire [31:0] side_wdata,
    output wire [31:0] side_rdata       // two clocks after the address
);

    // ---- after a reset: the image
    localparam [9:0] N_WORDS = 10'h300;
    reg [31:0] image [0:767] /* verilator public_flat_rw */;
    integer k;
    initial begin
        for (k = 0; k < 768; k = k + 1) image[k] = 32'd0;
        if (IMAGE != "") $readmemh(IMAGE, image);
    end
    reg [9:0]  n_copied, image_address;
    reg [31:0] image_word;
    reg        image_we;
    wire boots = n_copied != N_WORDS || image_we;
    always @(posedge clk) begin
        image_word <= image[n_copied];
        image_address <= n_copied;
        image_we <= !rst && n_copied != N_WORDS;
        if (rst) n_copied <= 10'd0;
        else if (n_copied != N_WORDS) n_copied <= n_copied + 10'd1;
    end

    // ---- bytes that came and were not yet looked at
    wire fifo_full, fifo_empty, fifo_has, front_ready;
    wire [7:0] fifo_data;
    wire holds = boots || side;
    neuromod_fifo fifo (
        .clk(clk), .rst(rst),
        .put(rx_valid), .put_data(rx_data), .full(fifo_full), .empty(fifo_empty),
        .has(fifo_has), .take_data(fifo_data), .take(front_ready && !holds)
    );
    wire core_ready /* verilator public_flat_rd */;
    assign idle = receiving && fifo_empty && !boots && core_ready;

    // ---- the protocol
    wire front_stimulus_we, front_start, front_we;
    wire [3:0] front_stimulus_index;
    wire [15:0] front_stimulus_word;
    wire [9:0] front_address;
    wire [31:0] front_wdata, rdata;
    wire known;
    generate if (PROTOCOL == 0) begin : ours
        neuromod_frame #(.CLOCK_HZ(CLOCK_HZ)) front (
            .clk(clk), .rst(rst),
            .rx_valid(fifo_has && !holds), .rx_data(fifo_data), .rx_ready(front_ready),
            .tx_valid(tx_valid), .tx_data(tx_data), .tx_ready(tx_ready),
            .lost(rx_error || (rx_valid && fifo_full)), .receiving(receiving),
            .stimulus_we(front_stimulus_we), .stimulus_index(front_stimulus_index),
            .stimulus_word(front_stimulus_word), .start(front_start), .known(known), .ready(core_ready), .spikes(spikes),
            .address(front_address), .we(front_we), .wdata(front_wdata), .rdata(rdata)
        );
        wire unused = &{1'b0, switches};
    end else begin : siliconbridge
        neuromod_siliconbridge front (
            .clk(clk), .rst(rst),
            .rx_valid(fifo_has && !holds), .rx_data(fifo_data), .rx_ready(front_ready),
            .tx_valid(tx_valid), .tx_data(tx_data), .tx_ready(tx_ready),
            .switches(switches), .receiving(receiving),
            .stimulus_we(front_stimulus_we), .stimulus_index(front_stimulus_index),
            .stimulus_word(front_stimulus_word), .start(front_start), .done(done), .spikes(spikes),
            .address(front_address), .we(front_we), .wdata(front_wdata), .rdata(rdata)
        );
        wire unused = &{1'b0, rx_error, fifo_full, known};  // it has no way to tell, and waits for `done`
    end endgenerate

    // ---- the core
    neuromod_core core (
        .clk(clk), .rst(rst),
        .stimulus_we(front_stimulus_we), .stimulus_index(front_stimulus_index), .stimulus_word(front_stimulus_word),
        .start(front_start), .ready(core_ready), .known(known), .done(done), .spikes(spikes),
        .address(boots ? image_address : side ? side_address : front_address),
        .we(boots ? image_we : side ? side_we : front_we),
        .wdata(boots ? image_word : side ? side_wdata : front_wdata),
        .rdata(rdata)
    );
    assign side_rdata = rdata;
endmodule

`default_nettype wire
