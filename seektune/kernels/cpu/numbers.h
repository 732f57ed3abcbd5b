// What every kernel here needs: stored and wide numbers, short vectors of them, and products of few rows.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

typedef int64_t I;

// A bf16 as it is stored. Arithmetic is fp32.
struct Half {
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline double wide(double x) { return x; }
inline float wide(Half x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

inline void store(float& out, float x) { out = x; }
inline void store(double& out, double x) { out = x; }
// To the nearest, ties to even, as torch rounds.
inline void store(Half& out, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    out.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The dtype that a stored one is computed in.
template <class S> struct Computed { typedef S type; };
template <> struct Computed<Half> { typedef float type; };
template <class S> using Wide = typename Computed<S>::type;

template <class S> inline Wide<S> rounded(Wide<S> x) {
    S out;
    store(out, x);
    return wide(out);
}

template <class W> inline W sigmoid(W x) { return 1 / (1 + std::exp(-x)); }

template <class S> Wide<S> inverse_rms(const S* x, I width, double eps) {
    Wide<S> square = 0;
    for (I c = 0; c < width; c++) square += wide(x[c]) * wide(x[c]);
    return 1 / std::sqrt(square / Wide<S>(width) + Wide<S>(eps));
}

// Vectors of 64 bytes; where registers are shorter the compiler takes several.
const int LANES_32 = 16, LANES_64 = 8;
typedef float Floats __attribute__((vector_size(64), aligned(4)));
typedef double Doubles __attribute__((vector_size(64), aligned(8)));
typedef uint32_t Words __attribute__((vector_size(64), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(32), aligned(2)));

template <class W> struct Vector;
template <> struct Vector<float> { typedef Floats type; static const int lanes = LANES_32; };
template <> struct Vector<double> { typedef Doubles type; static const int lanes = LANES_64; };

inline Floats load(const float* x) { return *(const Floats*)x; }
inline Doubles load(const double* x) { return *(const Doubles*)x; }
inline Floats load(const Half* x) {
    Words bits = __builtin_convertvector(*(const Halves*)x, Words) << 16;
    return (Floats)bits;
}

typedef float Floats8 __attribute__((vector_size(32)));
typedef float Floats4 __attribute__((vector_size(16)));
typedef double Doubles4 __attribute__((vector_size(32)));

inline Floats4 quarter(Floats x) {
    const Floats8 y = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    return __builtin_shufflevector(y, y, 0, 1, 2, 3) + __builtin_shufflevector(y, y, 4, 5, 6, 7);
}
inline float total(Floats x) {
    const Floats4 y = quarter(x);
    return (y[0] + y[2]) + (y[1] + y[3]);
}
inline double total(Doubles x) {
    const Doubles4 y = __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
    return (y[0] + y[2]) + (y[1] + y[3]);
}

// The totals of R vectors; of four floats at once, as adding up within a vector costs more than the products before.
template <int R, class V, class W> inline void totals(const V* x, W* out) {
    for (int r = 0; r < R; r++) out[r] = total(x[r]);
}
template <> inline void totals<4>(const Floats* x, float* out) {
    const Floats4 a = quarter(x[0]), b = quarter(x[1]), c = quarter(x[2]), d = quarter(x[3]);
    const Floats4 ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Floats4 cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Floats4 sums = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    std::memcpy(out, &sums, sizeof(sums));
}

// out[m][r] = sum over i of rows[r][i] * x[m][i], for M vectors and R rows that stand `stride` apart.
template <int R, int M, class S, class X>
inline void products(const S* rows, I stride, const X* const* x, I size, Wide<S> out[M][R]) {
    typedef typename Vector<Wide<S>>::type V;
    const int lanes = Vector<Wide<S>>::lanes;
    V sums[M][R] = {};
    I i = 0;
    for (; i + lanes <= size; i += lanes)
        for (int r = 0; r < R; r++) {
            V row = load(rows + r * stride + i);
            for (int m = 0; m < M; m++) sums[m][r] += row * load(x[m] + i);
        }
    for (int m = 0; m < M; m++) {
        totals<R>(sums[m], out[m]);
        for (int r = 0; r < R; r++)
            for (I j = i; j < size; j++) out[m][r] += wide(rows[r * stride + j]) * wide(x[m][j]);
    }
}

// As `products` for any number of rows; take(m, r, sum) receives each. Four quarters are read side by side, each in
// order: processors fetch that ahead, and four neighbouring rows of a page they do not (2.5 times slower).
template <int M, class S, class X, class Take>
inline void each_product(const S* rows, I count, I stride, const X* const* x, I size, Take take) {
    const I quarter = count / 4;
    for (I r = 0; r < quarter; r++) {
        Wide<S> out[M][4];
        products<4, M>(rows + r * stride, quarter * stride, x, size, out);
        for (int m = 0; m < M; m++)
            for (int j = 0; j < 4; j++) take(m, j * quarter + r, out[m][j]);
    }
    for (I r = 4 * quarter; r < count; r++) {
        Wide<S> out[M][1];
        products<1, M>(rows + r * stride, stride, x, size, out);
        for (int m = 0; m < M; m++) take(m, r, out[m][0]);
    }
}

}  // namespace
