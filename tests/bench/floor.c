/* What a learning tick costs at the least: sixteen LIF neurons, all to all, reward-modulated STDP, in vectors of a row.

   The mathematics are those of engine/models/lif.py and engine/plasticity.py, in the same order, so that without
   contraction of products and sums (-ffp-contract=off) spikes and weights have the same bits; all that a service needs
   beside them is left out: no checks, no modulators but dopamine, no delays, no noise, no coincidences, no inhibition,
   one model, one rule, one length of step. */

#include <stdint.h>

#define N 16

typedef float row __attribute__((vector_size(4 * N)));

#ifdef __AVX512F__
#include <immintrin.h>
typedef __mmask16 mask;
static inline mask above(row a, row b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline mask reaches(row a, row b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline mask equals(row a, row b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline row either(mask which, row a, row b) { return _mm512_mask_blend_ps(which, b, a); }
static inline uint32_t bits(mask which) { return which; }
static inline row larger(row a, row b) { return _mm512_max_ps(a, b); }
static inline row smaller(row a, row b) { return _mm512_min_ps(a, b); }
#else
typedef int32_t mask __attribute__((vector_size(4 * N)));
static inline mask above(row a, row b) { return a > b; }
static inline mask reaches(row a, row b) { return a >= b; }
static inline mask equals(row a, row b) { return a == b; }
static inline row either(mask which, row a, row b) { return (row)((which & (mask)a) | (~which & (mask)b)); }
static inline uint32_t bits(mask which) {
    uint32_t found = 0;
    for (int i = 0; i < N; i++) found |= (uint32_t)(which[i] & 1) << i;
    return found;
}
static inline row larger(row a, row b) { return either(a > b, a, b); }
static inline row smaller(row a, row b) { return either(a < b, a, b); }
#endif

struct network {
    row weights[N], eligibility[N], unrounded[N];                    /* a row a source */
    row v, refractory_left, pre_trace, post_trace;                   /* state of each neuron */
    row bias, gain, rise, threshold, reset, lowest, refractory;      /* parameters of each neuron */
    float pre_fall, post_fall, eligibility_fall, a_plus, a_minus;    /* part of each trace that a step takes; the jumps */
    float w_min, w_max, rate, dopamine, dopamine_baseline, dopamine_relaxation, step;
    uint32_t spikes;                                                 /* of the last tick */
};

void run(struct network *restrict n, const row *restrict stimuli, int64_t n_ticks, int64_t *restrict spikes) {
    const row zero = {0}, one = zero + 1.0f, step = zero + n->step, half_step = zero + n->step * 0.5f;
    const row low = zero + n->w_min, high = zero + n->w_max;
    for (int64_t k = 0; k < n_ticks; k++) {
        row drive = n->bias + n->gain * stimuli[k], kick = zero;
        for (uint32_t left = n->spikes; left; left &= left - 1) kick += n->weights[__builtin_ctz(left)];

        row v = larger(n->v + (drive - n->v) * n->rise + kick, n->lowest);
        v = either(above(n->refractory_left, half_step), n->reset, v);
        mask fires = reaches(v, n->threshold);
        n->v = either(fires, n->reset, v);
        n->refractory_left = either(fires, n->refractory, larger(n->refractory_left - step, zero));
        n->spikes = bits(fires);
        spikes[k] = n->spikes;

        n->pre_trace -= n->pre_trace * n->pre_fall;
        n->post_trace -= n->post_trace * n->post_fall;
        const float factor = n->rate * n->dopamine * (n->step / 1000.0f);
        const row fired = either(fires, one, zero);
        for (int j = 0; j < N; j++) {
            row e = n->eligibility[j];
            e -= e * n->eligibility_fall;
            if (n->spikes) {
                const float departed = (float)(n->spikes >> j & 1);
                e += (n->a_plus * n->pre_trace[j]) * fired - (n->a_minus * departed) * n->post_trace;
            }
            n->eligibility[j] = e;
            const row change = factor * e;
#ifdef COMPENSATED                                                   /* the engine's bits; the floor goes without */
            const row wanted = change + n->unrounded[j], moved = n->weights[j] + wanted;
            const mask none = equals(change, zero);
            n->unrounded[j] = either(none, n->unrounded[j], wanted - (moved - n->weights[j]));
            n->weights[j] = larger(smaller(either(none, n->weights[j], moved), high), low);
#else
            n->weights[j] = larger(smaller(n->weights[j] + change, high), low);
#endif
        }
        n->pre_trace += fired;
        n->post_trace += fired;
        n->dopamine += (n->dopamine_baseline - n->dopamine) * n->dopamine_relaxation;
    }
}
