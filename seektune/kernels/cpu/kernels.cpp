// The library: each kernel for each dtype, under a name that a program can look up.
#include "attention.h"
#include "block.h"

// A function for each dtype: NAME_f32, NAME_bf16, NAME_f64.
#define FOR_EACH_DTYPE(NAME, SIGNATURE, CALL)                          \
    extern "C" void NAME##_f32 SIGNATURE(float, float) { NAME CALL; }   \
    extern "C" void NAME##_bf16 SIGNATURE(Half, float) { NAME CALL; }    \
    extern "C" void NAME##_f64 SIGNATURE(double, double) { NAME CALL; }

#define READ(S, W)                                                                                               \
    (const S* streams, const W* fn, const W* base, const W* scale, S* y, W* write, W* mix, I tokens, I n,        \
     I width, I iterations, double eps, double norm_eps)
FOR_EACH_DTYPE(hyper_read, READ,
               (streams, fn, base, scale, y, write, mix, tokens, n, width, iterations, eps, norm_eps))

#define COLLECT(S, W)                                                                                            \
    (const S* streams, const W* fn, const W* base, const W* scale, S* y, I tokens, I n, I width, double eps,     \
     double norm_eps)
FOR_EACH_DTYPE(hyper_collect, COLLECT, (streams, fn, base, scale, y, tokens, n, width, eps, norm_eps))

#define WRITE(S, W)                                                                                              \
    (const S* streams, const S* y, const W* write, const W* mix, S* out, I tokens, I n, I width)
FOR_EACH_DTYPE(hyper_write, WRITE, (streams, y, write, mix, out, tokens, n, width))

#define NORM(S, W) (const S* x, const S* weight, S* out, I vectors, I width, double eps)
FOR_EACH_DTYPE(rms_norm, NORM, (x, weight, out, vectors, width, eps))

#define ROTATE(S, W) (const S* x, const W* cos, const W* sin, S* out, I vectors, I heads, I width, I pairs)
FOR_EACH_DTYPE(rotate, ROTATE, (x, cos, sin, out, vectors, heads, width, pairs))

#define UNIT(S, W) (const S* x, const W* cos, const W* sin, S* out, I vectors, I heads, I width, I pairs, double eps)
FOR_EACH_DTYPE(norm_rope, UNIT, (x, cos, sin, out, vectors, heads, width, pairs, eps))

#define SWIGLU(S, W) (const S* gate, const S* up, W* out, I count, double limit)
FOR_EACH_DTYPE(clamped_swiglu, SWIGLU, (gate, up, out, count, limit))

#define POOL(W)                                                                                                    \
    (const W* values, const W* gates, const W* ape, const I* last, const I* position, W* out, W* room, I rows,     \
     I entries, I row_stride, I stride, I window, I channels, I overlap) {                                         \
        pool_windows(values, gates, ape, last, position, out, room, rows, entries, row_stride, stride, window,     \
                     channels, overlap);                                                                           \
    }
extern "C" void pool_windows_f32 POOL(float)
extern "C" void pool_windows_f64 POOL(double)

#define LINEAR(S, W) (const S* x, const S* weight, S* out, I tokens, I groups, I inputs, I outputs)
FOR_EACH_DTYPE(grouped_linear, LINEAR, (x, weight, out, tokens, groups, inputs, outputs))

#define SORT(W)                                                                                        \
    (const I* chosen, const W* weights, I* tokens, W* sorted, I* counts, I pairs, I each, I experts) { \
        sort_pairs(chosen, weights, tokens, sorted, counts, pairs, each, experts);                     \
    }
extern "C" void sort_pairs_f32 SORT(float)
extern "C" void sort_pairs_f64 SORT(double)

#define ROUTE(W)                                                                                       \
    (const W* logits, const W* bias, W* scores, I* chosen, W* weights, I tokens, I experts, I k,       \
     double factor) {                                                                                  \
        route(logits, bias, scores, chosen, weights, tokens, experts, k, W(factor));                   \
    }
extern "C" void route_f32 ROUTE(float)
extern "C" void route_f64 ROUTE(double)

#define EXPERTS(S, W)                                                                                              \
    (const S* x, const I* tokens, const W* weights, const S* w1, const S* w2, const S* w3, const I* counts, W* out, \
     S* room, I experts, I width, I inner, double limit)
FOR_EACH_DTYPE(expert_mlp, EXPERTS,
               (x, tokens, weights, w1, w2, w3, counts, out, room, experts, width, inner, limit))

#define ATTENTION(S, W)                                                                                            \
    (const S* q, const S* keys, const S* entries, const W* sink, const I* positions, const I* list,                \
     const I* firsts, const I* counts, S* out, W* room, I rows, I queries, I held, I heads, I width, I window,     \
     I listed, I keys_stride, I entries_stride, I entries_held)
FOR_EACH_DTYPE(sparse_attention, ATTENTION,
               (q, keys, entries, sink, positions, list, firsts, counts, out, room, rows, queries, held, heads, width,
                window, listed, keys_stride, entries_stride, entries_held))

#define INDEX(S, W)                                                                                                \
    (const S* q, const S* keys, const S* weights, const I* firsts, const I* counts, I* out, W* scores, W* room,   \
     I rows, I queries, I heads, I width, I keys_stride, I k)
FOR_EACH_DTYPE(index_topk, INDEX,
               (q, keys, weights, firsts, counts, out, scores, room, rows, queries, heads, width, keys_stride, k))

#define ENTER(S, W) (void* const* addresses, const I* sizes, double hyper_eps, double eps)
#define LEAVE(S, W) (void* const* addresses, const I* sizes, double hyper_eps, double eps, double factor, double limit)
#define EACH(NAME, SIGNATURE, NUMBERS)                                             \
    extern "C" void NAME##_f32 SIGNATURE(float, float) { NAME<float> NUMBERS; }    \
    extern "C" void NAME##_bf16 SIGNATURE(Half, float) { NAME<Half> NUMBERS; }     \
    extern "C" void NAME##_f64 SIGNATURE(double, double) { NAME<double> NUMBERS; }
EACH(block_enter, ENTER, (addresses, sizes, hyper_eps, eps))
EACH(block_leave, LEAVE, (addresses, sizes, hyper_eps, eps, factor, limit))
