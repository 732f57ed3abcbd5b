// The routed experts of few tokens. Shapes: P pairs sorted by expert, D width, F expert width.
#pragma once
#include "numbers.h"

namespace {

// M pairs of one expert; `room` holds 3 * M * F stored numbers.
template <int M, class S>
void run(const S* x, const I* tokens, const Wide<S>* weights, const S* w1, const S* w2, const S* w3, Wide<S>* out,
         S* room, I width, I inner, Wide<S> limit) {
    typedef Wide<S> W;
    const S *in[M], *middle[M];
    S *gate = room, *up = room + M * inner;
    for (int m = 0; m < M; m++) in[m] = x + tokens[m] * width, middle[m] = gate + m * inner;
    each_product<M>(w1, inner, width, in, width, [&](int m, I f, W sum) { store(gate[m * inner + f], sum); });
    each_product<M>(w3, inner, width, in, width, [&](int m, I f, W sum) { store(up[m * inner + f], sum); });
    for (int m = 0; m < M; m++)
        for (I f = m * inner; f < (m + 1) * inner; f++) {
            W g = wide(gate[f]), u = wide(up[f]);
            g = g > limit ? limit : g;
            u = u > limit ? limit : u < -limit ? -limit : u;
            store(gate[f], g * sigmoid(g) * u * weights[m]);
        }
    each_product<M>(w2, width, inner, middle, inner,
                    [&](int m, I d, W sum) { out[tokens[m] * width + d] += rounded<S>(sum); });
}

template <class S>
void expert_mlp(const S* x, const I* tokens, const Wide<S>* weights, const S* w1, const S* w2, const S* w3,
                const I* counts, Wide<S>* out, S* room, I experts, I width, I inner, double limit) {
    for (I e = 0; e < experts; e++, w1 += inner * width, w2 += inner * width, w3 += inner * width)
        for (I left = counts[e]; left > 0;) {
            const I now = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            auto some = now == 4 ? run<4, S> : now == 2 ? run<2, S> : run<1, S>;
            some(x, tokens, weights, w1, w2, w3, out, room, width, inner, limit);
            tokens += now, weights += now, left -= now;
        }
}

// Pairs in the stable order of their experts: their tokens and weights, and how many each expert has.
template <class W>
void sort_pairs(const I* chosen, const W* weights, I* tokens, W* sorted, I* counts, I pairs, I each, I experts) {
    std::memset(counts, 0, experts * sizeof(I));
    for (I p = 0; p < pairs; p++) counts[chosen[p]]++;
    for (I e = 1; e < experts; e++) counts[e] += counts[e - 1];
    for (I p = pairs - 1; p >= 0; p--) {
        const I place = --counts[chosen[p]];
        tokens[place] = p / each, sorted[place] = weights[p];
    }
    for (I e = 0; e < experts; e++) counts[e] = (e + 1 < experts ? counts[e + 1] : pairs) - counts[e];
}

const float LEAST = 1.17549435e-38f;

template <class W> inline W gate_score(W x) {
    const W positive = x > 20 ? x : std::log1p(std::exp(x));
    return std::sqrt(positive < W(LEAST) ? W(LEAST) : positive);
}

// The k largest of score plus bias, the earlier of equal ones, and their weights.
template <class W>
void route(const W* logits, const W* bias, W* scores, I* chosen, W* weights, I tokens, I experts, I k, W factor) {
    for (I n = 0; n < tokens; n++, logits += experts, scores += experts, chosen += k, weights += k) {
        for (I e = 0; e < experts; e++) scores[e] = gate_score(logits[e]);
        W total = 0;
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
        for (I i = 0; i < k; i++) weights[i] = factor * weights[i] / total;
    }
}

// As a hash gate: the experts are named by `table`, and one that is named again keeps its weight at its first name only.
template <class W>
void route_by(const W* logits, const I* table, I* chosen, W* weights, I tokens, I experts, I k, W factor) {
    for (I n = 0; n < tokens; n++, logits += experts, table += k, chosen += k, weights += k) {
        W total = 0;
        for (I i = 0; i < k; i++) total += weights[i] = gate_score(logits[chosen[i] = table[i]]);
        for (I i = 0; i < k; i++) {
            bool repeated = false;
            for (I j = 0; j < i; j++) repeated |= chosen[j] == chosen[i];
            weights[i] = repeated ? 0 : factor * weights[i] / total;
        }
    }
}

}  // namespace
