// One tick of the fixed-point network, as engine/FIXED_POINT.md specifies it.
//
// Every product of a neuron passes one pipelined multiplier, operation by operation, sixteen channels each: an
// operation's results are written before the next reads them, since sixteen beats outlast the pipeline. Synapses take
// two passes of 256 beats, one to collect the charge of the last tick's spikes, one to learn.
//
// Registers are read and written by address while no tick runs (ready = 1); a read answers two clocks later.

`default_nettype none

module neuromod_core (
    input  wire        clk,
    input  wire        rst,
    // a tick: stimuli are written first, then `start` for one clock
    input  wire        stimulus_we,
    input  wire [3:0]  stimulus_index,
    input  wire [15:0] stimulus_word,
    input  wire        start,
    output wire        ready,
    output reg         done,            // one clock, with `spikes` new
    output reg  [15:0] spikes,
    // registers
    input  wire [9:0]  address,
    input  wire        we,
    input  wire [31:0] wdata,
    output reg  [31:0] rdata
);

    // ---- numbers of the network; fixed_registers.py says where each lies
    reg [23:0] input_gain, recurrent_gain, threshold_gain, inhibition;
    reg signed [31:0] learning_factor;
    reg [15:0] inhibition_ticks, window_ticks, coincidence_refractory;
    reg [3:0]  min_channels;
    reg [23:0] fall_plus, fall_minus, fall_eligibility, a_plus, a_minus;
    reg signed [15:0] w_min, w_max;
    reg [1:0]  rule;
    reg [31:0] tick;
    reg [15:0] inhibition_left, coincidence_left;

    reg [23:0] rise [0:15];
    reg signed [15:0] gain [0:15];
    reg signed [15:0] bias [0:15];
    reg signed [15:0] threshold [0:15];
    reg signed [15:0] v_reset [0:15];
    reg signed [15:0] v_min [0:15];
    reg [15:0] refractory [0:15];
    reg signed [23:0] v [0:15];
    reg [15:0] refractory_left [0:15];
    reg [15:0] since_spike [0:15];
    reg [23:0] pre_trace [0:15];
    reg [23:0] post_trace [0:15];
    reg [15:0] plastic [0:15];
    reg signed [15:0] stimulus [0:15];
    reg signed [31:0] weights [0:255];
    reg signed [31:0] eligibility [0:255];

    // ---- a tick's working memory
    reg signed [23:0] drive [0:15];       // first the scaled stimulus
    reg signed [32:0] limit [0:15];       // threshold x gain, Q.16 rounded up: v >= limit is exact
    reg signed [19:0] charge [0:15];
    reg signed [36:0] kick [0:15];
    reg [31:0] potentiation [0:15];
    reg [31:0] depression [0:15];
    reg [15:0] fired;
    reg        coincidence;
    reg        inhibited;
    reg [3:0]  distinct;

    // ---- the order of operations
    localparam [3:0] IDLE = 0, CHARGE = 1, SCALE = 2, DRIVE = 3, LIMIT = 4, KICK = 5, MEMBRANE = 6, FALL_PRE = 7,
                     FALL_POST = 8, POTENTIATE = 9, DEPRESS = 10, LEARN = 11, FINISH = 12;
    localparam [8:0] DRAIN = 15;          // clocks after the last beat until all its results are written
    reg [3:0] phase;
    reg [8:0] beat;
    wire synapses = phase == CHARGE || phase == LEARN;
    wire [8:0] n_beats = synapses ? 9'd256 : 9'd16;
    wire issue = phase != IDLE && phase != FINISH && beat < n_beats;
    assign ready = phase == IDLE && !start;

    always @(posedge clk) begin
        done <= 1'b0;
        if (rst) begin
            phase <= IDLE;
            beat <= 0;
        end else if (phase == IDLE) begin
            beat <= 0;
            if (start) phase <= CHARGE;
        end else if (phase == FINISH) begin
            phase <= IDLE;
            done <= 1'b1;
        end else if (beat == n_beats + DRAIN) begin
            beat <= 0;
            phase <= phase == MEMBRANE && !rule[0] ? FINISH : phase + 4'd1;
        end else beat <= beat + 9'd1;
    end

    wire phase_ends = phase != IDLE && beat == n_beats + DRAIN;

    // ---- pipeline: index[n] is the channel or synapse whose operation is at stage n
    reg [7:0] index [1:14];
    reg [14:1] live;
    integer k;
    always @(posedge clk) begin
        index[1] <= beat[7:0];
        live[1] <= issue && !rst;
        for (k = 2; k <= 14; k = k + 1) begin
            index[k] <= index[k-1];
            live[k] <= live[k-1] && !rst;
        end
    end
    wire [3:0] c1 = index[1][3:0], c7 = index[7][3:0], c8 = index[8][3:0];

    // 2: memories; the charge pass goes over sources within a target
    wire idle = phase == IDLE;
    wire [7:0] synapse = idle ? address[7:0] : phase == CHARGE ? {index[1][3:0], index[1][7:4]} : index[1];
    reg signed [31:0] w2, e2;
    wire learned = phase == LEARN && live[13];
    wire signed [31:0] w13_next;
    reg signed [31:0] e_late [8:13];
    wire write_w = idle ? we && address[9:8] == 2'd1 : learned;
    wire write_e = idle ? we && address[9:8] == 2'd2 : learned;
    wire [7:0] synapse_written = idle ? address[7:0] : index[13];
    always @(posedge clk) begin
        w2 <= weights[synapse];
        e2 <= eligibility[synapse];
        if (write_w) weights[synapse_written] <= idle ? wdata : w13_next;
        if (write_e) eligibility[synapse_written] <= idle ? wdata : e_late[13];
    end

    reg signed [32:0] a2;
    reg signed [24:0] b2;
    always @(posedge clk) case (phase)
        SCALE:      begin a2 <= {{17{stimulus[c1][15]}}, stimulus[c1]}; b2 <= {1'b0, input_gain}; end
        DRIVE:      begin a2 <= {{9{drive[c1][23]}}, drive[c1]}; b2 <= {{9{gain[c1][15]}}, gain[c1]}; end
        LIMIT:      begin a2 <= {{17{threshold[c1][15]}}, threshold[c1]}; b2 <= {1'b0, threshold_gain}; end
        KICK:       begin a2 <= {{13{charge[c1][19]}}, charge[c1]}; b2 <= {1'b0, recurrent_gain}; end
        MEMBRANE:   begin a2 <= {{9{drive[c1][23]}}, drive[c1]} - {{9{v[c1][23]}}, v[c1]}; b2 <= {1'b0, rise[c1]}; end
        FALL_PRE:   begin a2 <= {9'd0, pre_trace[c1]}; b2 <= {1'b0, fall_plus}; end
        FALL_POST:  begin a2 <= {9'd0, post_trace[c1]}; b2 <= {1'b0, fall_minus}; end
        POTENTIATE: begin a2 <= {9'd0, pre_trace[c1]}; b2 <= {1'b0, a_plus}; end
        DEPRESS:    begin a2 <= {9'd0, post_trace[c1]}; b2 <= {1'b0, a_minus}; end
        default:    begin a2 <= 33'sd0; b2 <= {1'b0, fall_eligibility}; end
    endcase

    // 3 to 5: the multiplier of 33 x 25 bits, in two halves that each fit a DSP48
    reg signed [32:0] a3, a4, a5, a6;
    reg signed [24:0] b3;
    reg signed [42:0] low4;
    reg signed [40:0] high4;
    reg signed [57:0] p5;
    always @(posedge clk) begin
        a3 <= phase == LEARN ? {e2[31], e2} : a2;
        b3 <= b2;
        low4 <= $signed({1'b0, a3[16:0]}) * b3;
        high4 <= $signed(a3[32:17]) * b3;
        p5 <= {high4, 17'd0} + {{15{low4[42]}}, low4};
        a4 <= a3; a5 <= a4; a6 <= a5;
    end

    // 6: what the operation drops of the product: half up by 8 or 24 bits, up by 8, or towards zero by 24
    wire falls = phase == FALL_PRE || phase == FALL_POST || phase == LEARN;
    wire by_24 = falls || phase == MEMBRANE;
    wire [23:0] added = falls ? (a5 > 33'sd0 ? 24'hFFFFFF : 24'd0)
                      : phase == MEMBRANE ? 24'h800000 : phase == LIMIT ? 24'h0000FF : 24'h000080;
    wire signed [57:0] raised = p5 + $signed({34'd0, added});
    reg signed [49:0] r6, r7;
    always @(posedge clk) r7 <= r6;
    always @(posedge clk) r6 <= by_24 ? {{16{raised[57]}}, raised[57:24]} : raised[57:8];

    function signed [23:0] held24(input signed [49:0] x);
        held24 = x > 50'sd8388607 ? 24'sh7FFFFF : x < -50'sd8388608 ? 24'sh800000 : x[23:0];
    endfunction
    function [31:0] held31(input signed [49:0] x);    // of what is never negative
        held31 = x > 50'sd2147483647 ? 32'h7FFFFFFF : x[31:0];
    endfunction

    // 4 to 5 of the charge pass: weights rounded to Q8.8, added up where their source fired
    wire signed [32:0] w_raised = {w2[31], w2} + 33'sd32768;
    reg signed [15:0] w3;
    reg signed [19:0] sum4;
    wire signed [19:0] term3 = spikes[index[3][3:0]] ? {{4{w3[15]}}, w3} : 20'sd0;
    wire signed [19:0] sum3 = index[3][3:0] == 4'd0 ? term3 : sum4 + term3;
    always @(posedge clk) begin
        w3 <= w_raised[32:31] == 2'b01 ? 16'sh7FFF : w_raised[31:16];
        sum4 <= sum3;
        if (phase == CHARGE && live[3] && index[3][3:0] == 4'd15) charge[index[3][7:4]] <= sum3;
    end

    // 7 to 9 of the membranes
    reg signed [49:0] sum7;
    reg signed [23:0] moved8;
    wire [3:0] c6 = index[6][3:0];
    wire signed [23:0] floor7 = {v_min[c7], 8'd0};
    wire signed [23:0] held7 = held24(sum7);
    wire resting = refractory_left[c8] != 16'd0;
    wire signed [32:0] moved8_wide = {{9{moved8[23]}}, moved8};
    wire fires = !resting && moved8_wide >= limit[c8];
    always @(posedge clk) begin
        sum7 <= phase == MEMBRANE
              ? r6 + {{26{v[c6][23]}}, v[c6]} + {{13{kick[c6][36]}}, kick[c6]}
              : r6 + {{26{bias[c6][15]}}, bias[c6], 8'd0} - (inhibited && c6 < 4'd14 ? {26'd0, inhibition} : 50'd0);
        moved8 <= held7 < floor7 ? floor7 : held7;
    end

    // 7 of the learning pass: the pairs of this tick
    wire [3:0] source6 = index[6][7:4];
    wire plastic6 = plastic[source6][c6];
    wire signed [33:0] change6 = (plastic6 && fired[c6] ? $signed({2'd0, potentiation[source6]}) : 34'sd0)
                               - (plastic6 && (source6 == 4'd14 ? coincidence : fired[source6])
                                  ? $signed({2'd0, depression[c6]}) : 34'sd0);
    reg signed [33:0] change7;
    reg signed [33:0] left7;
    wire signed [34:0] e7 = {left7[33], left7} + {change7[33], change7};
    always @(posedge clk) begin
        change7 <= change6;
        left7 <= {a6[32], a6} - r6[33:0];
        e_late[8] <= e7 > 35'sd2147483647 ? 32'sh7FFFFFFF : e7 < -35'sd2147483648 ? 32'sh80000000 : e7[31:0];
        for (k = 9; k <= 13; k = k + 1) e_late[k] <= e_late[k-1];
    end

    // 9 to 11: eligibility x factor, 32 x 32 bits in four parts; 12, 13: the weight, within its bounds
    reg signed [32:0] ll9; reg signed [33:0] lh9, hl9; reg signed [31:0] hh9;
    reg signed [63:0] outer10; reg signed [34:0] inner10;
    reg signed [63:0] p11;
    reg signed [31:0] w_late [3:13];
    reg signed [40:0] moved12;
    reg signed [40:0] moved13;
    wire signed [63:0] p11_raised = p11 + 64'sd8388608;
    wire signed [31:0] highest = {w_max, 16'd0}, lowest = {w_min, 16'd0};
    wire signed [31:0] top12 = w_late[12] > highest ? w_late[12] : highest;
    wire signed [31:0] bottom13 = w_late[13] < lowest ? w_late[13] : lowest;
    wire signed [40:0] top12_wide = {{9{top12[31]}}, top12}, bottom13_wide = {{9{bottom13[31]}}, bottom13};
    wire signed [40:0] bounded13 = moved13 < bottom13_wide ? bottom13_wide : moved13;
    assign w13_next = bounded13[31:0];   // within two weights of 32 bits: nothing to saturate
    always @(posedge clk) begin
        w_late[3] <= w2;
        for (k = 4; k <= 13; k = k + 1) w_late[k] <= w_late[k-1];
        ll9 <= $signed({1'b0, e_late[8][15:0]}) * $signed({1'b0, learning_factor[15:0]});
        lh9 <= $signed({1'b0, e_late[8][15:0]}) * $signed(learning_factor[31:16]);
        hl9 <= $signed(e_late[8][31:16]) * $signed({1'b0, learning_factor[15:0]});
        hh9 <= $signed(e_late[8][31:16]) * $signed(learning_factor[31:16]);
        outer10 <= {hh9, ll9[31:0]};
        inner10 <= {lh9[33], lh9} + {hl9[33], hl9};
        p11 <= outer10 + {{13{inner10[34]}}, inner10, 16'd0};
        moved12 <= {{9{w_late[11][31]}}, w_late[11]} + {p11_raised[63], p11_raised[63:24]};
        moved13 <= moved12 > top12_wide ? top12_wide : moved12;
    end

    // ---- results, and registers from outside
    wire [24:0] jumped_pre = (rule[1] ? 25'd0 : {1'b0, pre_trace[c7]}) + 25'd65536;
    wire [24:0] jumped_post = (rule[1] ? 25'd0 : {1'b0, post_trace[c7]}) + 25'd65536;
    wire neuron7 = live[7] && c7 != 4'd14;
    wire neuron8 = live[8] && c8 != 4'd14;
    wire pre_fired7 = c7 == 4'd14 ? coincidence : fired[c7];
    wire coincides = spikes[13:0] != 14'd0 && distinct >= min_channels && coincidence_left == 16'd0;
    wire [15:0] inhibition_now = spikes[15] ? inhibition_ticks : inhibition_left;
    wire [3:0] n = address[3:0];

    always @(posedge clk) begin
        if (phase == IDLE) begin
            distinct <= 4'd0;
            fired <= 16'd0;
        end
        if (phase == CHARGE && live[1] && index[1] < 8'd14 && since_spike[c1] <= window_ticks)
            distinct <= distinct + 4'd1;
        if (phase == CHARGE && phase_ends) begin
            coincidence <= coincides;
            coincidence_left <= coincides ? coincidence_refractory
                              : coincidence_left == 16'd0 ? 16'd0 : coincidence_left - 16'd1;
            inhibited <= inhibition_now != 16'd0;
            inhibition_left <= inhibition_now == 16'd0 ? 16'd0 : inhibition_now - 16'd1;
        end
        if (phase == SCALE && live[6]) drive[c6] <= held24(r6);
        if (phase == DRIVE && live[7]) drive[c7] <= held24(sum7);
        if (phase == LIMIT && live[6]) limit[c6] <= r6[32:0];
        if (phase == KICK && live[6]) kick[c6] <= r6[36:0];
        if (phase == MEMBRANE && neuron8) begin
            v[c8] <= fires || resting ? {v_reset[c8], 8'd0} : moved8;
            refractory_left[c8] <= fires ? refractory[c8] : resting ? refractory_left[c8] - 16'd1 : 16'd0;
            since_spike[c8] <= fires ? 16'd0 : since_spike[c8] == 16'hFFFF ? 16'hFFFF : since_spike[c8] + 16'd1;
            fired[c8] <= fires;
        end
        if (phase == MEMBRANE && live[8] && c8 == 4'd14) v[c8] <= {4'd0, distinct, 16'd0};
        if (phase == FALL_PRE && live[6]) pre_trace[c6] <= a6[23:0] - r6[23:0];
        if (phase == FALL_POST && live[6]) post_trace[c6] <= a6[23:0] - r6[23:0];
        // traces jump once they have been read
        if (phase == POTENTIATE && live[7]) begin
            potentiation[c7] <= held31(r7);
            if (pre_fired7) pre_trace[c7] <= jumped_pre[24] ? 24'hFFFFFF : jumped_pre[23:0];
        end
        if (phase == DEPRESS && live[7]) begin
            depression[c7] <= held31(r7);
            if (fired[c7]) post_trace[c7] <= jumped_post[24] ? 24'hFFFFFF : jumped_post[23:0];
        end
        if (phase == FINISH) begin
            spikes <= {fired[15], coincidence, fired[13:0]};
            tick <= tick + 32'd1;
        end
        if (stimulus_we) stimulus[stimulus_index] <= stimulus_word;
        if (we && idle) case (address[9:4])
            6'h00: case (n)
                4'h0: input_gain <= wdata[23:0];        4'h1: recurrent_gain <= wdata[23:0];
                4'h2: threshold_gain <= wdata[23:0];    4'h3: inhibition <= wdata[23:0];
                4'h4: learning_factor <= wdata;         4'h5: inhibition_ticks <= wdata[15:0];
                4'h6: window_ticks <= wdata[15:0];      4'h7: min_channels <= wdata[3:0];
                4'h8: coincidence_refractory <= wdata[15:0];
                4'h9: fall_plus <= wdata[23:0];         4'hA: fall_minus <= wdata[23:0];
                4'hB: fall_eligibility <= wdata[23:0];  4'hC: a_plus <= wdata[23:0];
                4'hD: a_minus <= wdata[23:0];           4'hE: w_min <= wdata[15:0];
                4'hF: w_max <= wdata[15:0];
            endcase
            6'h01: rise[n] <= wdata[23:0];              6'h02: gain[n] <= wdata[15:0];
            6'h03: bias[n] <= wdata[15:0];              6'h04: threshold[n] <= wdata[15:0];
            6'h05: v_reset[n] <= wdata[15:0];           6'h06: v_min[n] <= wdata[15:0];
            6'h07: refractory[n] <= wdata[15:0];
            6'h08: case (n)
                4'h0: rule <= wdata[1:0];               4'h1: tick <= wdata;
                4'h2: spikes <= wdata[15:0];            4'h3: inhibition_left <= wdata[15:0];
                4'h4: coincidence_left <= wdata[15:0];
                default: ;
            endcase
            6'h09: v[n] <= wdata[23:0];                 6'h0A: refractory_left[n] <= wdata[15:0];
            6'h0B: since_spike[n] <= wdata[15:0];       6'h0C: pre_trace[n] <= wdata[23:0];
            6'h0D: post_trace[n] <= wdata[23:0];        6'h0E: plastic[n] <= wdata[15:0];
            default: ;
        endcase
    end
    reg [31:0] word;
    reg [1:0]  bank;                      // an address a clock: the choice has to come with its word
    always @(posedge clk) begin
        bank <= address[9:8];
        case (address[9:4])
            6'h00: case (n)
                4'h0: word <= {8'd0, input_gain};       4'h1: word <= {8'd0, recurrent_gain};
                4'h2: word <= {8'd0, threshold_gain};   4'h3: word <= {8'd0, inhibition};
                4'h4: word <= learning_factor;          4'h5: word <= {16'd0, inhibition_ticks};
                4'h6: word <= {16'd0, window_ticks};    4'h7: word <= {28'd0, min_channels};
                4'h8: word <= {16'd0, coincidence_refractory};
                4'h9: word <= {8'd0, fall_plus};        4'hA: word <= {8'd0, fall_minus};
                4'hB: word <= {8'd0, fall_eligibility}; 4'hC: word <= {8'd0, a_plus};
                4'hD: word <= {8'd0, a_minus};          4'hE: word <= {{16{w_min[15]}}, w_min};
                4'hF: word <= {{16{w_max[15]}}, w_max};
            endcase
            6'h01: word <= {8'd0, rise[n]};             6'h02: word <= {{16{gain[n][15]}}, gain[n]};
            6'h03: word <= {{16{bias[n][15]}}, bias[n]};
            6'h04: word <= {{16{threshold[n][15]}}, threshold[n]};
            6'h05: word <= {{16{v_reset[n][15]}}, v_reset[n]};
            6'h06: word <= {{16{v_min[n][15]}}, v_min[n]};
            6'h07: word <= {16'd0, refractory[n]};
            6'h08: case (n)
                4'h0: word <= {30'd0, rule};            4'h1: word <= tick;
                4'h2: word <= {16'd0, spikes};          4'h3: word <= {16'd0, inhibition_left};
                4'h4: word <= {16'd0, coincidence_left};
                default: word <= 32'd0;
            endcase
            6'h09: word <= {{8{v[n][23]}}, v[n]};       6'h0A: word <= {16'd0, refractory_left[n]};
            6'h0B: word <= {16'd0, since_spike[n]};     6'h0C: word <= {8'd0, pre_trace[n]};
            6'h0D: word <= {8'd0, post_trace[n]};       6'h0E: word <= {16'd0, plastic[n]};
            default: word <= 32'd0;
        endcase
        rdata <= bank == 2'd1 ? w2 : bank == 2'd2 ? e2 : word;
    end
endmodule

`default_nettype wire
