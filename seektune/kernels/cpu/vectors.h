// Normalisation, rotation, activation and pooling of few vectors. Shapes: N vectors, C width, R rotated pairs.
#pragma once
#include "numbers.h"

namespace {

template <class S> void turn(S* x, I width, const Wide<S>* cos, const Wide<S>* sin, I pairs) {
    S* tail = x + width - 2 * pairs;
    for (I r = 0; r < pairs; r++) {
        const Wide<S> re = wide(tail[2 * r]), im = wide(tail[2 * r + 1]);
        store(tail[2 * r], re * cos[r] - im * sin[r]);
        store(tail[2 * r + 1], re * sin[r] + im * cos[r]);
    }
}

template <class S> void rms_norm(const S* x, const S* weight, S* out, I vectors, I width, double eps) {
    for (I n = 0; n < vectors; n++, x += width, out += width) {
        const Wide<S> inverse = inverse_rms(x, width, eps);
        for (I c = 0; c < width; c++) store(out[c], wide(weight[c]) * (wide(x[c]) * inverse));
    }
}

// `heads` neighbouring vectors share their angles.
template <class S>
void rotate(const S* x, const Wide<S>* cos, const Wide<S>* sin, S* out, I vectors, I heads, I width, I pairs) {
    if (out != x) std::memcpy(out, x, vectors * width * sizeof(S));
    for (I n = 0; n < vectors; n++)
        turn(out + n * width, width, cos + n / heads * pairs, sin + n / heads * pairs, pairs);
}

template <class S>
void norm_rope(const S* x, const Wide<S>* cos, const Wide<S>* sin, S* out, I vectors, I heads, I width, I pairs,
                  double eps) {
    for (I n = 0; n < vectors; n++, x += width, out += width) {
        const Wide<S> inverse = inverse_rms(x, width, eps);
        for (I c = 0; c < width; c++) store(out[c], wide(x[c]) * inverse);
        turn(out, width, cos + n / heads * pairs, sin + n / heads * pairs, pairs);
    }
}

template <class S> void clamped_swiglu(const S* gate, const S* up, Wide<S>* out, I count, double limit) {
    typedef Wide<S> W;
    const W most = limit;
    for (I i = 0; i < count; i++) {
        W g = wide(gate[i]), u = wide(up[i]);
        g = g > most ? most : g;
        u = u > most ? most : u < -most ? -most : u;
        out[i] = g * sigmoid(g) * u;
    }
}

// Of one part of a window: tokens from `first` on, channels from `shift` on, with their running softmax.
template <class W>
void pool_part(const W* values, const W* gates, const W* ape, I stride, I channels, I shift, I first, I window, I width,
               W* top, W* total, W* sum) {
    for (I m = 0; m < window; m++) {
        const I token = first + m < 0 ? 0 : first + m;
        const W *value = values + token * stride + shift, *gate = gates + token * stride + shift;
        for (I c = 0; c < width; c++) {
            const W logit = gate[c] + ape[m * channels + shift + c];
            const W best = logit > top[c] ? logit : top[c], kept = std::exp(top[c] - best), now = std::exp(logit - best);
            total[c] = total[c] * kept + now;
            sum[c] = sum[c] * kept + now * value[c];
            top[c] = best;
        }
    }
}

template <class W>
void pool_windows(const W* values, const W* gates, const W* ape, const I* last, const I* position, W* out, W* room,
                  I rows, I entries, I row_stride, I stride, I window, I channels, I overlap) {
    const I width = overlap ? channels / 2 : channels;
    W *top = room, *total = room + width;
    for (I b = 0; b < rows; b++, values += row_stride, gates += row_stride)
        for (I e = 0; e < entries; e++, out += width, last++, position++) {
            for (I c = 0; c < width; c++) top[c] = -INFINITY, total[c] = out[c] = 0;
            const I first = *last - window + 1;
            if (overlap && *position > 0)
                pool_part(values, gates, ape, stride, channels, I(0), first - window, window, width, top, total, out);
            pool_part(values, gates, ape, stride, channels, channels - width, first, window, width, top, total, out);
            for (I c = 0; c < width; c++) out[c] /= total[c];
        }
}

}  // namespace
