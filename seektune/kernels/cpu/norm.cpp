// Normalisation and rotation of few vectors. Shapes: N vectors, C width, R rotated pairs.
#include "products.h"

namespace {

void turn(float* x, I width, const float* cos, const float* sin, I pairs) {
    float* tail = x + width - 2 * pairs;
    for (I r = 0; r < pairs; r++) {
        const float re = tail[2 * r], im = tail[2 * r + 1];
        tail[2 * r] = re * cos[r] - im * sin[r];
        tail[2 * r + 1] = re * sin[r] + im * cos[r];
    }
}

}  // namespace

extern "C" void rms_norm(const float* x, const float* weight, float* out, I vectors, I width, double eps) {
    for (I n = 0; n < vectors; n++, x += width, out += width) {
        const float inverse = inverse_rms(x, width, eps);
        for (I c = 0; c < width; c++) out[c] = weight[c] * (x[c] * inverse);
    }
}

// `heads` neighbouring vectors share their angles.
extern "C" void rotate(const float* x, const float* cos, const float* sin, float* out, I vectors, I heads, I width,
                       I pairs) {
    std::memcpy(out, x, vectors * width * sizeof(float));
    for (I n = 0; n < vectors; n++)
        turn(out + n * width, width, cos + n / heads * pairs, sin + n / heads * pairs, pairs);
}

extern "C" void norm_rope(const float* x, const float* cos, const float* sin, float* out, I vectors, I heads, I width,
                          I pairs, double eps) {
    for (I n = 0; n < vectors; n++, x += width, out += width) {
        const float inverse = inverse_rms(x, width, eps);
        for (I c = 0; c < width; c++) out[c] = x[c] * inverse;
        turn(out, width, cos + n / heads * pairs, sin + n / heads * pairs, pairs);
    }
}
