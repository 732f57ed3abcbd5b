// Hyper-connections of few tokens. Shapes: N tokens, S streams, D width, O = S * (2 + S) outputs of the router.
#pragma once
#include "numbers.h"

namespace {

const int MOST = 16;  // streams

// As `fused.sinkhorn.balanced`; rows sum over targets, columns over sources.
template <class W, int N> void balance(W* mix, I streams, I iterations, W eps) {
    const I n = N ? N : streams;
    W sums[MOST];
    for (I j = 0; j < n; j++) {
        W top = mix[j * n], sum = 0;
        for (I k = 1; k < n; k++) top = mix[j * n + k] > top ? mix[j * n + k] : top;
        for (I k = 0; k < n; k++) sum += mix[j * n + k] = std::exp(mix[j * n + k] - top);
        for (I k = 0; k < n; k++) mix[j * n + k] = mix[j * n + k] / sum + eps;
    }
    for (I pass = 1;; pass++) {
        for (I k = 0; k < n; k++) sums[k] = eps;
        for (I j = 0; j < n; j++)
            for (I k = 0; k < n; k++) sums[k] += mix[j * n + k];
        for (I j = 0; j < n; j++)
            for (I k = 0; k < n; k++) mix[j * n + k] /= sums[k];
        if (pass >= iterations) return;
        for (I j = 0; j < n; j++) {
            W sum = eps;
            for (I k = 0; k < n; k++) sum += mix[j * n + k];
            for (I k = 0; k < n; k++) mix[j * n + k] /= sum;
        }
    }
}

template <class S> void collect(const S* streams, const Wide<S>* read, S* y, I n, I width) {
    for (I d = 0; d < width; d++) {
        Wide<S> sum = 0;
        for (I s = 0; s < n; s++) sum += read[s] * wide(streams[s * width + d]);
        store(y[d], sum);
    }
}

template <class S>
void hyper_read(const S* streams, const Wide<S>* fn, const Wide<S>* base, const Wide<S>* scale, S* y, Wide<S>* write,
                Wide<S>* mix, I tokens, I n, I width, I iterations, double eps, double norm_eps) {
    typedef Wide<S> W;
    const I inputs = n * width, outputs = n * (2 + n);
    for (I t = 0; t < tokens; t++, streams += inputs, y += width, write += n, mix += n * n) {
        W u[MOST * (2 + MOST)], read[MOST];
        const W inverse = inverse_rms(streams, inputs, norm_eps);
        each_product<1>(fn, outputs, inputs, &streams, inputs, [&](int, I r, W sum) { u[r] = sum * inverse; });
        for (I s = 0; s < n; s++) {
            read[s] = sigmoid(base[s] + u[s] * scale[0]) + W(eps);
            write[s] = 2 * sigmoid(base[n + s] + u[n + s] * scale[1]);
        }
        for (I s = 0; s < n * n; s++) mix[s] = base[2 * n + s] + u[2 * n + s] * scale[2];
        n == 4 ? balance<W, 4>(mix, n, iterations, eps) : balance<W, 0>(mix, n, iterations, eps);
        collect(streams, read, y, n, width);
    }
}

template <class S>
void hyper_collect(const S* streams, const Wide<S>* fn, const Wide<S>* base, const Wide<S>* scale, S* y, I tokens, I n,
                   I width, double eps, double norm_eps) {
    typedef Wide<S> W;
    for (I t = 0; t < tokens; t++, streams += n * width, y += width) {
        W read[MOST];
        const W inverse = inverse_rms(streams, n * width, norm_eps);
        each_product<1>(fn, n, n * width, &streams, n * width,
                        [&](int, I s, W sum) { read[s] = sigmoid(base[s] + sum * inverse * scale[0]) + W(eps); });
        collect(streams, read, y, n, width);
    }
}

template <class S>
void hyper_write(const S* streams, const S* y, const Wide<S>* write, const Wide<S>* mix, S* out, I tokens, I n,
                 I width) {
    typedef Wide<S> W;
    for (I t = 0; t < tokens; t++, streams += n * width, y += width, write += n, mix += n * n, out += n * width)
        for (I k = 0; k < n; k++)
            for (I d = 0; d < width; d++) {
                W sum = write[k] * wide(y[d]);
                for (I j = 0; j < n; j++) sum += mix[j * n + k] * wide(streams[j * width + d]);
                store(out[k * width + d], sum);
            }
}

}  // namespace
