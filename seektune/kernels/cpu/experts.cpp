// The experts of few tokens and the way to them. Shapes: N tokens, E experts, K experts per token, P = N * K pairs,
// D width, F expert width.
#include "products.h"

namespace {

inline float swiglu(float gate, float up, float limit) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate * sigmoid(gate) * up;
}

const float LEAST = 1.17549435e-38f;

inline float gate_score(float x) {
    const float positive = x > 20 ? x : std::log1p(std::exp(x));
    return std::sqrt(positive < LEAST ? LEAST : positive);
}

}  // namespace

extern "C" void clamped_swiglu(const float* gate, const float* up, float* out, I count, double limit) {
    for (I i = 0; i < count; i++) out[i] = swiglu(gate[i], up[i], limit);
}

// Pairs are sorted by expert; `room` holds 8F numbers.
extern "C" void expert_mlp(const float* x, const I* tokens, const float* weights, const float* w1, const float* w2,
                           const float* w3, float* out, float* room, const I* counts, I experts, I width, I inner,
                           double limit) {
    for (I e = 0; e < experts; e++, w1 += inner * width, w2 += inner * width, w3 += inner * width) {
        in_groups(counts[e], [&](I first, auto count) {
            const int M = count.value;
            const float *in[M], *middle[M];
            float *gate = room, *up = room + M * inner;
            for (int m = 0; m < M; m++) in[m] = x + tokens[first + m] * width, middle[m] = gate + m * inner;
            each_product<M>(w1, inner, in, width, [&](int m, I f, float sum) { gate[m * inner + f] = sum; });
            each_product<M>(w3, inner, in, width, [&](int m, I f, float sum) { up[m * inner + f] = sum; });
            for (I f = 0; f < M * inner; f++) gate[f] = swiglu(gate[f], up[f], limit) * weights[first + f / inner];
            each_product<M>(w2, width, middle, inner,
                            [&](int m, I d, float sum) { out[tokens[first + m] * width + d] += sum; });
        });
        tokens += counts[e], weights += counts[e];
    }
}

// Pairs in the stable order of their experts: their tokens and weights, and how many each expert has.
extern "C" void sort_pairs(const I* chosen, const float* weights, I* tokens, float* sorted, I* counts, I pairs, I each,
                           I experts) {
    std::memset(counts, 0, experts * sizeof(I));
    for (I p = 0; p < pairs; p++) counts[chosen[p]]++;
    for (I e = 1; e < experts; e++) counts[e] += counts[e - 1];
    for (I p = pairs - 1; p >= 0; p--) {
        const I place = --counts[chosen[p]];
        tokens[place] = p / each, sorted[place] = weights[p];
    }
    for (I e = 0; e < experts; e++) counts[e] = (e + 1 < experts ? counts[e + 1] : pairs) - counts[e];
}

// The k largest of score plus bias, the earlier of equal ones, and their weights.
extern "C" void route(const float* logits, const float* bias, float* scores, I* chosen, float* weights, I tokens,
                      I experts, I k, double factor) {
    for (I n = 0; n < tokens; n++, logits += experts, scores += experts, chosen += k, weights += k) {
        for (I e = 0; e < experts; e++) scores[e] = gate_score(logits[e]);
        float total = 0;
        for (I i = 0; i < k; i++) {
            I best = -1;
            for (I e = 0; e < experts; e++) {
                bool taken = false;
                for (I j = 0; j < i; j++) taken |= chosen[j] == e;
                if (!taken && (best < 0 || scores[e] + bias[e] > scores[best] + bias[best])) best = e;
            }
            chosen[i] = best;
            total += weights[i] = scores[best];
        }
        for (I i = 0; i < k; i++) weights[i] = float(factor) * weights[i] / total;
    }
}
