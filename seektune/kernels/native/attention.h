// Attention and the indexer's choice for few queries. Shapes: B rows, T queries, N keys, H heads, C head width,
// E entries, K listed entries.
#pragma once
#include <algorithm>

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

// Places of the k largest of `scores`, the earlier of equal ones.
template <class W> void choose(const W* scores, I size, I k, I first, int32_t* order, I* out) {
    for (I i = 0; i < size; i++) order[i] = i;
    std::nth_element(order, order + k - 1, order + size, [&](int32_t a, int32_t b) {
        return scores[a] > scores[b] || (scores[a] == scores[b] && a < b);
    });
    for (I i = 0; i < k; i++) out[i] = first + order[i];
}

template <class S>
void index_topk(const S* q, const S* keys, const S* weights, const I* firsts, const I* counts, I* out, Wide<S>* scores,
                int32_t* order, I rows, I queries, I heads, I width, I keys_stride, I k) {
    typedef Wide<S> W;
    for (I b = 0; b < rows; b++, keys += keys_stride)
        for (I t = 0; t < queries; t++, q += heads * width, weights += heads, firsts++, counts++, out += k) {
            if (*counts <= k) {
                for (I i = 0; i < k; i++) out[i] = i < *counts ? *firsts + i : -1;
                continue;
            }
            for (I e = 0; e < *counts; e++) {
                const S* key = keys + (*firsts + e) * width;
                W score = 0;
                each_product<1>(q, heads, width, &key, width,
                                [&](int, I h, W sum) { score += wide(weights[h]) * (sum > 0 ? sum : 0); });
                scores[e] = score;
            }
            choose(scores, *counts, k, *firsts, order, out);
        }
}

}  // namespace
