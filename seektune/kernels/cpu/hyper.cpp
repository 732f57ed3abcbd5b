// Hyper-connections of few tokens. Shapes: N tokens, S streams, D width, O = S * (2 + S) outputs of the router.
#include "products.h"

namespace {

const int MOST = 16;  // streams

// As `eager.sinkhorn.balanced`; rows sum over targets, columns over sources.
void balance(float* mix, I n, I iterations, float eps) {
    float sums[MOST];
    for (I j = 0; j < n; j++) {
        float top = mix[j * n], sum = 0;
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
            float sum = eps;
            for (I k = 0; k < n; k++) sum += mix[j * n + k];
            for (I k = 0; k < n; k++) mix[j * n + k] /= sum;
        }
    }
}

void collect(const float* streams, const float* read, float* y, I n, I width) {
    for (I d = 0; d < width; d++) y[d] = read[0] * streams[d];
    for (I s = 1; s < n; s++)
        for (I d = 0; d < width; d++) y[d] += read[s] * streams[s * width + d];
}

}  // namespace

extern "C" void hyper_read(const float* streams, const float* fn, const float* base, const float* scale, float* y,
                           float* write, float* mix, I tokens, I n, I width, I iterations, double eps,
                           double norm_eps) {
    const I inputs = n * width, outputs = n * (2 + n);
    for (I t = 0; t < tokens; t++, streams += inputs, y += width, write += n, mix += n * n) {
        float u[MOST * (2 + MOST)], read[MOST];
        const float inverse = inverse_rms(streams, inputs, norm_eps);
        each_product<1>(fn, outputs, &streams, inputs, [&](int, I r, float sum) { u[r] = sum * inverse; });
        for (I s = 0; s < n; s++) {
            read[s] = sigmoid(base[s] + u[s] * scale[0]) + float(eps);
            write[s] = 2 * sigmoid(base[n + s] + u[n + s] * scale[1]);
        }
        for (I s = 0; s < n * n; s++) mix[s] = base[2 * n + s] + u[2 * n + s] * scale[2];
        balance(mix, n, iterations, eps);
        collect(streams, read, y, n, width);
    }
}

extern "C" void hyper_write(const float* streams, const float* y, const float* write, const float* mix, float* out,
                            I tokens, I n, I width) {
    for (I t = 0; t < tokens; t++, streams += n * width, y += width, write += n, mix += n * n)
        for (I k = 0; k < n; k++, out += width) {
            for (I d = 0; d < width; d++) out[d] = write[k] * y[d];
            for (I j = 0; j < n; j++)
                for (I d = 0; d < width; d++) out[d] += mix[j * n + k] * streams[j * width + d];
        }
}
