// A board's side of SiliconBridge v3.0, as adapters/fpga/PROTOCOL.md tells it: commands in, potentials out.
//
// There is no frame to wait for, so stimuli and words go to the core as they come.

`default_nettype none

module neuromod_siliconbridge (
    input  wire        clk,
    input  wire        rst,
    // bytes
    input  wire        rx_valid,
    input  wire [7:0]  rx_data,
    output wire        rx_ready,
    output wire        tx_valid,
    output wire [7:0]  tx_data,
    input  wire        tx_ready,
    input  wire [15:0] switches,
    output wire        receiving,       // no tick is being run, and nothing answered
    // the core
    output reg         stimulus_we,
    output reg  [3:0]  stimulus_index,
    output wire [15:0] stimulus_word,
    output wire        start,
    input  wire        done,
    input  wire [15:0] spikes,
    output reg  [9:0]  address,
    output reg         we,
    output wire [31:0] wdata,
    input  wire [31:0] rdata
);

    localparam [7:0] TICK = 8'hAA, REWARD = 8'hDD, WRITE = 8'hDE, READ = 8'hEE, WORD = 8'hA6;
    localparam [9:0] FACTOR_REGISTER = 10'h004, TICK_REGISTER = 10'h081;
    localparam [5:0] GAINS = 6'h02, THRESHOLDS = 6'h04, MEMBRANES = 6'h09;   // registers of sixteen

    localparam [3:0] COMMAND = 0, STIMULI = 1, FACTOR = 2, FROM = 3, COUNT = 4, WORDS = 5, ASKED = 6, START = 7, RUN = 8,
                     FETCH = 9, ANSWER = 10;
    reg [3:0] state;
    assign receiving = state < START && !we;
    assign rx_ready = receiving;
    wire takes = receiving && rx_valid;

    reg [15:0] word;                    // the last two bytes, the first one on top
    reg        is_second;
    reg [8:0]  parameter_index;         // a bit more than it needs: 255 and a count do not come back to 0
    reg [7:0]  words_left;
    reg        is_factor;
    wire [9:0] parameter_address = {parameter_index[4] ? GAINS : THRESHOLDS, parameter_index[3:0]};
    wire       is_parameter = parameter_index < 9'd32;
    assign stimulus_word = word;
    assign wdata = is_factor ? {word, 16'd0} : {{16{word[15]}}, word};

    // answers: a mark and a word, or sixteen potentials, spikes and switches, each from a word that is shifted out
    reg [15:0] out;
    reg        out_is_low;              // its lower byte is left
    reg [4:0]  outs_left;
    reg [1:0]  fetching;
    reg        is_tick, is_marked;
    wire unused = &{1'b0, rdata[31:24]};
    assign tx_valid = state == ANSWER;
    assign tx_data = is_marked ? WORD : out[15:8];
    assign start = state == START && !stimulus_we;

    always @(posedge clk) begin
        stimulus_we <= 1'b0;
        we <= 1'b0;
        if (stimulus_we) stimulus_index <= stimulus_index + 4'd1;
        if (takes) word <= {word[7:0], rx_data};
        if (rst) begin
            state <= COMMAND;
            is_second <= 1'b0;
        end else case (state)
            COMMAND: begin
                is_second <= 1'b0;
                if (!we) address <= TICK_REGISTER;
                if (takes) begin
                    stimulus_index <= 4'd0;
                    is_tick <= rx_data == TICK;
                    case (rx_data)
                        TICK: state <= STIMULI;
                        REWARD: state <= FACTOR;
                        WRITE: state <= FROM;
                        READ: state <= ASKED;
                        default: ;
                    endcase
                end
            end
            STIMULI: if (takes) begin
                is_second <= !is_second;
                stimulus_we <= is_second;
                if (is_second && stimulus_index == 4'd15) state <= START;
            end
            FACTOR: if (takes) begin
                is_second <= !is_second;
                if (is_second) begin
                    is_factor <= 1'b1;
                    address <= FACTOR_REGISTER;
                    we <= 1'b1;
                    state <= COMMAND;
                end
            end
            FROM: if (takes) begin
                parameter_index <= {1'b0, rx_data};
                state <= COUNT;
            end
            COUNT: if (takes) begin
                words_left <= rx_data;
                state <= rx_data == 8'd0 ? COMMAND : WORDS;
            end
            WORDS: if (takes) begin
                is_second <= !is_second;
                if (is_second) begin
                    is_factor <= 1'b0;
                    address <= parameter_address;
                    we <= is_parameter;
                    parameter_index <= parameter_index + 9'd1;
                    words_left <= words_left - 8'd1;
                    if (words_left == 8'd1) state <= COMMAND;
                end
            end
            ASKED: if (takes) begin
                parameter_index <= {1'b0, rx_data};
                is_marked <= 1'b1;
                outs_left <= 5'd1;
                fetching <= 2'd3;
                state <= FETCH;
            end
            START: begin
                is_marked <= 1'b0;
                outs_left <= 5'd18;
                fetching <= 2'd3;
                if (start) state <= RUN;
            end
            RUN: begin
                address <= {MEMBRANES, 4'd0};
                if (done) state <= FETCH;
            end
            FETCH: begin                // a word is there two clocks after its address
                if (!is_tick) address <= parameter_address;
                fetching <= fetching - 2'd1;
                out_is_low <= 1'b0;
                if (fetching == 2'd0) begin
                    if (!is_tick) out <= is_parameter ? rdata[15:0] : 16'd0;
                    else out <= outs_left == 5'd2 ? spikes : outs_left == 5'd1 ? switches : rdata[23:8];
                    state <= ANSWER;
                end
            end
            ANSWER: if (tx_ready) begin
                is_marked <= 1'b0;
                if (!is_marked) begin
                    out <= {out[7:0], 8'd0};
                    out_is_low <= 1'b1;
                    if (out_is_low) begin
                        address <= address + 10'd1;
                        outs_left <= outs_left - 5'd1;
                        fetching <= 2'd2;
                        state <= outs_left == 5'd1 ? COMMAND : FETCH;
                    end
                end
            end
            default: state <= COMMAND;
        endcase
    end
endmodule

`default_nettype wire
