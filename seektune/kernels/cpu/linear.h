// Products of few tokens with a matrix: bound by the reading of the matrix. Shapes: N tokens, G groups, I inputs and
// O outputs of a group.
#pragma once
#include "numbers.h"

namespace {

template <int M, class S, class O>
void multiply(const S* x, const S* weight, O* out, I x_stride, I out_stride, I inputs, I outputs) {
    const S* in[M];
    for (int m = 0; m < M; m++) in[m] = x + m * x_stride;
    each_product<M>(weight, outputs, inputs, in, inputs,
                    [&](int m, I o, Wide<S> sum) { store(out[m * out_stride + o], sum); });
}

template <class S, class O>
void grouped_linear(const S* x, const S* weight, O* out, I tokens, I groups, I inputs, I outputs) {
    const I x_stride = groups * inputs, out_stride = groups * outputs;
    for (I g = 0; g < groups; g++, weight += outputs * inputs)
        for (I n = 0; n < tokens;) {
            const I left = tokens - n, now = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            auto some = now == 4 ? multiply<4, S, O> : now == 2 ? multiply<2, S, O> : multiply<1, S, O>;
            some(x + n * x_stride + g * inputs, weight, out + n * out_stride + g * outputs, x_stride, out_stride,
                 inputs, outputs);
            n += now;
        }
}

}  // namespace
