// GPT-2's arithmetic on a GPU: the operations of src/ops/, forward and backward.

#include "values.cuh"

// What all threads of a block make of their values together; the number of threads is a multiple of 32.
template <typename Op, typename A> __device__ A together(A value) {
    __shared__ A parts[32];
    for (int step = 16; step > 0; step /= 2) value = Op::of(value, __shfl_xor_sync(0xffffffffu, value, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = parts[0];
    for (u32 i = 1; i < blockDim.x / 32; i++) value = Op::of(value, parts[i]);
    return value;
}

template <typename T, typename A> __device__ A mean_of(const T *x, u64 d) {
    A sum = 0;
    each(d, of_block(), [&](u64, A v) { sum += v; }, x);
    return together<Sum>(sum) / (A)d;
}

// Two passes: the mean of squares less the square of the mean cancels on the rows with huge activations that GPT-2 has.
template <typename T, typename A> __device__ A scale_of(const T *x, u64 d, A mean, A eps) {
    A sum = 0;
    each(d, of_block(), [&](u64, A v) { sum += (v - mean) * (v - mean); }, x);
    return root(together<Sum>(sum) / (A)d + eps);
}

// A block per row.

template <typename T> __device__ void norm_scale(const T *x, T *out, u64 d, double eps) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d;
    A s = scale_of<T, A>(row, d, mean_of<T, A>(row, d), (A)eps);
    if (threadIdx.x == 0) store(out + blockIdx.x, s);
}

template <typename T> __device__ void normalize(const T *x, const T *scale, T *out, u64 d) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d;
    A mean = mean_of<T, A>(row, d), s = load(scale[blockIdx.x]);
    map(out + blockIdx.x * d, d, of_block(), [&](u64, A v) { return (v - mean) / s; }, row);
}

template <typename T> __device__ void layer_norm(const T *x, const T *gain, const T *bias, T *out, u64 d, double eps) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d;
    A mean = mean_of<T, A>(row, d), s = scale_of<T, A>(row, d, mean, (A)eps);
    map(out + blockIdx.x * d, d, of_block(), [&](u64, A v, A g, A b) { return (v - mean) / s * g + b; }, row, gain, bias);
}

// (h - mean(h) - n mean(h n)) / s with h = g gain and n the normalised row.
template <typename T> __device__ void layer_norm_grad(const T *grad, const T *x, const T *gain, T *out, u64 d, double eps) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d, *own = grad + blockIdx.x * d;
    A mean = mean_of<T, A>(row, d), s = scale_of<T, A>(row, d, mean, (A)eps);
    A sum = 0, along = 0;
    each(d, of_block(), [&](u64, A g, A w, A v) { sum += g * w, along += g * w * (v - mean); }, own, gain, row);
    A mean_h = together<Sum>(sum) / (A)d;
    along = together<Sum>(along) / (s * s * (A)d);
    map(out + blockIdx.x * d, d, of_block(), [&](u64, A g, A w, A v) { return (g * w - mean_h - (v - mean) * along) / s; }, own, gain, row);
}

template <typename T> __device__ void affine(const T *x, const T *gain, const T *bias, T *out, u64 d) {
    typedef typename Real<T>::type A;
    map(out + blockIdx.x * d, d, of_block(), [](u64, A v, A g, A b) { return v * g + b; }, x + blockIdx.x * d, gain, bias);
}

template <typename T> __device__ void add_bias(T *x, const T *bias, u64 d) {
    typedef typename Real<T>::type A;
    T *row = x + blockIdx.x * d;
    map(row, d, of_block(), [](u64, A v, A b) { return v + b; }, row, bias);
}

#define SQRT_2_OVER_PI 0.79788456080286535588
#define CUBIC 0.044715

template <typename A> __device__ A tanh_gate(A x) {
    A u = (A)(-2 * SQRT_2_OVER_PI) * x * ((A)1 + (A)CUBIC * x * x);
    return (A)1 / ((A)1 + power_of_e(u));
}

template <typename A> __device__ A gelu_of(A x, u32 exact) { return x * (exact ? normal_cdf(x) : tanh_gate(x)); }

// GELU of x + bias in place, with the rounding between the two.
template <typename T> __device__ void bias_gelu(T *x, const T *bias, u32 exact, u64 d) {
    typedef typename Real<T>::type A;
    T *row = x + blockIdx.x * d;
    map(row, d, of_block(), [&](u64, A v, A b) { return gelu_of(rounded<T>(v + b), exact); }, row, bias);
}

template <typename T> __device__ void add(const T *a, const T *b, T *out, u64 n) {
    typedef typename Real<T>::type A;
    map(out, n, of_grid(), [](u64, A a, A b) { return a + b; }, a, b);
}

template <typename T> __device__ void gelu(const T *x, T *out, u32 exact, u64 n) {
    typedef typename Real<T>::type A;
    map(out, n, of_grid(), [&](u64, A v) { return gelu_of(v, exact); }, x);
}

template <typename T> __device__ void gelu_grad(const T *x, const T *grad, T *out, u32 exact, u64 n) {
    typedef typename Real<T>::type A;
    auto slope = [&](A v) {
        if (exact) return normal_cdf(v) + v * (A)0.39894228040143267794 * power_of_e((A)-0.5 * v * v);
        A s = tanh_gate(v);
        return s + v * s * ((A)1 - s) * (A)(2 * SQRT_2_OVER_PI) * ((A)1 + (A)(3 * CUBIC) * v * v);
    };
    map(out, n, of_grid(), [&](u64, A v, A g) { return g * slope(v); }, x, grad);
}

// Keys up to which a row is read: those that are reached, and what is left of 16 bytes.
template <typename T> __device__ u64 read_of(u64 reach, u64 keys) {
    u64 read = (reach + Pack<T>::N - 1) / Pack<T>::N * Pack<T>::N;
    return read < keys ? read : keys;
}

// A block per row of [prompt, head, query, key].

template <typename T>
__device__ void causal_softmax(const T *scores, T *out, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes) {
    typedef typename Real<T>::type A;
    u64 r = blockIdx.x, prompt = r / (heads * queries), reach = reach_of(r % queries, keys, offset), read = read_of<T>(reach, keys);
    const T *row = scores + r * keys;
    A lowest = -INFINITY, max = lowest, total = 0;
    auto seen = [&](u64 key) { return key < reach && !in_hole(holes, prompt, key); };
    each(reach, of_block(), [&](u64 i, A v) { max = seen(i) ? Max::of(max, v) : max; }, row);
    max = together<Max>(max);
    each(reach, of_block(), [&](u64 i, A v) { total += seen(i) && max != lowest ? power_of_e(v - max) : 0; }, row);
    total = together<Sum>(total);
    map(out + r * keys, read, of_block(), [&](u64 i, A v) { return seen(i) && max != lowest ? power_of_e(v - max) / total : (A)0; }, row);
    map(out + r * keys + read, keys - read, of_block(), [](u64) { return (A)0; });
}

// p (g - sum p g) over the keys that are reached; a hole has p = 0.
template <typename T> __device__ void causal_softmax_grad(const T *p, const T *g, T *out, u64 queries, u64 keys, u64 offset) {
    typedef typename Real<T>::type A;
    u64 r = blockIdx.x, reach = reach_of(r % queries, keys, offset), read = read_of<T>(reach, keys);
    A mean = 0;
    each(reach, of_block(), [&](u64, A p, A g) { mean += p * g; }, p + r * keys, g + r * keys);
    mean = together<Sum>(mean);
    map(out + r * keys, read, of_block(), [&](u64 i, A p, A g) { return i < reach ? p * (g - mean) : (A)0; }, p + r * keys, g + r * keys);
    map(out + r * keys + read, keys - read, of_block(), [](u64) { return (A)0; });
}

template <typename T>
__device__ void hide(T *map, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes, double value) {
    u64 r = blockIdx.x, prompt = r / (heads * queries), reach = reach_of(r % queries, keys, offset);
    for (u64 i = threadIdx.x; i < keys; i += blockDim.x)
        if (i >= reach || in_hole(holes, prompt, i)) store(map + r * keys + i, (typename Real<T>::type)value);
}

// [prompt, pos, head, dim] with any strides to [prompt, head, pos, dim], or that to a contiguous [prompt, pos, head, dim]: a block per
// prompt and position.
template <typename U> __device__ void turn(const U *x, U *out, u64 pos, u32 heads, u32 dim, u64 s0, u64 s1, u64 s2, bool packs) {
    u64 p = blockIdx.x % pos, prompt = blockIdx.x / pos;
    for (u32 i = threadIdx.x; i < heads * dim; i += blockDim.x) {
        u32 head = i / dim, at = i % dim;
        u64 turned = ((prompt * heads + head) * pos + p) * dim + at;
        if (packs) out[turned] = x[prompt * s0 + p * s1 + head * s2 + at];
        else out[(u64)blockIdx.x * heads * dim + i] = x[turned];
    }
}

template <typename T> __device__ void turn_heads(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 s0, u64 s1, u64 s2, bool packs) {
    constexpr u32 N = Pack<T>::N;
    if (aligned(x, out) && (dim | s0 | s1 | s2) % N == 0)
        turn((const Pack<T> *)x, (Pack<T> *)out, pos, heads, dim / N, s0 / N, s1 / N, s2 / N, packs);
    else turn(x, out, pos, heads, dim, s0, s1, s2, packs);
}

#define IGNORE 0xffffffffu

// The largest of a row of logits, and the sum of the powers.
template <typename T, typename A> __device__ void powers_of(const T *row, u64 n, A &max, A &total) {
    max = -INFINITY, total = 0;
    each(n, of_block(), [&](u64, A v) { max = Max::of(max, v); }, row);
    max = together<Max>(max);
    each(n, of_block(), [&](u64, A v) { total += power_of_e(v - max); }, row);
    total = together<Sum>(total);
}

// A block per row of logits, which may be any distance apart.
template <typename T>
__device__ void cross_entropy(const T *logits, typename Real<T>::type *out, const u32 *targets, u64 vocab, u64 apart) {
    typename Real<T>::type max, total;
    u32 target = targets[blockIdx.x];
    const T *row = logits + blockIdx.x * apart;
    if (target != IGNORE) powers_of(row, vocab, max, total);
    if (threadIdx.x == 0) out[blockIdx.x] = target == IGNORE ? 0 : logarithm(total) - (load(row[target]) - max);
}

// g (softmax - one-hot) in place of the logits.
template <typename T>
__device__ void cross_entropy_grad(T *logits, const typename Real<T>::type *grad, const u32 *targets, u64 vocab, u64 apart) {
    typedef typename Real<T>::type A;
    u32 target = targets[blockIdx.x];
    T *row = logits + blockIdx.x * apart;
    if (target == IGNORE) return map(row, vocab, of_block(), [](u64) { return (A)0; });
    A max, total, g = grad[blockIdx.x];
    powers_of(row, vocab, max, total);
    map(row, vocab, of_block(), [&](u64 i, A v) { return power_of_e(v - max) * (g / total) - (i == target ? g : (A)0); }, row);
}

// Column sums in two steps: a block adds up `tall` rows of 32 columns, then the parts are added in their order. With y, those of x y.
template <typename T>
__device__ void sum_rows_parts(const T *x, const T *y, typename Real<T>::type *parts, u64 rows, u64 d, u64 tall) {
    typedef typename Real<T>::type A;
    __shared__ A lanes[8][33];
    u64 column = (u64)blockIdx.x * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
    u64 first = (u64)blockIdx.y * tall, end = first + tall < rows ? first + tall : rows;
    A sum = 0;
    if (column < d)
        for (u64 row = first + lane; row < end; row += 8) {
            A value = load(x[row * d + column]);
            sum += y ? value * (A)load(y[row * d + column]) : value;
        }
    lanes[lane][threadIdx.x % 32] = sum;
    __syncthreads();
    if (lane == 0 && column < d) {
        for (u32 i = 1; i < 8; i++) sum += lanes[i][threadIdx.x];
        parts[(u64)blockIdx.y * d + column] = sum;
    }
}

template <typename A> __device__ void sum_rows_whole(const A *parts, A *out, u64 count, u64 d, u32 add) {
    EACH(i, d) {
        A sum = add ? out[i] : (A)0;
        for (u64 part = 0; part < count; part++) sum += parts[part * d + i];
        out[i] = sum;
    }
}

// A block per row of the table that is met: adds the rows of `x` that are `order[starts[i]..starts[i + 1]]` to row `met[i]`.
template <typename T>
__device__ void add_rows(typename Real<T>::type *table, const T *x, const u32 *met, const u32 *starts, const u32 *order, u64 d) {
    u64 to = met[blockIdx.x];
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        typename Real<T>::type sum = table[to * d + i];
        for (u32 at = starts[blockIdx.x]; at < starts[blockIdx.x + 1]; at++) sum += load(x[(u64)order[at] * d + i]);
        table[to * d + i] = sum;
    }
}

struct Adam { double scale, mean, square, step, correction, eps, decay; };

template <typename T> __device__ void adamw(T *p, T *m, T *v, const T *grad, Adam adam, u64 n) {
    typedef typename Real<T>::type A;
    EACH(i, n) {
        A g = (A)adam.scale * load(grad[i]);
        A mean = (A)adam.mean * load(m[i]) + (A)(1 - adam.mean) * g, square = (A)adam.square * load(v[i]) + (A)(1 - adam.square) * (g * g);
        store(m + i, mean);
        store(v + i, square);
        store(p + i, load(p[i]) * (A)adam.decay - (A)adam.step * mean / (root(square) * (A)adam.correction + (A)adam.eps));
    }
}

// A box of up to five dimensions into a tensor; leading dimensions that are not there are 1.
struct Box { u64 size[5], stride[5], start; };

template <typename T> __device__ void write_box(T *out, const T *part, Box box, u64 n) {
    EACH(i, n) {
        u64 rest = i, at = box.start;
        for (int dim = 4; dim >= 0; dim--) {
            at += rest % box.size[dim] * box.stride[dim];
            rest /= box.size[dim];
        }
        out[at] = part[i];
    }
}

template <typename T> __device__ void not_finite(const T *x, u32 *flag, u64 n) {
    typedef typename Real<T>::type A;
    each(n, of_grid(), [&](u64, A v) {
        if (v - v != 0) *flag = 1; // whichever thread writes, it writes the same
    }, x);
}

// Squares added up in f64, a part per block.
template <typename T> __device__ void squares(const T *x, double *parts, u64 n) {
    double sum = 0;
    each(n, of_grid(), [&](u64, double v) { sum += v * v; }, x);
    sum = together<Sum>(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

#define KERNELS(T, S)                                                                                                          \
    extern "C" __global__ void norm_scale_##S(const T *x, T *out, u64 d, double eps) { norm_scale(x, out, d, eps); }           \
    extern "C" __global__ void normalize_##S(const T *x, const T *s, T *out, u64 d) { normalize(x, s, out, d); }               \
    extern "C" __global__ void layer_norm_##S(const T *x, const T *gain, const T *bias, T *out, u64 d, double eps) {           \
        layer_norm(x, gain, bias, out, d, eps);                                                                                \
    }                                                                                                                          \
    extern "C" __global__ void layer_norm_grad_##S(const T *g, const T *x, const T *gain, T *out, u64 d, double eps) {         \
        layer_norm_grad(g, x, gain, out, d, eps);                                                                              \
    }                                                                                                                          \
    extern "C" __global__ void affine_##S(const T *x, const T *gain, const T *bias, T *out, u64 d) { affine(x, gain, bias, out, d); } \
    extern "C" __global__ void add_bias_##S(T *x, const T *bias, u64 d) { add_bias(x, bias, d); }                              \
    extern "C" __global__ void bias_gelu_##S(T *x, const T *bias, u64 d, u32 exact) { bias_gelu(x, bias, exact, d); }          \
    extern "C" __global__ void add_##S(const T *a, const T *b, T *out, u64 n) { add(a, b, out, n); }                           \
    extern "C" __global__ void causal_softmax_##S(const T *x, T *out, u64 heads, u64 queries, u64 keys, u64 offset,            \
                                                  const u32 *holes) {                                                          \
        causal_softmax(x, out, heads, queries, keys, offset, holes);                                                           \
    }                                                                                                                          \
    extern "C" __global__ void causal_softmax_grad_##S(const T *p, const T *g, T *out, u64 queries, u64 keys, u64 offset) {    \
        causal_softmax_grad(p, g, out, queries, keys, offset);                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void hide_##S(T *map, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes, double value) { \
        hide(map, heads, queries, keys, offset, holes, value);                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void pack_##S(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 s0, u64 s1, u64 s2) {             \
        turn_heads(x, out, pos, heads, dim, s0, s1, s2, true);                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void unpack_##S(const T *x, T *out, u64 pos, u64 heads, u64 dim) {                                   \
        turn_heads(x, out, pos, heads, dim, 0, 0, 0, false);                                                                   \
    }                                                                                                                          \
    extern "C" __global__ void gelu_##S(const T *x, T *out, u32 exact, u64 n) { gelu(x, out, exact, n); }                      \
    extern "C" __global__ void gelu_grad_##S(const T *x, const T *g, T *out, u32 exact, u64 n) {                               \
        gelu_grad(x, g, out, exact, n);                                                                                        \
    }                                                                                                                          \
    extern "C" __global__ void cross_entropy_##S(const T *x, Real<T>::type *out, const u32 *targets, u64 vocab, u64 apart) {   \
        cross_entropy(x, out, targets, vocab, apart);                                                                          \
    }                                                                                                                          \
    extern "C" __global__ void cross_entropy_grad_##S(T *x, const Real<T>::type *g, const u32 *targets, u64 vocab,             \
                                                      u64 apart) {                                                             \
        cross_entropy_grad(x, g, targets, vocab, apart);                                                                       \
    }                                                                                                                          \
    extern "C" __global__ void sum_rows_parts_##S(const T *x, const T *y, Real<T>::type *parts, u64 rows, u64 d, u64 tall) {   \
        sum_rows_parts(x, y, parts, rows, d, tall);                                                                            \
    }                                                                                                                          \
    extern "C" __global__ void sum_rows_whole_##S(const Real<T>::type *parts, Real<T>::type *out, u64 count, u64 d, u32 add) { \
        sum_rows_whole(parts, out, count, d, add);                                                                             \
    }                                                                                                                          \
    extern "C" __global__ void add_rows_##S(Real<T>::type *table, const T *x, const u32 *met, const u32 *starts,               \
                                            const u32 *order, u64 d) {                                                         \
        add_rows(table, x, met, starts, order, d);                                                                             \
    }                                                                                                                          \
    extern "C" __global__ void adamw_##S(T *p, T *m, T *v, const T *grad, double scale, double mean, double square, double step, \
                                         double correction, double eps, double decay, u64 n) {                                 \
        adamw(p, m, v, grad, Adam{scale, mean, square, step, correction, eps, decay}, n);                                      \
    }                                                                                                                          \
    extern "C" __global__ void write_box_##S(T *out, const T *part, u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 b0, u64 b1,    \
                                             u64 b2, u64 b3, u64 b4, u64 start, u64 n) {                                       \
        Box box = {{a0, a1, a2, a3, a4}, {b0, b1, b2, b3, b4}, start};                                                         \
        write_box(out, part, box, n);                                                                                          \
    }                                                                                                                          \
    extern "C" __global__ void not_finite_##S(const T *x, u32 *flag, u64 n) { not_finite(x, flag, n); }                        \
    extern "C" __global__ void squares_##S(const T *x, double *parts, u64 n) { squares(x, parts, n); }

KERNELS(float, f32)
KERNELS(double, f64)
KERNELS(__half, f16)
KERNELS(__nv_bfloat16, bf16)
