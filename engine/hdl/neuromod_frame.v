// A board's side of the protocol in adapters/fpga/PROTOCOL.md: frames in, ticks and registers done, answers out.
//
// One memory holds a frame, then the answer to it. Frames are taken out of their COBS code byte by byte as they come,
// and nothing of one reaches the core before its CRC was checked, but for stimuli: they mean nothing without a tick, and
// every tick brings all of them. Answers are put in COBS code as they are written: where a zero belongs, nothing is
// written but the place of the zero before it, which is when its distance is known; what lies before it may be sent.

`default_nettype none

module neuromod_frame #(
    parameter CLOCK_HZ = 100000000
) (
    input  wire        clk,
    input  wire        rst,
    // bytes
    input  wire        rx_valid,
    input  wire [7:0]  rx_data,
    output wire        rx_ready,
    output wire        tx_valid,
    output wire [7:0]  tx_data,
    input  wire        tx_ready,
    input  wire        lost,            // one clock for every byte that was lost on the way here
    output wire        receiving,       // no frame is being worked on, nor answered
    // the core
    output wire        stimulus_we,
    output reg  [3:0]  stimulus_index,
    output wire [15:0] stimulus_word,
    output wire        start,
    input  wire        known,           // the tick's spikes and membranes; its synapses may still learn
    input  wire        ready,           // for registers and the next tick
    input  wire [15:0] spikes,
    output reg  [9:0]  address,
    output wire        we,
    output wire [31:0] wdata,
    input  wire [31:0] rdata
);

    localparam [7:0] VERSION = 8'd1, TICK = 8'h02, WRITE = 8'h03, READ = 8'h04, REFUSED = 8'hFF, ANSWERS = 8'h80;
    localparam [7:0] DAMAGED = 8'd1, KIND = 8'd2, PAST = 8'd3, FUTURE = 8'd4, ADDRESS = 8'd5;
    localparam [7:0] MAX_FRAME = 8'd253, OVERHEAD = 8'd8;
    localparam [7:0] AT_STIMULI = 8'd9, AT_MODULATION = 8'd41, AT_WORDS = 8'd7;   // in a frame
    localparam [9:0] TICK_REGISTER = 10'h081, V_REGISTERS = 10'h090;
    localparam [31:0] CRC_OF_ALL = 32'hDEBB20E3;              // left of a frame that ends with its own CRC

    function [31:0] crc_after(input [31:0] crc, input [7:0] data);
        integer k;
        begin
            crc_after = crc ^ {24'd0, data};
            for (k = 0; k < 8; k = k + 1)
                crc_after = {1'b0, crc_after[31:1]} ^ (crc_after[0] ? 32'hEDB88320 : 32'd0);
        end
    endfunction

    localparam [3:0] RECEIVE = 0, CHECK = 1, DECIDE = 2, WORDS = 3, START = 4, RUN = 5, HEAD = 6, BODY = 7, DRAIN = 8,
                     CRC = 9, CLOSE = 10, SEND = 11;
    reg [3:0] state;
    assign receiving = state == RECEIVE;
    assign rx_ready = receiving;

    reg [7:0] memory [0:255];
    reg [7:0] at;                       // next byte of the memory that is read
    wire [7:0] stored = memory[at];
    reg [31:0] crc;

    // ---- a frame comes
    reg        begun;                   // a byte came since the last zero
    reg [7:0]  block_left;              // of a COBS block
    reg        zero_due;                // before the next block
    reg        is_wrong;                // its code is, or it is too long
    reg [7:0]  length;
    reg [71:0] header;                  // its first 9 bytes
    wire takes = receiving && rx_valid;
    wire ends = takes && rx_data == 8'd0;
    wire is_code = takes && !ends && block_left == 8'd0;
    wire decodes = takes && !ends && (!is_code || zero_due);
    wire [7:0] decoded = is_code ? 8'd0 : rx_data;
    wire keeps = decodes && length != MAX_FRAME;

    wire [7:0]  version = header[7:0], kind = header[15:8];
    wire [15:0] frame_number = header[31:16];
    wire [31:0] number = header[63:32];
    wire        with_modulation = header[64];
    wire [15:0] first = header[47:32];
    wire [7:0]  n = header[55:48];
    wire unused = &{1'b0, header[71:65]};    // flags that mean nothing yet

    integer k;
    always @(posedge clk) if (rst || takes) begin
        if (rst || ends) begin
            begun <= 1'b0;
            block_left <= 8'd0;
            zero_due <= 1'b0;
        end else begin
            begun <= 1'b1;
            block_left <= is_code ? rx_data - 8'd1 : block_left - 8'd1;
            if (is_code) zero_due <= rx_data != 8'hFF;
        end
        // length and fault of a frame stay after its end, until the next one begins
        if (rst || !begun) begin
            length <= 8'd0;
            is_wrong <= 1'b0;
        end else begin
            if (keeps) length <= length + 8'd1;
            if ((decodes && !keeps) || (ends && block_left != 8'd0)) is_wrong <= 1'b1;
        end
        for (k = 0; k < 9; k = k + 1)
            if (keeps && length == k[7:0]) header[8*k +: 8] <= decoded;
    end

    // ---- what is to be done with it
    reg is_damaged, is_unknown, is_beyond;
    reg [31:0] ahead;                   // ticks between the board's next one and the one that is asked for
    wire n_is_good = n != 8'd0 && n <= 8'd56;
    wire [7:0] words_length = OVERHEAD + 8'd3 + {n[5:0], 2'b00};
    wire is_tick = kind == TICK && length == (with_modulation ? 8'd65 : 8'd45);
    wire is_write = kind == WRITE && n_is_good && length == words_length;
    wire is_read = kind == READ && n_is_good && length == OVERHEAD + 8'd3;
    wire [16:0] beyond = {1'b0, first} + {9'd0, n};
    always @(posedge clk) if (state == CHECK) begin
        is_damaged <= is_wrong || crc != CRC_OF_ALL;
        is_unknown <= version != VERSION || !(is_tick || is_write || is_read);
        is_beyond <= kind != TICK && beyond > 17'd1024;
        ahead <= number - rdata;        // `address` stood at the tick's register while the frame came
    end
    wire [7:0] reason = is_damaged ? DAMAGED : is_unknown ? KIND : is_beyond ? ADDRESS
                      : kind != TICK || ahead == 32'd0 ? 8'd0 : ahead[31] ? PAST : FUTURE;
    wire refuses = state == DECIDE && reason != 8'd0;

    // ---- the board's own registers, beside those of the core
    reg [31:0] boots, n_damaged, n_refused, n_lost;
    reg [31:0] own;
    always @* case (address[3:0])
        4'h0: own = 32'h4E4D4F44;
        4'h1: own = {16'd1, 8'd16, VERSION};
        4'h2: own = CLOCK_HZ;
        4'h3: own = boots;
        4'h4: own = n_damaged;
        4'h5: own = n_refused;
        4'h6: own = n_lost;
        default: own = 32'd0;
    endcase
    wire [31:0] value = address[9:4] == 6'h3F ? own : rdata;

    always @(posedge clk) begin
        if (rst) begin
            boots <= 32'd0;
            n_damaged <= 32'd0;
            n_refused <= 32'd0;
            n_lost <= 32'd0;
        end else begin
            if (we && address == 10'h3F3) boots <= wdata;
            if ((ends && begun && length < OVERHEAD) || (refuses && is_damaged)) n_damaged <= n_damaged + 32'd1;
            if (refuses && !is_damaged) n_refused <= n_refused + 32'd1;
            if (lost) n_lost <= n_lost + 32'd1;
        end
    end

    // ---- stimuli as they come, and words out of the memory, byte by byte, lowest first
    reg [31:0] gathered;
    reg [1:0]  n_gathered;
    reg [5:0]  words_left;
    reg        word_is_whole, stimulus_is_whole;
    wire loads = state == WORDS;
    wire is_stimulus = keeps && length >= AT_STIMULI && length < AT_MODULATION;
    assign stimulus_we = stimulus_is_whole;
    assign stimulus_word = gathered[31:16];
    assign we = word_is_whole;
    assign wdata = gathered;
    assign start = state == START && !word_is_whole;     // the last of them is written first
    always @(posedge clk) begin
        n_gathered <= loads ? n_gathered + 2'd1 : 2'd0;
        if (loads || is_stimulus) gathered <= {loads ? stored : decoded, gathered[31:8]};
        stimulus_is_whole <= is_stimulus && !length[0];
        word_is_whole <= state == WORDS && n_gathered == 2'd3;
        if (!begun) stimulus_index <= 4'd0;
        else if (stimulus_we) stimulus_index <= stimulus_index + 4'd1;
    end

    // ---- a tick
    reg [15:0] clocks;
    reg [15:0] before_1, before_2, before_3;    // spikes of the ticks before
    always @(posedge clk) begin
        if (rst) {before_1, before_2, before_3} <= 48'd0;
        else if (start) {before_1, before_2, before_3} <= {spikes, before_1, before_2};
        if (start) clocks <= 16'd1;
        else if (state == RUN && !known && clocks != 16'hFFFF) clocks <= clocks + 16'd1;
    end

    // ---- the answer: a head of up to 18 bytes, then words of 3 or 4 bytes from `address` on, then its CRC
    // all that a head tells stands still until the answer is written
    reg [4:0]   head_at;
    reg         refused;
    reg [7:0]   head;
    wire head_ends = head_at == (refused ? 5'd8 : kind == TICK ? 5'd17 : 5'd6);
    always @* case (head_at)
        5'd0:  head = VERSION;
        5'd1:  head = refused ? REFUSED : kind | ANSWERS;
        5'd2:  head = frame_number[7:0];
        5'd3:  head = frame_number[15:8];
        5'd4:  head = refused ? reason : number[7:0];           // or `first`, and `n`
        5'd5:  head = refused ? rdata[7:0] : number[15:8];      // the tick's register
        5'd6:  head = refused ? rdata[15:8] : number[23:16];
        5'd7:  head = refused ? rdata[23:16] : number[31:24];
        5'd8:  head = refused ? rdata[31:24] : clocks[7:0];
        5'd9:  head = clocks[15:8];
        5'd10: head = spikes[7:0];
        5'd11: head = spikes[15:8];
        5'd12: head = before_1[7:0];
        5'd13: head = before_1[15:8];
        5'd14: head = before_2[7:0];
        5'd15: head = before_2[15:8];
        5'd16: head = before_3[7:0];
        default: head = before_3[15:8];
    endcase
    reg [1:0]   byte_of_word;
    reg [23:0]  rest_of_word;
    wire [1:0]  last_byte = kind == TICK ? 2'd2 : 2'd3;
    wire word_ends = state == BODY && byte_of_word == last_byte;
    reg [1:0]   byte_of_crc;

    reg       emits;                    // a byte for the answer, and on its way into the memory
    reg [7:0] emitted;
    reg [7:0] place, zero_place;        // of the next byte, and of the last zero: first of the code that leads
    always @(posedge clk) begin
        emits <= state == HEAD || state == BODY || state == CRC;
        case (state)
            HEAD: emitted <= head;
            BODY: emitted <= byte_of_word == 2'd0 ? value[7:0] : rest_of_word[7:0];
            default: case (byte_of_crc)
                2'd0: emitted <= ~crc[7:0];
                2'd1: emitted <= ~crc[15:8];
                2'd2: emitted <= ~crc[23:16];
                2'd3: emitted <= ~crc[31:24];
            endcase
        endcase
        rest_of_word <= byte_of_word == 2'd0 ? value[31:8] : {8'd0, rest_of_word[23:8]};
        byte_of_word <= state != BODY || word_ends ? 2'd0 : byte_of_word + 2'd1;
        byte_of_crc <= state == CRC ? byte_of_crc + 2'd1 : 2'd0;
        if (state == CHECK) begin
            place <= 8'd1;
            zero_place <= 8'd0;
        end else if (emits) begin
            place <= place + 8'd1;
            if (emitted == 8'd0) zero_place <= place;
        end
    end
    // the CRC is given out from its register, which has to hold still from there on
    wire sums = emits && state != CRC && state != CLOSE;
    always @(posedge clk) begin
        if ((takes && !begun) || state == DECIDE) crc <= 32'hFFFFFFFF;
        else if (keeps || sums) crc <= crc_after(crc, keeps ? decoded : emitted);
    end

    // one port writes the memory: frame, answer, or the code before the answer's last block
    wire is_zero = emitted == 8'd0;
    wire closes = state == CLOSE && !emits;
    wire writes = keeps || emits || closes;
    wire [7:0] where = keeps ? length : closes || is_zero ? zero_place : place;
    wire [7:0] what = keeps ? decoded : closes || is_zero ? place - zero_place : emitted;
    always @(posedge clk) if (writes) memory[where] <= what;

    wire answers = state >= HEAD;
    assign tx_valid = state == SEND || (answers && at != zero_place);
    assign tx_data = at == place ? 8'd0 : stored;

    // ---- the order of all this
    always @(posedge clk) begin
        if (rst) begin
            state <= RECEIVE;
            address <= TICK_REGISTER;
        end else case (state)
            RECEIVE: begin
                address <= TICK_REGISTER;
                if (ends && begun && length >= OVERHEAD) state <= CHECK;
            end
            CHECK: if (ready) state <= DECIDE;
            DECIDE: begin
                words_left <= kind == TICK ? 6'd5 : n[5:0];
                head_at <= 5'd0;
                refused <= refuses;
                at <= kind == TICK ? AT_MODULATION : kind == WRITE ? AT_WORDS : 8'd0;
                // the first word moves it on by one
                address <= kind == TICK ? 10'h3FF : kind == WRITE ? first[9:0] - 10'd1 : first[9:0];
                state <= kind == TICK && !with_modulation ? START : kind == READ ? HEAD : WORDS;
                if (refuses) begin
                    address <= TICK_REGISTER;
                    words_left <= 6'd0;
                    at <= 8'd0;
                    state <= HEAD;
                end
            end
            WORDS: begin
                at <= at + 8'd1;
                if (n_gathered == 2'd3) begin
                    address <= address + 10'd1;
                    words_left <= words_left - 6'd1;
                    if (words_left == 6'd1) begin
                        at <= 8'd0;
                        state <= kind == TICK ? START : HEAD;
                    end
                end
            end
            START: if (start) state <= RUN;
            RUN: if (known) begin
                address <= V_REGISTERS;
                at <= 8'd0;
                words_left <= 6'd16;
                state <= HEAD;
            end
            HEAD: begin
                head_at <= head_at + 5'd1;
                if (head_ends) state <= words_left != 6'd0 ? BODY : DRAIN;
            end
            BODY: begin
                // the next word is there two clocks after its address, in time for its first byte
                if (byte_of_word == 2'd0) address <= address + 10'd1;
                if (word_ends) begin
                    words_left <= words_left - 6'd1;
                    if (words_left == 6'd1) state <= DRAIN;
                end
            end
            DRAIN: if (!emits) state <= CRC;
            CRC: if (byte_of_crc == 2'd3) state <= CLOSE;
            CLOSE: if (!emits) state <= SEND;
            SEND: if (tx_ready && at == place) state <= RECEIVE;
            default: state <= RECEIVE;
        endcase
        if (answers && tx_valid && tx_ready) at <= at + 8'd1;
    end
endmodule

`default_nettype wire
