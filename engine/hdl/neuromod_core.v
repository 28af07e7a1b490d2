// One tick of the fixed-point network, as engine/FIXED_POINT.md specifies it.
//
// Every product of a neuron passes one pipelined multiplier, operation by operation, sixteen channels each. Operations
// follow each other without a gap: a result is written within eight beats, and read sixteen beats later or more.
// Beside the first of them, the weights of the sources that fired are added up. Then all 256 synapses learn, one a
// clock, through the same multiplier and one of their own. A tick takes 413 clocks with learning where up to six sources
// fired before it, and 559 where all did; without learning 93 (up to two) to 303.
//
// What is computed from what has not been: coincidence, drive and what traces give come before the membranes, since
// they do not depend on this tick's spikes; traces jump while the first two rows of synapses go by.
//
// What a tick gives is known before synapses have learnt from it: `known` says so, and from then on `spikes`, membranes and
// the tick's number may be read, for an answer that need not wait.
//
// All other registers are read, and all are written, by address while no tick runs (ready = 1); a read answers two clocks
// later, and an address may come every clock. Stimuli may be written as soon as 16 clocks of a tick are over.

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
    output reg         known,           // one clock, with `spikes` new
    output reg         done,            // one clock, with all of the tick done
    output reg  [15:0] spikes,
    // registers
    input  wire [9:0]  address,
    input  wire        we,
    input  wire [31:0] wdata,
    output reg  [31:0] rdata
);

    // ---- numbers of the network; fixed_registers.py says where each lies
    reg [23:0] inhibition;
    reg signed [31:0] learning_factor;
    reg [15:0] inhibition_ticks, window_ticks, coincidence_refractory;
    reg [3:0]  min_channels;
    reg signed [15:0] w_min, w_max;
    reg [1:0]  rule;
    reg [31:0] tick;
    reg [15:0] inhibition_left, coincidence_left;

    // each memory has one port to write, and one to read, but `v` two, so that it fits the LUT memories of an FPGA
    reg [23:0] factor [0:15];             // by address: gains, falls and amplitudes, a single one an operation
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
    reg [30:0] potentiation [0:15];
    reg [30:0] depression [0:15];
    reg [15:0] fired;
    reg        coincidence;
    reg        inhibited;
    reg [3:0]  distinct;

    // ---- the order of operations; without learning, those between LIMIT and KICK, and LEARN, are left out
    localparam [3:0] IDLE = 0, SCALE = 1, DRIVE = 2, LIMIT = 3, FALL_PRE = 4, FALL_POST = 5, POTENTIATE = 6,
                     DEPRESS = 7, KICK = 8, MEMBRANE = 9, LEARN = 10, DRAIN = 11, FINISH = 12;
    reg [3:0] phase;
    reg [7:0] beat;
    reg       collecting, collected2, collected3;
    wire idle = phase == IDLE;
    wire waits = phase == KICK && (collecting || collected2 || collected3);
    wire last = beat[3:0] == 4'd15 && (phase != LEARN || beat[7:4] == 4'd15);
    wire learning = phase == LEARN || phase == DRAIN;
    wire begins = idle && start && !rst;
    assign ready = idle && !start;
    // the last membrane was written when the first synapses had gone by
    wire settles = rule[0] ? phase == LEARN && beat == 8'd15 : phase == FINISH;
    reg  settled;
    wire reads = idle || settled;

    always @(posedge clk) begin
        done <= phase == FINISH && !rst;
        known <= settles && !rst;
        settled <= (settles || settled) && !idle && !rst;
        if (rst) phase <= IDLE;
        else if (idle) begin
            beat <= 8'd0;
            if (start) phase <= SCALE;
        end else if (phase == FINISH) phase <= IDLE;
        else if (!waits) begin
            beat <= last ? 8'd0 : beat + 8'd1;
            if (phase == DRAIN) begin
                if (beat == 8'd10) phase <= FINISH;   // the last synapse is at stage 12
            end else if (last) case (phase)
                LIMIT:    phase <= rule[0] ? FALL_PRE : KICK;
                MEMBRANE: phase <= rule[0] ? LEARN : DRAIN;
                default:  phase <= phase + 4'd1;
            endcase
        end
    end

    // ---- pipeline: which operation, on which channel, is at stages 2 to 8; `beat` itself is stage 1
    reg [55:0] trail;
    wire [3:0] op1 = phase == DRAIN || phase == FINISH || waits ? IDLE : phase;
    always @(posedge clk)
        if (rst) trail <= 56'd0;
        else if (!idle) trail <= {trail[47:0], op1, beat[3:0]};
    wire [3:0] op2 = trail[7:4], op5 = trail[31:28], op7 = trail[47:44], op8 = trail[55:52];
    // while no tick runs, memories that a tick changes are addressed from outside
    wire [3:0] n = address[3:0];
    wire [3:0] c1 = idle ? n : beat[3:0], c5 = reads ? n : trail[27:24], c7 = trail[43:40], c8 = idle ? n : trail[51:48];
    wire [5:0] bank = address[9:4];
    wire writes = we && idle;

    // of the synapses, which is at stages 6, 8, 10 and 12
    reg [7:0] s6, s8, s10, s12;
    reg [12:9] learns;
    always @(posedge clk)
        if (learning) begin
            s6 <= beat - 8'd4;
            s8 <= beat - 8'd6;
            s10 <= beat - 8'd8;
            s12 <= beat - 8'd10;
        end
    always @(posedge clk)
        if (rst) learns <= 4'd0;
        else if (learning) learns <= {learns[11:9], op8 == LEARN};

    // ---- synapses
    reg [15:0] pending;                   // sources whose weights are still to be added up
    reg [3:0]  column;
    reg signed [31:0] w2, e2, e8;
    wire signed [31:0] w12_next;
    function [3:0] first_of(input [15:0] x);
        casez (x)
            16'b???????????????1: first_of = 4'd0;
            16'b??????????????10: first_of = 4'd1;
            16'b?????????????100: first_of = 4'd2;
            16'b????????????1000: first_of = 4'd3;
            16'b???????????10000: first_of = 4'd4;
            16'b??????????100000: first_of = 4'd5;
            16'b?????????1000000: first_of = 4'd6;
            16'b????????10000000: first_of = 4'd7;
            16'b???????100000000: first_of = 4'd8;
            16'b??????1000000000: first_of = 4'd9;
            16'b?????10000000000: first_of = 4'd10;
            16'b????100000000000: first_of = 4'd11;
            16'b???1000000000000: first_of = 4'd12;
            16'b??10000000000000: first_of = 4'd13;
            16'b?100000000000000: first_of = 4'd14;
            default:              first_of = 4'd15;
        endcase
    endfunction
    wire [7:0] w_read = idle ? address[7:0] : collecting ? {first_of(pending), column} : s10;
    wire [7:0] e_read = idle ? address[7:0] : beat;
    wire w_writes = idle ? writes && address[9:8] == 2'd1 : learns[12];
    wire e_writes = idle ? writes && address[9:8] == 2'd2 : op8 == LEARN;
    always @(posedge clk) begin
        w2 <= weights[w_read];
        if (w_writes) weights[idle ? address[7:0] : s12] <= idle ? wdata : w12_next;
    end
    always @(posedge clk) begin
        e2 <= eligibility[e_read];
        if (e_writes) eligibility[idle ? address[7:0] : s8] <= idle ? wdata : e8;
    end

    // charge: weights rounded to Q8.8, row by row
    wire [15:0] pending_next = pending & (pending - 16'd1);
    reg [3:0] column2, column3;
    reg       first2, first3;
    reg signed [15:0] w3;
    wire [3:0] charge_at = collected3 ? column3 : beat[3:0];
    wire signed [19:0] charge_there = charge[charge_at];
    always @(posedge clk) begin
        if (begins) begin
            pending <= spikes;
            column <= 4'd0;
        end else if (collecting) begin
            column <= column + 4'd1;
            if (column == 4'd15) pending <= pending_next;
        end
        if (rst) {collecting, collected2, collected3} <= 3'd0;
        else begin
            if (begins) collecting <= spikes != 16'd0;
            else if (column == 4'd15 && pending_next == 16'd0) collecting <= 1'b0;
            collected2 <= collecting;
            collected3 <= collected2;
        end
        if (collecting) begin
            column2 <= column;
            first2 <= pending == spikes;
        end
        if (collected2) begin
            column3 <= column2;
            first3 <= first2;
            w3 <= w2[31:16] == 16'h7FFF ? 16'sh7FFF : w2[31:16] + {15'd0, w2[15]};
        end
        if (collected3) charge[charge_at] <= (first3 ? 20'sd0 : charge_there) + {{4{w3[15]}}, w3};
    end

    // ---- 2: operands
    reg signed [31:0] a2;
    reg signed [24:0] b2;
    wire signed [23:0] v1 = v[c1], drive1 = drive[c1];
    wire [23:0] pre1 = pre_trace[c1], post1 = post_trace[c1], rise1 = rise[c1];
    wire signed [15:0] stimulus1 = stimulus[c1], gain1 = gain[c1], threshold1 = threshold[c1];
    reg [3:0] factor_of;
    always @* case (phase)
        SCALE:      factor_of = 4'h0;   // input_gain
        KICK:       factor_of = 4'h1;   // recurrent_gain
        LIMIT:      factor_of = 4'h2;   // threshold_gain
        FALL_PRE:   factor_of = 4'h9;   // fall_plus
        FALL_POST:  factor_of = 4'hA;   // fall_minus
        LEARN:      factor_of = 4'hB;   // fall_eligibility
        POTENTIATE: factor_of = 4'hC;   // a_plus
        default:    factor_of = 4'hD;   // a_minus
    endcase
    wire [23:0] factor1 = factor[factor_of];
    always @(posedge clk) begin
        b2 <= phase == DRIVE ? {{9{gain1[15]}}, gain1} : {1'b0, phase == MEMBRANE ? rise1 : factor1};
        case (phase)
            SCALE:                 a2 <= {{16{stimulus1[15]}}, stimulus1};
            DRIVE:                 a2 <= {{8{drive1[23]}}, drive1};
            LIMIT:                 a2 <= {{16{threshold1[15]}}, threshold1};
            KICK:                  a2 <= spikes == 16'd0 ? 32'sd0 : {{12{charge_there[19]}}, charge_there};
            MEMBRANE:              a2 <= {{8{drive1[23]}}, drive1} - {{8{v1[23]}}, v1};
            FALL_PRE, POTENTIATE:  a2 <= {8'd0, pre1};
            default:               a2 <= {8'd0, post1};
        endcase
    end

    // 3 to 5: the multiplier of 32 x 25 bits, in two halves that each fit a DSP48
    reg signed [31:0] a3, a4, a5, a6;
    reg signed [24:0] b3;
    reg signed [42:0] low4;
    reg signed [39:0] high4;
    reg signed [56:0] p5;
    // what the operation drops of the product: half up by 8 or 24 bits, up by 8, or towards zero by 24
    reg [23:0] added5;
    reg        by_24_6;
    reg signed [56:0] p6;
    reg signed [37:0] more6;
    reg signed [41:0] sum7;
    reg signed [31:0] left7;
    wire [3:0] op4 = trail[23:20];
    wire falls4 = op4 == FALL_PRE || op4 == FALL_POST || op4 == LEARN;
    wire signed [40:0] r6 = by_24_6 ? {{8{p6[56]}}, p6[56:24]} : p6[48:8];
    wire signed [23:0] v5 = v[c5];
    wire signed [36:0] kick5 = kick[c5];
    wire signed [15:0] bias5 = bias[c5];
    wire [23:0] inhibition5 = inhibited && c5 < 4'd14 ? inhibition : 24'd0;
    wire signed [25:0] bias_less5 = {{2{bias5[15]}}, bias5, 8'd0} - {2'd0, inhibition5};
    always @(posedge clk) if (!idle) begin
        a3 <= op2 == LEARN ? e2 : a2;
        b3 <= b2;
        low4 <= $signed({1'b0, a3[16:0]}) * b3;
        high4 <= $signed(a3[31:17]) * b3;
        a4 <= a3;
        p5 <= {high4, 17'd0} + {{14{low4[42]}}, low4};
        a5 <= a4;
        added5 <= falls4 ? {24{!a4[31] && a4 != 32'sd0}}
                : op4 == MEMBRANE ? 24'h800000 : op4 == LIMIT ? 24'h0000FF : 24'h000080;
        p6 <= p5 + {33'd0, added5};
        a6 <= a5;
        by_24_6 <= op5 == MEMBRANE || op5 == FALL_PRE || op5 == FALL_POST || op5 == LEARN;
        case (op5)
            DRIVE:    more6 <= {{12{bias_less5[25]}}, bias_less5};
            MEMBRANE: more6 <= {{14{v5[23]}}, v5} + {kick5[36], kick5};
            default:  more6 <= 38'sd0;
        endcase
        sum7 <= {r6[40], r6} + {{4{more6[37]}}, more6};
        left7 <= a6 - r6[31:0];
    end

    // ---- 7, 8: results
    function signed [23:0] held24(input signed [41:0] x);
        held24 = x[41:23] == {19{x[41]}} ? x[23:0] : {x[41], {23{!x[41]}}};
    endfunction
    function [30:0] held31(input signed [41:0] x);    // of what is never negative
        held31 = x[41:31] != 11'd0 ? 31'h7FFFFFFF : x[30:0];
    endfunction
    wire signed [23:0] held7 = held24(sum7);
    wire signed [15:0] v_min7 = v_min[c7];
    wire signed [23:0] floor7 = {v_min7, 8'd0};
    always @(posedge clk) case (op7)
        SCALE, DRIVE: drive[c7] <= held7;
        LIMIT:        limit[c7] <= sum7[32:0];
        KICK:         kick[c7] <= sum7[36:0];
        POTENTIATE:   potentiation[c7] <= held31(sum7);
        DEPRESS:      depression[c7] <= held31(sum7);
        default: ;
    endcase

    reg signed [23:0] moved8;
    wire signed [32:0] limit8 = limit[c8];
    wire signed [15:0] v_reset8 = v_reset[c8];
    wire [15:0] refractory8 = refractory[c8], left8 = refractory_left[c8], since8 = since_spike[c8];
    wire resting8 = left8 != 16'd0;
    wire fires8 = !resting8 && $signed({{9{moved8[23]}}, moved8}) >= limit8;
    wire membrane8 = op8 == MEMBRANE;
    wire neuron8 = membrane8 && c8 != 4'd14;
    wire [23:0] v8_next = c8 == 4'd14 ? {4'd0, distinct, 16'd0} : fires8 || resting8 ? {v_reset8, 8'd0} : moved8;
    wire [15:0] left8_next = fires8 ? refractory8 : resting8 ? left8 - 16'd1 : 16'd0;
    wire [15:0] since8_next = fires8 ? 16'd0 : since8 == 16'hFFFF ? 16'hFFFF : since8 + 16'd1;
    always @(posedge clk) begin
        if (op7 == MEMBRANE) moved8 <= held7 < floor7 ? floor7 : held7;
        if (membrane8 || writes && bank == 6'h09) v[c8] <= idle ? wdata[23:0] : v8_next;
        if (neuron8 || writes && bank == 6'h0A) refractory_left[c8] <= idle ? wdata[15:0] : left8_next;
        if (neuron8 || writes && bank == 6'h0B) since_spike[c8] <= idle ? wdata[15:0] : since8_next;
    end

    // traces fall, and jump once they have been read
    wire [15:0] pre_fired = {fired[15], coincidence, fired[13:0]};
    wire pre_jumps = phase == LEARN && beat[7:4] == 4'd0 && pre_fired[c1];
    wire post_jumps = phase == LEARN && beat[7:4] == 4'd1 && fired[c1];
    wire [23:0] jumps = beat[4] ? post1 : pre1;       // by 1, or to 1
    wire [23:0] jumped = rule[1] ? 24'd65536 : jumps[23:16] == 8'hFF ? 24'hFFFFFF : {jumps[23:16] + 8'd1, jumps[15:0]};
    wire pre_falls = op7 == FALL_PRE, post_falls = op7 == FALL_POST;
    wire [3:0] pre_at = pre_falls ? c7 : c1, post_at = post_falls ? c7 : c1;
    wire [23:0] trace_next = idle ? wdata[23:0] : phase == LEARN ? jumped : left7[23:0];
    always @(posedge clk) begin
        if (pre_falls || pre_jumps || writes && bank == 6'h0C) pre_trace[pre_at] <= trace_next;
        if (post_falls || post_jumps || writes && bank == 6'h0D) post_trace[post_at] <= trace_next;
    end

    // ---- 6 to 8 of the synapses: the pairs of this tick, and what becomes of the eligibility
    wire [15:0] plastic6 = plastic[s6[7:4]];
    wire [30:0] plus6 = potentiation[s6[7:4]], minus6 = depression[s6[3:0]];
    wire pairs6 = plastic6[s6[3:0]];
    reg signed [32:0] change7;
    wire signed [33:0] e7 = {{2{left7[31]}}, left7} + {change7[32], change7};
    // 9 to 11: eligibility x factor, 32 x 32 bits in four parts
    reg [31:0] ll9;
    reg signed [32:0] lh9, hl9;
    reg signed [31:0] hh9;
    reg signed [63:0] outer10;
    reg signed [33:0] inner10;
    reg signed [63:0] p11;
    // 12: the weight moves by p11 rounded, but not beyond the bound that lies that way; one beyond it already stays
    reg signed [31:0] w12;
    reg signed [41:0] moved12;            // a bit below its point, where the half was added
    reg               up12;
    reg signed [15:0] bound12;
    wire beyond12 = ($signed(w12[31:16]) < bound12) == !up12;
    wire passes12 = ($signed(moved12[41:17]) < $signed({{9{bound12[15]}}, bound12})) == !up12;
    assign w12_next = beyond12 ? w12 : passes12 ? {bound12, 16'd0} : moved12[32:1];
    always @(posedge clk) if (learning) begin
        change7 <= (pairs6 && fired[s6[3:0]] ? {2'd0, plus6} : 33'd0)
                 - (pairs6 && pre_fired[s6[7:4]] ? {2'd0, minus6} : 33'd0);
        e8 <= e7[33:31] == {3{e7[33]}} ? e7[31:0] : {e7[33], {31{!e7[33]}}};
        ll9 <= e8[15:0] * learning_factor[15:0];
        lh9 <= $signed({1'b0, e8[15:0]}) * $signed(learning_factor[31:16]);
        hl9 <= $signed(e8[31:16]) * $signed({1'b0, learning_factor[15:0]});
        hh9 <= $signed(e8[31:16]) * $signed(learning_factor[31:16]);
        outer10 <= {hh9, ll9};
        inner10 <= {lh9[32], lh9} + {hl9[32], hl9};
        p11 <= outer10 + {{14{inner10[33]}}, inner10, 16'd0};
        w12 <= w2;
        moved12 <= {{9{w2[31]}}, w2, 1'b1} + {p11[63], p11[63:23]};
        up12 <= !p11[63];
        bound12 <= p11[63] ? w_min : w_max;
    end

    // bits that rounding has done with: for lint, which looks for bits that nobody reads
    wire unused = &{1'b0, p6[7:0], p11[22:0], moved12[0]};

    // ---- single numbers
    wire coincides = spikes[13:0] != 14'd0 && distinct >= min_channels && coincidence_left == 16'd0;
    wire [15:0] inhibition_now = spikes[15] ? inhibition_ticks : inhibition_left;
    always @(posedge clk) begin
        if (begins) begin
            distinct <= 4'd0;
            fired <= 16'd0;
            inhibited <= inhibition_now != 16'd0;
            inhibition_left <= inhibition_now == 16'd0 ? 16'd0 : inhibition_now - 16'd1;
        end
        if (op8 == SCALE && c8 < 4'd14 && since8 <= window_ticks) distinct <= distinct + 4'd1;
        if (phase == LIMIT && beat[3:0] == 4'd0) begin
            coincidence <= coincides;
            coincidence_left <= coincides ? coincidence_refractory
                              : coincidence_left == 16'd0 ? 16'd0 : coincidence_left - 16'd1;
        end
        if (neuron8) fired[c8] <= fires8;
        if (settles) begin
            spikes <= pre_fired;
            tick <= tick + 32'd1;
        end
        if (stimulus_we) stimulus[stimulus_index] <= stimulus_word;
        if (writes) case (bank)
            6'h00: begin
                factor[n] <= wdata[23:0];
                case (n)
                    4'h3: inhibition <= wdata[23:0];        4'h4: learning_factor <= wdata;
                    4'h5: inhibition_ticks <= wdata[15:0];  4'h6: window_ticks <= wdata[15:0];
                    4'h7: min_channels <= wdata[3:0];       4'h8: coincidence_refractory <= wdata[15:0];
                    4'hE: w_min <= wdata[15:0];             4'hF: w_max <= wdata[15:0];
                    default: ;
                endcase
            end
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
            6'h0E: plastic[n] <= wdata[15:0];
            default: ;
        endcase
    end

    // ---- reads: what a tick changes, from where it is; what only writes change, from a copy of what was written, since
    // the copy is a memory with one output, where the numbers themselves are needed side by side
    reg [31:0] copy [0:255];
    reg [31:0] copied;
    wire is_single = bank == 6'h00;
    wire is_signed = bank >= 6'h02 && bank <= 6'h06 || is_single && n >= 4'hE;
    wire has_24 = bank == 6'h01 || is_single && (n <= 4'h4 || n >= 4'h9 && n <= 4'hD);
    wire has_32 = is_single && n == 4'h4, has_4 = is_single && n == 4'h7;
    always @(posedge clk) begin
        copied <= copy[address[7:0]];
        if (writes && bank[5:4] == 2'd0) copy[address[7:0]] <= {
            is_signed ? {8{wdata[15]}} : has_32 ? wdata[31:24] : 8'd0,
            is_signed ? {8{wdata[15]}} : has_24 ? wdata[23:16] : 8'd0,
            has_4 ? 12'd0 : wdata[15:4], wdata[3:0]
        };
    end
    reg [31:0] word;
    reg [1:0]  word_of;
    always @(posedge clk) if (reads) begin
        word_of <= address[9:8] == 2'd0 && (!bank[3] || bank[3:0] == 4'hE) ? 2'd3
                 : address[9:8] == 2'd3 ? 2'd0 : address[9:8];
        case (bank)
            6'h08: case (n)
                4'h0: word <= {30'd0, rule};            4'h1: word <= tick;
                4'h2: word <= {16'd0, spikes};          4'h3: word <= {16'd0, inhibition_left};
                4'h4: word <= {16'd0, coincidence_left};
                default: word <= 32'd0;
            endcase
            6'h09: word <= {{8{v5[23]}}, v5};           6'h0A: word <= {16'd0, left8};
            6'h0B: word <= {16'd0, since8};             6'h0C: word <= {8'd0, pre1};
            6'h0D: word <= {8'd0, post1};
            default: word <= 32'd0;
        endcase
        rdata <= word_of == 2'd1 ? w2 : word_of == 2'd2 ? e2 : word_of == 2'd3 ? copied : word;
    end
endmodule

`default_nettype wire
