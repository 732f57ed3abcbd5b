// Attention and the indexer's choice for few queries. Shapes: B rows, T queries, N keys, H heads, C head width,
// E entries, K listed entries.
#pragma once
#include <algorithm>
#include <functional>

#include "numbers.h"

namespace {

// `list` is `[B, T, K]`; where `listed` is negative, a query sees the `counts` entries from `firsts` on instead.
// `room` holds (H + 2) * (window + seen) + H * C numbers; `seen` is K or E.
template <class S>
void sparse_attention(const S* q, const S* keys, const S* entries, const Wide<S>* sink, const I* positions,
                      const I* list, const I* firsts, const I* counts, S* out, Wide<S>* room, I rows, I queries,
                      I held, I heads, I width, I window, I listed, I keys_stride, I entries_stride, I entries_held) {
    typedef Wide<S> W;
    const W scale = 1 / std::sqrt(W(width));
    const S** vectors = (const S**)room;
    for (I b = 0; b < rows; b++, keys += keys_stride, entries += entries_stride)
        for (I t = 0; t < queries; t++, q += heads * width, out += heads * width, positions++) {
            const I own = held - queries + t, reach = std::min(std::min(*positions, window - 1), own);
            I size = 0;
            for (I key = own - reach; key <= own; key++) vectors[size++] = keys + key * width;
            for (I k = 0; k < listed; k++, list++)
                if (*list >= 0) vectors[size++] = entries + *list * width;
            const I end = listed < 0 ? std::min(firsts[0] + counts[0], entries_held) : 0;
            for (I e = listed < 0 ? firsts[0] : 0; e < end; e++) vectors[size++] = entries + e * width;
            firsts += listed < 0, counts += listed < 0;
            W *weights = (W*)(vectors + size), *sums = weights + heads * size;
            for (I k = 0; k < size; k++)
                each_product<1>(q, heads, width, vectors + k, width,
                                [&](int, I h, W sum) { weights[h * size + k] = sum * scale; });
            for (I h = 0; h < heads; h++) {
                W* mine = weights + h * size;
                W top = sink[h], total;
                for (I k = 0; k < size; k++) top = mine[k] > top ? mine[k] : top;
                total = std::exp(sink[h] - top);
                for (I k = 0; k < size; k++) total += mine[k] = std::exp(mine[k] - top);
                for (I k = 0; k < size; k++) mine[k] = rounded<S>(mine[k] / total);
            }
            for (I i = 0; i < heads * width; i++) sums[i] = 0;
            for (I k = 0; k < size; k++)
                for (I h = 0; h < heads; h++) {
                    const W weight = weights[h * size + k];
                    for (I c = 0; c < width; c++) sums[h * width + c] += weight * wide(vectors[k][c]);
                }
            for (I i = 0; i < heads * width; i++) store(out[i], sums[i]);
        }
}

const I RUN = 256;  // entries that stay in a cache while all heads look at them
const I PEAK = 32;  // scores of which only the best is looked at first

// The k-th largest of `size` numbers, which are put in another order.
template <class W> W kth(W* numbers, I size, I k) {
    std::nth_element(numbers, numbers + k - 1, numbers + size, std::greater<W>());
    return numbers[k - 1];
}

// Places of the k largest of `scores`, the earlier of equal ones; what is no number is no place. `room` holds as many.
template <class W> void choose(const W* scores, I size, I k, I first, W* room, I* out) {
    W bound = -INFINITY;  // k scores or more are as large
    if (size / PEAK > k) {
        for (I b = 0; b < size / PEAK; b++) {
            W peak = -INFINITY;
            for (I i = 0; i < PEAK; i++) peak = scores[b * PEAK + i] > peak ? scores[b * PEAK + i] : peak;
            room[b] = peak;
        }
        bound = kth(room, size / PEAK, k);
    }
    I held = 0, taken = 0;
    for (I i = 0; i < size; i++)
        if (scores[i] >= bound) room[held++] = scores[i];
    const W least = held > k ? kth(room, held, k) : bound;
    I equal = k;
    for (I i = 0; i < std::min(held, k); i++) equal -= room[i] > least;
    for (I i = 0; i < size && taken < k; i++)
        if (scores[i] > least || (scores[i] == least && equal-- > 0)) out[taken++] = first + i;
    while (taken < k) out[taken++] = -1;
}

// Adds to the scores of some entries what M heads say.
template <int M, class S>
void add_heads(const S* q, const S* keys, const S* weights, Wide<S>* scores, I entries, I width) {
    const S* heads[M];
    for (int m = 0; m < M; m++) heads[m] = q + m * width;
    each_product<M>(keys, entries, width, heads, width,
                    [&](int m, I e, Wide<S> sum) { scores[e] += wide(weights[m]) * (sum > 0 ? sum : 0); });
}

template <class S>
void index_topk(const S* q, const S* keys, const S* weights, const I* firsts, const I* counts, I* out, Wide<S>* scores,
                Wide<S>* room, I rows, I queries, I heads, I width, I keys_stride, I k) {
    typedef Wide<S> W;
    for (I b = 0; b < rows; b++, keys += keys_stride)
        for (I t = 0; t < queries; t++, q += heads * width, weights += heads, firsts++, counts++, out += k) {
            if (*counts <= k) {
                for (I i = 0; i < k; i++) out[i] = i < *counts ? *firsts + i : -1;
                continue;
            }
            const S* seen = keys + *firsts * width;
            std::fill(scores, scores + *counts, W(0));
            for (I e = 0; e < *counts; e += RUN)
                for (I h = 0; h < heads;) {
                    const I some = heads - h >= 4 ? 4 : 1;
                    auto add = some == 4 ? add_heads<4, S> : add_heads<1, S>;
                    add(q + h * width, seen + e * width, weights + h, scores + e, std::min(RUN, *counts - e), width);
                    h += some;
                }
            choose(scores, *counts, k, *firsts, room, out);
        }
}

}  // namespace
