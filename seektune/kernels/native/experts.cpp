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

}  // namespace

// Stable order of pairs by expert, and the pairs of each.
extern "C" void sort_by_expert_i64(const I* chosen, I* order, I* counts, I pairs, I experts) {
    std::memset(counts, 0, experts * sizeof(I));
    for (I p = 0; p < pairs; p++) counts[chosen[p]]++;
    for (I e = 1; e < experts; e++) counts[e] += counts[e - 1];
    for (I p = pairs - 1; p >= 0; p--) order[--counts[chosen[p]]] = p;
    for (I e = 0; e < experts; e++) counts[e] = (e + 1 < experts ? counts[e + 1] : pairs) - counts[e];
}

#define EXPERTS(S, W)                                                                                              \
    (const S* x, const I* tokens, const W* weights, const S* w1, const S* w2, const S* w3, const I* counts, W* out, \
     S* room, I experts, I width, I inner, double limit)
FOR_EACH_DTYPE(expert_mlp, EXPERTS,
               (x, tokens, weights, w1, w2, w3, counts, out, room, experts, width, inner, limit))
