// Products of few tokens with a matrix: bound by the reading of the matrix. Shapes: N tokens, G groups, I inputs and
// O outputs of a group.
#include "products.h"

extern "C" void grouped_linear(const float* x, const float* weight, float* out, I tokens, I groups, I inputs,
                               I outputs) {
    const I x_stride = groups * inputs, out_stride = groups * outputs;
    for (I g = 0; g < groups; g++, weight += outputs * inputs, x += inputs, out += outputs)
        in_groups(tokens, [&](I first, auto count) {
            const int M = count.value;
            const float* in[M];
            for (int m = 0; m < M; m++) in[m] = x + (first + m) * x_stride;
            each_product<M>(weight, outputs, in, inputs,
                            [&](int m, I o, float sum) { out[(first + m) * out_stride + o] = sum; });
        });
}
