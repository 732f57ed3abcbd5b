// What a block does before and after it looks at other tokens: the kernels of its parts in a row, for few tokens.
// Shapes: N tokens, S streams, D width, R query rank, H heads, C head width, P rotated pairs, G groups of O outputs,
// E experts, K of a token, F expert width.
#pragma once
#include <vector>

#include "experts.h"
#include "hyper.h"
#include "linear.h"
#include "vectors.h"

namespace {

// Addresses and sizes in the order in which the other side lists them.
struct Listed {
    void* const* addresses;
    const I* sizes;
    template <class T> T* next() { return (T*)*addresses++; }
    I size() { return *sizes++; }
};

// Streams are read and normalised; queries and window keys are made of what was read, and turned.
template <class S> void block_enter(void* const* addresses, const I* sizes, double hyper_eps, double eps) {
    typedef Wide<S> W;
    Listed list = {addresses, sizes};
    const I tokens = list.size(), n = list.size(), width = list.size(), passes = list.size(), rank = list.size(),
            heads = list.size(), head = list.size(), pairs = list.size();
    const S* streams = list.next<S>();
    const W *fn = list.next<W>(), *base = list.next<W>(), *scale = list.next<W>();
    const S *norm = list.next<S>(), *wq_a = list.next<S>(), *q_norm = list.next<S>(), *wq_b = list.next<S>(),
            *wkv = list.next<S>(), *kv_norm = list.next<S>();
    const W *cos = list.next<W>(), *sin = list.next<W>();
    S *x = list.next<S>(), *residual = list.next<S>(), *q = list.next<S>(), *keys = list.next<S>();
    W *write = list.next<W>(), *mix = list.next<W>();

    hyper_read(streams, fn, base, scale, x, write, mix, tokens, n, width, passes, hyper_eps, eps);
    rms_norm(x, norm, x, tokens, width, eps);
    grouped_linear(x, wq_a, residual, tokens, 1, width, rank);
    rms_norm(residual, q_norm, residual, tokens, rank, eps);
    grouped_linear(residual, wq_b, q, tokens, 1, rank, heads * head);
    norm_rope(q, cos, sin, q, tokens * heads, heads, head, pairs, eps);
    grouped_linear(x, wkv, keys, tokens, 1, width, head);
    rms_norm(keys, kv_norm, keys, tokens, head, eps);
    rotate(keys, cos, sin, keys, tokens, 1, head, pairs);
}

// What attention gave is turned back, projected and written to the streams; then the experts do their part. `table` are
// the experts of each token where a hash gate names them, else null.
template <class S>
void block_leave(void* const* addresses, const I* sizes, double hyper_eps, double eps, double factor, double limit) {
    typedef Wide<S> W;
    Listed list = {addresses, sizes};
    const I tokens = list.size(), n = list.size(), width = list.size(), passes = list.size(), heads = list.size(),
            head = list.size(), pairs = list.size(), groups = list.size(), outputs = list.size(),
            experts = list.size(), each = list.size(), inner = list.size();
    S *streams = list.next<S>(), *o = list.next<S>();
    const W *cos = list.next<W>(), *sin = list.next<W>();
    const S *wo_a = list.next<S>(), *wo_b = list.next<S>();
    W *write = list.next<W>(), *mix = list.next<W>();
    const W *fn = list.next<W>(), *base = list.next<W>(), *scale = list.next<W>();
    const S *norm = list.next<S>(), *gate = list.next<S>();
    const W* bias = list.next<W>();
    const I* table = list.next<I>();
    const S *w1 = list.next<S>(), *w2 = list.next<S>(), *w3 = list.next<S>(), *shared1 = list.next<S>(),
            *shared2 = list.next<S>(), *shared3 = list.next<S>();
    S* out = list.next<S>();

    std::vector<S> low(tokens * groups * outputs), x(tokens * width), between(tokens * n * width), room(8 * inner),
        up(tokens * inner), gated(tokens * inner);
    rotate(o, cos, sin, o, tokens * heads, heads, head, pairs);
    grouped_linear(o, wo_a, low.data(), tokens, groups, heads * head / groups, outputs);
    grouped_linear(low.data(), wo_b, x.data(), tokens, 1, groups * outputs, width);
    hyper_write(streams, x.data(), write, mix, between.data(), tokens, n, width);

    hyper_read(between.data(), fn, base, scale, x.data(), write, mix, tokens, n, width, passes, hyper_eps, eps);
    rms_norm(x.data(), norm, x.data(), tokens, width, eps);
    std::vector<W> logits(tokens * experts), scores(tokens * experts), weights(tokens * each), sorted(tokens * each),
        sum(tokens * width), middle(tokens * inner);
    std::vector<I> chosen(tokens * each), sources(tokens * each), counts(experts);
    grouped_linear(x.data(), gate, logits.data(), tokens, 1, width, experts);
    if (table)
        route_by(logits.data(), table, chosen.data(), weights.data(), tokens, experts, each, W(factor));
    else
        route(logits.data(), bias, scores.data(), chosen.data(), weights.data(), tokens, experts, each, W(factor));
    sort_pairs(chosen.data(), weights.data(), sources.data(), sorted.data(), counts.data(), tokens * each, each,
               experts);
    expert_mlp(x.data(), sources.data(), sorted.data(), w1, w2, w3, counts.data(), sum.data(), room.data(), experts,
               width, inner, limit);
    grouped_linear(x.data(), shared1, gated.data(), tokens, 1, width, inner);
    grouped_linear(x.data(), shared3, up.data(), tokens, 1, width, inner);
    clamped_swiglu(gated.data(), up.data(), middle.data(), tokens * inner, limit);
    for (I i = 0; i < tokens * inner; i++) store(gated[i], middle[i]);
    grouped_linear(gated.data(), shared2, x.data(), tokens, 1, inner, width);
    for (I i = 0; i < tokens * width; i++) store(x[i], sum[i] + wide(x[i]));
    hyper_write(between.data(), x.data(), write, mix, out, tokens, n, width);
}

}  // namespace
