// Attention and the indexer's choice for few queries. Shapes: B rows, T queries, N keys, H heads, C head width,
// E entries, K listed entries.
#include <algorithm>
#include <functional>

#include "products.h"

// `first` is a list `[B, T, K]` of entries; where `listed` is negative, it is `[B, T]` and a query sees the `counts`
// entries from it on. `room` holds (H + 2) * (window + seen) numbers; `seen` is K or E.
extern "C" void sparse_attention(const float* q, const float* sink, const I* positions, const I* first,
                                 const I* counts, float* out, float* room, const float* keys, const float* entries,
                                 I keys_stride, I entries_stride, I rows, I queries, I held, I entries_held, I heads,
                                 I width, I window, I listed) {
    const float scale = 1 / std::sqrt(float(width));
    const float** vectors = (const float**)room;
    for (I b = 0; b < rows; b++, keys += keys_stride, entries += entries_stride)
        for (I t = 0; t < queries; t++, q += heads * width, out += heads * width, positions++) {
            const I own = held - queries + t, reach = std::min(std::min(*positions, window - 1), own);
            I size = 0;
            for (I key = own - reach; key <= own; key++) vectors[size++] = keys + key * width;
            for (I k = 0; k < listed; k++, first++)
                if (*first >= 0) vectors[size++] = entries + *first * width;
            if (listed < 0) {
                const I end = std::min(*first + *counts++, entries_held);
                for (I e = *first++; e < end; e++) vectors[size++] = entries + e * width;
            }
            float* weights = (float*)(vectors + size);
            for (I k = 0; k < size; k++)
                each_product<1, 4>(q, heads, vectors + k, width,
                                [&](int, I h, float sum) { weights[h * size + k] = sum * scale; });
            for (I h = 0; h < heads; h++) {
                float *mine = weights + h * size, top = sink[h];
                for (I k = 0; k < size; k++) top = mine[k] > top ? mine[k] : top;
                float total = std::exp(sink[h] - top);
                for (I k = 0; k < size; k++) total += mine[k] = std::exp(mine[k] - top);
                for (I k = 0; k < size; k++) mine[k] /= total;
            }
            std::fill(out, out + heads * width, 0.0f);
            for (I k = 0; k < size; k++)
                for (I h = 0; h < heads; h++)
                    for (I c = 0; c < width; c++) out[h * width + c] += weights[h * size + k] * vectors[k][c];
        }
}

namespace {

const I RUN = 256;  // entries that stay in a cache while all heads look at them
const I PEAK = 32;  // scores of which only the best is looked at first

// The k-th largest of `size` numbers, which are put in another order.
float kth(float* numbers, I size, I k) {
    std::nth_element(numbers, numbers + k - 1, numbers + size, std::greater<float>());
    return numbers[k - 1];
}

// Places of the k largest of `scores`, the earlier of equal ones; what is no number is no place. `room` holds as many.
void choose(const float* scores, I size, I k, I first, float* room, I* out) {
    float bound = -INFINITY;  // k scores or more are as large
    if (size / PEAK > k) {
        for (I b = 0; b < size / PEAK; b++) {
            float peak = -INFINITY;
            for (I i = 0; i < PEAK; i++) peak = scores[b * PEAK + i] > peak ? scores[b * PEAK + i] : peak;
            room[b] = peak;
        }
        bound = kth(room, size / PEAK, k);
    }
    I held = 0, taken = 0;
    for (I i = 0; i < size; i++)
        if (scores[i] >= bound) room[held++] = scores[i];
    const float least = held > k ? kth(room, held, k) : bound;
    I equal = k;
    for (I i = 0; i < std::min(held, k); i++) equal -= room[i] > least;
    for (I i = 0; i < size && taken < k; i++)
        if (scores[i] > least || (scores[i] == least && equal-- > 0)) out[taken++] = first + i;
    while (taken < k) out[taken++] = -1;
}

}  // namespace

extern "C" void index_topk(const float* q, const float* weights, const I* firsts, const I* counts, I* out,
                           float* room, const float* keys, I rows, I queries, I heads, I width, I keys_stride,
                           I entries, I k) {
    float *scores = room, *others = room + entries;
    for (I b = 0; b < rows; b++, keys += keys_stride)
        for (I t = 0; t < queries; t++, q += heads * width, weights += heads, firsts++, counts++, out += k) {
            if (*counts <= k) {
                for (I i = 0; i < k; i++) out[i] = i < *counts ? *firsts + i : -1;
                continue;
            }
            std::fill(scores, scores + *counts, 0.0f);
            for (I e = 0; e < *counts; e += RUN)
                in_groups(heads, [&](I first, auto count) {
                    const int M = count.value;
                    const float* in[M];
                    for (int m = 0; m < M; m++) in[m] = q + (first + m) * width;
                    each_product<M>(keys + (*firsts + e) * width, std::min(RUN, *counts - e), in, width,
                                    [&](int m, I r, float sum) {
                                        scores[e + r] += weights[first + m] * (sum > 0 ? sum : 0);
                                    });
                });
            choose(scores, *counts, k, *firsts, others, out);
        }
}
