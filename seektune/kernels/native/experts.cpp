// The routed experts of few tokens. Shapes: P pairs sorted by expert, D width, F expert width.
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

// The k largest of score plus bias, the earlier of equal ones, and their weights.
template <class W>
void route(const W* logits, const W* bias, W* scores, I* chosen, W* weights, I tokens, I experts, I k, W factor,
           W least) {
    for (I n = 0; n < tokens; n++, logits += experts, scores += experts, chosen += k, weights += k) {
        for (I e = 0; e < experts; e++) {
            const W x = logits[e], positive = x > 20 ? x : std::log1p(std::exp(x));
            scores[e] = std::sqrt(positive < least ? least : positive);
        }
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

}  // namespace

#define SORT(W)                                                                                                    (const I* chosen, const W* weights, I* tokens, W* sorted, I* counts, I pairs, I each, I experts) {                 sort_pairs(chosen, weights, tokens, sorted, counts, pairs, each, experts);                                 }
extern "C" void sort_pairs_f32 SORT(float)
extern "C" void sort_pairs_f64 SORT(double)

#define ROUTE(W)                                                                                                   (const W* logits, const W* bias, W* scores, I* chosen, W* weights, I tokens, I experts, I k, double factor) {         route(logits, bias, scores, chosen, weights, tokens, experts, k, W(factor), W(1.17549435e-38));             }
extern "C" void route_f32 ROUTE(float)
extern "C" void route_f64 ROUTE(double)

#define EXPERTS(S, W)                                                                                              \
    (const S* x, const I* tokens, const W* weights, const S* w1, const S* w2, const S* w3, const I* counts, W* out, \
     S* room, I experts, I width, I inner, double limit)
FOR_EACH_DTYPE(expert_mlp, EXPERTS,
               (x, tokens, weights, w1, w2, w3, counts, out, room, experts, width, inner, limit))
