// Products of a few vectors with the rows of a matrix, which most kernels here are made of.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef int64_t I;

namespace {

inline float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

inline float inverse_rms(const float* x, I width, double eps) {
    float square = 0;
    for (I c = 0; c < width; c++) square += x[c] * x[c];
    return 1 / std::sqrt(square / width + float(eps));
}

// out[m][r] = sum over i of rows[r][i] * x[m][i], for M vectors and R rows that stand `stride` apart.
template <int R, int M>
inline void products(const float* rows, I stride, const float* const* x, I size, float (*out)[R]) {
    float sums[M][R] = {};
    for (I i = 0; i < size; i++)
        for (int r = 0; r < R; r++)
            for (int m = 0; m < M; m++) sums[m][r] += rows[r * stride + i] * x[m][i];
    std::memcpy(out, sums, sizeof(sums));
}

// As `products` for any number of rows; take(m, r, sum) receives each. R parts are read side by side (eight for one
// vector), each in order: processors fetch that ahead, and neighbouring rows of a page they do not (2.5 times slower).
template <int M, int R = M == 1 ? 8 : 4, class Take>
inline void each_product(const float* rows, I count, const float* const* x, I size, Take take) {
    const I part = count / R;
    for (I r = 0; r < part; r++) {
        float out[M][R];
        products<R, M>(rows + r * size, part * size, x, size, out);
        for (int m = 0; m < M; m++)
            for (int j = 0; j < R; j++) take(m, j * part + r, out[m][j]);
    }
    for (I r = R * part; r < count; r++) {
        float out[M][1];
        products<1, M>(rows + r * size, size, x, size, out);
        for (int m = 0; m < M; m++) take(m, r, out[m][0]);
    }
}

template <int M> struct Count { static const int value = M; };

// Cuts `count` vectors into groups of 4, 2 and 1, so that a matrix is read once for a group; take(first, Count<M>()).
template <class Take> inline void in_groups(I count, Take take) {
    I n = 0;
    for (; n + 4 <= count; n += 4) take(n, Count<4>());
    for (; n + 2 <= count; n += 2) take(n, Count<2>());
    for (; n < count; n++) take(n, Count<1>());
}

}  // namespace
