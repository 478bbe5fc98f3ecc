// GPT-2's arithmetic on a GPU: the operations of src/ops/, forward and backward.
//
// Storage is f32, f64, f16 or bf16; everything is computed, and every sum is kept, in f32 (f64 for f64). Sums run in a fixed order,
// so that the same input gives the same bits on the same device. Sizes are 64 bits wide: a batch of attention maps has more
// elements than 32 bits count. Nothing is atomic but a flag.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef unsigned int u32;
typedef unsigned long long u64;

template <typename T> struct Real { typedef float type; };
template <> struct Real<double> { typedef double type; };

__device__ inline float load(float x) { return x; }
__device__ inline double load(double x) { return x; }
__device__ inline float load(__half x) { return __half2float(x); }
__device__ inline float load(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void store(float *p, float x) { *p = x; }
__device__ inline void store(double *p, double x) { *p = x; }
__device__ inline void store(__half *p, float x) { *p = __float2half_rn(x); }
__device__ inline void store(__nv_bfloat16 *p, float x) { *p = __float2bfloat16_rn(x); }

__device__ inline float root(float x) { return sqrtf(x); }
__device__ inline double root(double x) { return sqrt(x); }
__device__ inline float power_of_e(float x) { return expf(x); }
__device__ inline double power_of_e(double x) { return exp(x); }
__device__ inline float logarithm(float x) { return logf(x); }
__device__ inline double logarithm(double x) { return log(x); }
__device__ inline float normal_cdf(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
__device__ inline double normal_cdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752440); }

#define EACH(i, n) for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += (u64)gridDim.x * blockDim.x)

struct Sum { template <typename A> __device__ static A of(A a, A b) { return a + b; } };
// NaN wins, as it does on the CPU.
struct Max { template <typename A> __device__ static A of(A a, A b) { return a > b || a != a ? a : b; } };

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
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) sum += load(x[i]);
    return together<Sum>(sum) / (A)d;
}

// Two passes: the mean of squares less the square of the mean cancels on the rows with huge activations that GPT-2 has.
template <typename T, typename A> __device__ A scale_of(const T *x, u64 d, A mean, A eps) {
    A sum = 0;
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        A away = load(x[i]) - mean;
        sum += away * away;
    }
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
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) store(out + blockIdx.x * d + i, (load(row[i]) - mean) / s);
}

template <typename T> __device__ void layer_norm(const T *x, const T *gain, const T *bias, T *out, u64 d, double eps) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d;
    A mean = mean_of<T, A>(row, d), s = scale_of<T, A>(row, d, mean, (A)eps);
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        A n = (load(row[i]) - mean) / s;
        store(out + blockIdx.x * d + i, n * load(gain[i]) + load(bias[i]));
    }
}

// (h - mean(h) - n mean(h n)) / s with h = g gain and n the normalised row.
template <typename T> __device__ void layer_norm_grad(const T *grad, const T *x, const T *gain, T *out, u64 d, double eps) {
    typedef typename Real<T>::type A;
    const T *row = x + blockIdx.x * d, *g = grad + blockIdx.x * d;
    A mean = mean_of<T, A>(row, d), s = scale_of<T, A>(row, d, mean, (A)eps);
    A sum = 0, along = 0;
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        A h = load(g[i]) * load(gain[i]);
        sum += h;
        along += h * (load(row[i]) - mean);
    }
    A mean_h = together<Sum>(sum) / (A)d;
    along = together<Sum>(along) / (s * s * (A)d);
    for (u64 i = threadIdx.x; i < d; i += blockDim.x) {
        A h = load(g[i]) * load(gain[i]);
        store(out + blockIdx.x * d + i, (h - mean_h - (load(row[i]) - mean) * along) / s);
    }
}

template <typename T> __device__ void affine(const T *x, const T *gain, const T *bias, T *out, u64 d, u64 n) {
    EACH(i, n) store(out + i, load(x[i]) * load(gain[i % d]) + load(bias[i % d]));
}

template <typename T> __device__ void add_bias(T *x, const T *bias, u64 d, u64 n) {
    EACH(i, n) store(x + i, load(x[i]) + load(bias[i % d]));
}

template <typename T> __device__ void add(const T *a, const T *b, T *out, u64 n) {
    EACH(i, n) store(out + i, load(a[i]) + load(b[i]));
}

// Which keys a query sees: those up to its own position, but for a hole (first and end per prompt; none for a null pointer).
__device__ inline u64 reach_of(u64 query, u64 keys, u64 offset) {
    u64 reach = query + offset + 1;
    return reach < keys ? reach : keys;
}

__device__ inline bool in_hole(const u32 *holes, u64 prompt, u64 key) {
    return holes && key >= holes[2 * prompt] && key < holes[2 * prompt + 1];
}

// A block per row of [prompt, head, query, key].
template <typename T>
__device__ void causal_softmax(const T *scores, T *out, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes) {
    typedef typename Real<T>::type A;
    u64 r = blockIdx.x, prompt = r / (heads * queries), reach = reach_of(r % queries, keys, offset);
    const T *row = scores + r * keys;
    A lowest = -INFINITY, max = lowest, total = 0;
    for (u64 i = threadIdx.x; i < reach; i += blockDim.x)
        if (!in_hole(holes, prompt, i)) max = Max::of(max, (A)load(row[i]));
    max = together<Max>(max);
    for (u64 i = threadIdx.x; i < reach; i += blockDim.x)
        if (!in_hole(holes, prompt, i) && max != lowest) total += power_of_e(load(row[i]) - max);
    total = together<Sum>(total);
    for (u64 i = threadIdx.x; i < keys; i += blockDim.x) {
        bool seen = i < reach && !in_hole(holes, prompt, i) && max != lowest;
        store(out + r * keys + i, seen ? power_of_e(load(row[i]) - max) / total : (A)0);
    }
}

// p (g - sum p g) over the keys that are reached; a hole has p = 0.
template <typename T> __device__ void causal_softmax_grad(const T *p, const T *g, T *out, u64 queries, u64 keys, u64 offset) {
    typedef typename Real<T>::type A;
    u64 r = blockIdx.x, reach = reach_of(r % queries, keys, offset);
    A mean = 0;
    for (u64 i = threadIdx.x; i < reach; i += blockDim.x) mean += load(p[r * keys + i]) * load(g[r * keys + i]);
    mean = together<Sum>(mean);
    for (u64 i = threadIdx.x; i < keys; i += blockDim.x)
        store(out + r * keys + i, i < reach ? load(p[r * keys + i]) * (load(g[r * keys + i]) - mean) : (A)0);
}

template <typename T>
__device__ void hide(T *map, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes, double value, u64 n) {
    typedef typename Real<T>::type A;
    EACH(i, n) {
        u64 key = i % keys, r = i / keys;
        if (key >= reach_of(r % queries, keys, offset) || in_hole(holes, r / (heads * queries), key)) store(map + i, (A)value);
    }
}

// [prompt, pos, head, dim] with any strides to [prompt, head, pos, dim].
template <typename T>
__device__ void pack(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 s0, u64 s1, u64 s2, u64 n) {
    EACH(i, n) {
        u64 at = i % dim, p = i / dim % pos, head = i / (dim * pos) % heads, prompt = i / (dim * pos * heads);
        out[i] = x[prompt * s0 + p * s1 + head * s2 + at];
    }
}

// [prompt, head, pos, dim] to [prompt, pos, head, dim].
template <typename T> __device__ void unpack(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 n) {
    EACH(i, n) {
        u64 at = i % dim, head = i / dim % heads, p = i / (dim * heads) % pos, prompt = i / (dim * heads * pos);
        out[i] = x[((prompt * heads + head) * pos + p) * dim + at];
    }
}

#define SQRT_2_OVER_PI 0.79788456080286535588
#define CUBIC 0.044715

template <typename A> __device__ A tanh_gate(A x) {
    A u = (A)(-2 * SQRT_2_OVER_PI) * x * ((A)1 + (A)CUBIC * x * x);
    return (A)1 / ((A)1 + power_of_e(u));
}

template <typename T> __device__ void gelu(const T *x, T *out, u32 exact, u64 n) {
    typedef typename Real<T>::type A;
    EACH(i, n) {
        A v = load(x[i]);
        store(out + i, v * (exact ? normal_cdf(v) : tanh_gate(v)));
    }
}

template <typename T> __device__ void gelu_grad(const T *x, const T *grad, T *out, u32 exact, u64 n) {
    typedef typename Real<T>::type A;
    EACH(i, n) {
        A v = load(x[i]), slope;
        if (exact) {
            slope = normal_cdf(v) + v * (A)0.39894228040143267794 * power_of_e((A)-0.5 * v * v);
        } else {
            A s = tanh_gate(v);
            slope = s + v * s * ((A)1 - s) * (A)(2 * SQRT_2_OVER_PI) * ((A)1 + (A)(3 * CUBIC) * v * v);
        }
        store(out + i, (A)load(grad[i]) * slope);
    }
}

#define IGNORE 0xffffffffu

template <typename T, typename A> __device__ A max_of(const T *row, u64 n) {
    A max = -INFINITY;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) max = Max::of(max, (A)load(row[i]));
    return together<Max>(max);
}

template <typename T, typename A> __device__ A total_of(const T *row, u64 n, A max) {
    A total = 0;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) total += power_of_e(load(row[i]) - max);
    return together<Sum>(total);
}

// A block per row of logits, which may be any distance apart.
template <typename T>
__device__ void cross_entropy(const T *logits, typename Real<T>::type *out, const u32 *targets, u64 vocab, u64 apart) {
    typedef typename Real<T>::type A;
    u32 target = targets[blockIdx.x];
    if (target == IGNORE) {
        if (threadIdx.x == 0) out[blockIdx.x] = 0;
        return;
    }
    const T *row = logits + blockIdx.x * apart;
    A max = max_of<T, A>(row, vocab), total = total_of<T, A>(row, vocab, max);
    if (threadIdx.x == 0) out[blockIdx.x] = logarithm(total) - (load(row[target]) - max);
}

// g (softmax - one-hot) in place of the logits.
template <typename T>
__device__ void cross_entropy_grad(T *logits, const typename Real<T>::type *grad, const u32 *targets, u64 vocab, u64 apart) {
    typedef typename Real<T>::type A;
    u32 target = targets[blockIdx.x];
    T *row = logits + blockIdx.x * apart;
    if (target == IGNORE) {
        for (u64 i = threadIdx.x; i < vocab; i += blockDim.x) store(row + i, (A)0);
        return;
    }
    A g = grad[blockIdx.x];
    A max = max_of<T, A>(row, vocab), factor = g / total_of<T, A>(row, vocab, max);
    for (u64 i = threadIdx.x; i < vocab; i += blockDim.x)
        store(row + i, power_of_e(load(row[i]) - max) * factor - (i == target ? g : (A)0));
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
    EACH(i, n) {
        typename Real<T>::type v = load(x[i]);
        if (v - v != 0) *flag = 1; // whichever thread writes, it writes the same
    }
}

// Squares added up in f64, a part per block.
template <typename T> __device__ void squares(const T *x, double *parts, u64 n) {
    double sum = 0;
    EACH(i, n) {
        double v = load(x[i]);
        sum += v * v;
    }
    sum = together<Sum>(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// Attention as a whole, for 16 bits: what the product of q and k, the softmax and the product with v do one after the other, with the
// same roundings, but no map in memory. Sums go first over all keys, then what they weigh is added up.

// a b + c of 16 x 16, 16 x 8: the tensor cores' fragments, as PTX's mma.m16n8k16 lays them out.
__device__ inline void multiply_add(float c[4], const u32 a[4], const u32 b[2], __half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void multiply_add(float c[4], const u32 a[4], const u32 b[2], __nv_bfloat16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <typename T> __device__ u32 two(float first, float second) {
    T pair[2];
    store(pair, first);
    store(pair + 1, second);
    return *(unsigned short *)pair | (u32) * (unsigned short *)(pair + 1) << 16;
}

// Queries of a block: 16 for each of its four warps; keys that it looks at together.
#define QUERIES 64
#define KEYS 64

// Strides of [prompt, pos, head, dim], whose last is 1.
struct Strides { u64 prompt, pos, head; };

// Rows of keys or values into shared memory, 16 bytes at a time; zeros behind the last.
template <typename T, int D> __device__ void fetch(T (*tile)[D + 8], const T *x, u64 stride, u64 first, u64 keys) {
    for (u32 i = threadIdx.x; i < KEYS * D / 8; i += blockDim.x) {
        u32 row = i / (D / 8), column = i % (D / 8) * 8;
        uint4 part = {0, 0, 0, 0};
        if (first + row < keys) part = *(const uint4 *)(x + (first + row) * stride + column);
        *(uint4 *)&tile[row][column] = part;
    }
}

// The tensors of attention: [prompt, pos, head, dim] each, and the mask.
template <typename T> struct Heads {
    const T *q, *k, *v;
    u64 heads, queries, keys, offset;
    Strides at_q, at_k, at_v;
    const u32 *holes;
    float scale;
    // Those of a block's head.
    u64 prompt, head;
    __device__ void of_block() {
        prompt = blockIdx.x / heads, head = blockIdx.x % heads;
        q += prompt * at_q.prompt + head * at_q.head;
        k += prompt * at_k.prompt + head * at_k.head;
        v += prompt * at_v.prompt + head * at_v.head;
    }
};

// Rows `row` and `row` + 8 as the left factor's fragments; zeros behind the last.
template <typename T, int D> __device__ void own_rows(u32 own[D / 16][4], const T *x, u64 stride, u64 row, u64 rows) {
    for (int i = 0; i < D / 16; i++)
        for (int j = 0; j < 4; j++) {
            u64 r = row + j % 2 * 8, column = i * 16 + threadIdx.x % 4 * 2 + j / 2 * 8;
            own[i][j] = r < rows ? *(const u32 *)(x + r * stride + column) : 0;
        }
}

// A product of own rows with rows `n` * 8 and on of a tile.
template <typename T, int D> __device__ void product_of(float sum[4], const u32 own[D / 16][4], T (*tile)[D + 8], int n) {
    u32 lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) sum[i] = 0;
    for (int k = 0; k < D / 16; k++) {
        const T *at = &tile[n * 8 + lane / 4][k * 16 + lane % 4 * 2];
        u32 b[2] = {*(const u32 *)at, *(const u32 *)(at + 8)};
        multiply_add(sum, own[k], b, T());
    }
}

// Adds what a fragment of 16 weights of rows j * 16 and on of a tile makes of them.
template <typename T, int D> __device__ void weigh(float sum[D / 8][4], const u32 weights[4], T (*tile)[D + 8], int j) {
    u32 lane = threadIdx.x % 32;
    for (int n = 0; n < D / 16; n++) {
        u32 b[4], at = (u32)__cvta_generic_to_shared(&tile[j * 16 + lane % 16][n * 16 + lane / 16 * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                     : "r"(at)
                     : "memory");
        multiply_add(sum[2 * n], weights, b, T());
        multiply_add(sum[2 * n + 1], weights, b + 2, T());
    }
}

template <typename T> __device__ float rounded(float x) {
    T kept;
    store(&kept, x);
    return load(kept);
}

template <typename T, int D>
__device__ void store_rows(T *out, const float sum[D / 8][4], u64 stride, u64 row, u64 rows, float factor) {
    for (int r = 0; r < 2; r++)
        if (row + r * 8 < rows)
            for (int n = 0; n < D / 8; n++)
                *(u32 *)(out + (row + r * 8) * stride + n * 8 + threadIdx.x % 4 * 2) = two<T>(factor * sum[n][2 * r], factor * sum[n][2 * r + 1]);
}

// scale q k for 16 queries and all keys of a tile, rounded as they would be in memory; -infinity where they are hidden.
template <typename T, int D>
__device__ void scores_of(float s[KEYS / 8][4], const u32 q[D / 16][4], T (*tile)[D + 8], const Heads<T> &x, u64 query, u64 first) {
    for (int n = 0; n < KEYS / 8; n++) {
        float sum[4];
        product_of<T, D>(sum, q, tile, n);
        for (int i = 0; i < 4; i++) {
            u64 key = first + n * 8 + threadIdx.x % 4 * 2 + i % 2;
            bool seen = key < reach_of(query + i / 2 * 8, x.keys, x.offset) && !in_hole(x.holes, x.prompt, key);
            s[n][i] = seen ? rounded<T>(sum[i] * x.scale) : -INFINITY;
        }
    }
}

// The largest score of each of two rows, and the sum of the powers.
template <typename T, int D>
__device__ void sums_of(float max[2], float total[2], const u32 q[D / 16][4], T (*tile)[D + 8], const Heads<T> &x, u64 query, u64 end) {
    float s[KEYS / 8][4];
    for (int row = 0; row < 2; row++) max[row] = -INFINITY, total[row] = 0;
    // Of a lane's own keys, then of all.
    for (u64 first = 0; first < end; first += KEYS) {
        __syncthreads();
        fetch<T, D>(tile, x.k, x.at_k.pos, first, x.keys);
        __syncthreads();
        scores_of<T, D>(s, q, tile, x, query, first);
        for (int row = 0; row < 2; row++) {
            float now = max[row];
            for (int n = 0; n < KEYS / 8; n++) now = Max::of(s[n][2 * row + 1], Max::of(s[n][2 * row], now));
            if (now == -INFINITY) continue;
            total[row] *= power_of_e(max[row] - now);
            for (int n = 0; n < KEYS / 8; n++) total[row] += power_of_e(s[n][2 * row] - now) + power_of_e(s[n][2 * row + 1] - now);
            max[row] = now;
        }
    }
    for (int row = 0; row < 2; row++)
        for (int step = 1; step < 4; step *= 2) {
            float other = __shfl_xor_sync(0xffffffffu, max[row], step), more = __shfl_xor_sync(0xffffffffu, total[row], step);
            float now = Max::of(max[row], other);
            if (now != -INFINITY) total[row] = total[row] * power_of_e(max[row] - now) + more * power_of_e(other - now);
            max[row] = now;
        }
}

__device__ inline float probability(float score, float max, float total) {
    return max == -INFINITY ? 0 : power_of_e(score - max) / total;
}

// The first query of a block, and how many keys its last sees. Blocks with many keys begin first.
template <typename T> __device__ u64 first_query(const Heads<T> &x, u64 &end) {
    u64 begin = (u64)(gridDim.y - 1 - blockIdx.y) * QUERIES, last = begin + QUERIES - 1 < x.queries ? begin + QUERIES - 1 : x.queries - 1;
    end = reach_of(last, x.keys, x.offset);
    return begin;
}

// A block per head and 64 queries.
template <typename T, int D> __device__ void attention(Heads<T> x, T *out) {
    // Rows are 16 bytes longer than what they hold, so that lanes that read a column meet other banks.
    __shared__ __align__(16) T tile_k[KEYS][D + 8];
    __shared__ __align__(16) T tile_v[KEYS][D + 8];
    x.of_block();
    u64 end, query = first_query(x, end) + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    u32 q[D / 16][4];
    own_rows<T, D>(q, x.q, x.at_q.pos, query, x.queries);
    float max[2], total[2], s[KEYS / 8][4], z[D / 8][4] = {};
    sums_of<T, D>(max, total, q, tile_k, x, query, end);
    for (u64 first = 0; first < end; first += KEYS) {
        __syncthreads();
        fetch<T, D>(tile_k, x.k, x.at_k.pos, first, x.keys);
        fetch<T, D>(tile_v, x.v, x.at_v.pos, first, x.keys);
        __syncthreads();
        scores_of<T, D>(s, q, tile_k, x, query, first);
        for (int n = 0; n < KEYS / 8; n++)
            for (int i = 0; i < 4; i++) s[n][i] = probability(s[n][i], max[i / 2], total[i / 2]);
        for (int j = 0; j < KEYS / 16; j++) {
            // What was a sum of 16 x 8 is as a factor half of 16 x 16.
            u32 weights[4] = {two<T>(s[2 * j][0], s[2 * j][1]), two<T>(s[2 * j][2], s[2 * j][3]), two<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
                              two<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
            weigh<T, D>(z, weights, tile_v, j);
        }
    }
    u64 width = x.heads * D;
    store_rows<T, D>(out + x.prompt * x.queries * width + x.head * D, z, width, query, x.queries, 1);
}

// Its gradients, with ds = p (g v - sum p g v) where g is that of the result. Only for as many queries as keys; g and the result are
// contiguous, the gradients are those of one [prompt, pos, 3, head, dim]. What is known of a query's row goes from one kernel to the next: its
// largest score, the sum of the powers, and sum p g v, which is the result times g.

// Those of the queries: a block per head and 64 of them.
template <typename T, int D> __device__ void attention_grad_q(Heads<T> x, const T *out, const T *grad, T *to, float *known) {
    __shared__ __align__(16) T tile_k[KEYS][D + 8];
    __shared__ __align__(16) T tile_v[KEYS][D + 8];
    x.of_block();
    u64 end, query = first_query(x, end) + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, width = x.heads * D;
    u64 own = x.prompt * x.queries * width + x.head * D;
    u32 q[D / 16][4], g[D / 16][4];
    float max[2], total[2], along[2] = {0, 0}, s[KEYS / 8][4], sum[D / 8][4] = {};
    own_rows<T, D>(q, out + own, width, query, x.queries);
    own_rows<T, D>(g, grad + own, width, query, x.queries);
    for (int i = 0; i < D / 16; i++)
        for (int j = 0; j < 4; j++) {
            const T *a = (const T *)&q[i][j], *b = (const T *)&g[i][j];
            along[j % 2] += load(a[0]) * load(b[0]) + load(a[1]) * load(b[1]);
        }
    for (int row = 0; row < 2; row++)
        for (int step = 1; step < 4; step *= 2) along[row] += __shfl_xor_sync(0xffffffffu, along[row], step);
    own_rows<T, D>(q, x.q, x.at_q.pos, query, x.queries);
    sums_of<T, D>(max, total, q, tile_k, x, query, end);
    for (int row = 0; row < 2; row++)
        if (threadIdx.x % 4 == 0 && query + row * 8 < x.queries) {
            float *at = known + (blockIdx.x * x.queries + query + row * 8) * 3;
            at[0] = max[row], at[1] = total[row], at[2] = along[row];
        }
    for (u64 first = 0; first < end; first += KEYS) {
        __syncthreads();
        fetch<T, D>(tile_k, x.k, x.at_k.pos, first, x.keys);
        fetch<T, D>(tile_v, x.v, x.at_v.pos, first, x.keys);
        __syncthreads();
        scores_of<T, D>(s, q, tile_k, x, query, first);
        for (int n = 0; n < KEYS / 8; n++) {
            float of_p[4];
            product_of<T, D>(of_p, g, tile_v, n);
            for (int i = 0; i < 4; i++) {
                float p = rounded<T>(probability(s[n][i], max[i / 2], total[i / 2]));
                s[n][i] = p * (rounded<T>(of_p[i]) - along[i / 2]);
            }
        }
        for (int j = 0; j < KEYS / 16; j++) {
            u32 weights[4] = {two<T>(s[2 * j][0], s[2 * j][1]), two<T>(s[2 * j][2], s[2 * j][3]), two<T>(s[2 * j + 1][0], s[2 * j + 1][1]),
                              two<T>(s[2 * j + 1][2], s[2 * j + 1][3])};
            weigh<T, D>(sum, weights, tile_k, j);
        }
    }
    store_rows<T, D>(to + 3 * x.prompt * x.queries * width + x.head * D, sum, 3 * width, query, x.queries, x.scale);
}

// Those of keys and values: a block per head and 64 of them, which is looked at by the queries from there on.
template <typename T, int D> __device__ void attention_grad_kv(Heads<T> x, const T *grad, T *to, const float *known) {
    __shared__ __align__(16) T tile_q[QUERIES][D + 8];
    __shared__ __align__(16) T tile_g[QUERIES][D + 8];
    __shared__ float rows[QUERIES][3];
    x.of_block();
    u64 begin = (u64)blockIdx.y * KEYS, lane = threadIdx.x % 32, key = begin + threadIdx.x / 32 * 16 + lane / 4, width = x.heads * D;
    u32 k[D / 16][4], v[D / 16][4];
    float to_k[D / 8][4] = {}, to_v[D / 8][4] = {};
    own_rows<T, D>(k, x.k, x.at_k.pos, key, x.keys);
    own_rows<T, D>(v, x.v, x.at_v.pos, key, x.keys);
    known += blockIdx.x * x.queries * 3;
    for (u64 first = begin; first < x.queries; first += QUERIES) {
        __syncthreads();
        fetch<T, D>(tile_q, x.q, x.at_q.pos, first, x.queries);
        fetch<T, D>(tile_g, grad + x.prompt * x.queries * width + x.head * D, width, first, x.queries);
        for (u32 i = threadIdx.x; i < QUERIES * 3; i += blockDim.x) rows[i / 3][i % 3] = first + i / 3 < x.queries ? known[first * 3 + i] : 0;
        __syncthreads();
        for (int j = 0; j < QUERIES / 16; j++) {
            u32 p[4], ds[4];
            for (int half = 0; half < 2; half++) {
                int n = 2 * j + half;
                float s[4], of_p[4];
                product_of<T, D>(s, k, tile_q, n);
                product_of<T, D>(of_p, v, tile_g, n);
                for (int i = 0; i < 4; i++) {
                    u64 own = key + i / 2 * 8, row = n * 8 + lane % 4 * 2 + i % 2;
                    const float *of = rows[row];
                    bool seen = first + row < x.queries && own < reach_of(first + row, x.keys, x.offset) && !in_hole(x.holes, x.prompt, own);
                    s[i] = seen ? rounded<T>(probability(rounded<T>(s[i] * x.scale), of[0], of[1])) : 0;
                    of_p[i] = s[i] * (rounded<T>(of_p[i]) - of[2]);
                }
                for (int i = 0; i < 2; i++) p[2 * half + i] = two<T>(s[2 * i], s[2 * i + 1]), ds[2 * half + i] = two<T>(of_p[2 * i], of_p[2 * i + 1]);
            }
            weigh<T, D>(to_v, p, tile_g, j);
            weigh<T, D>(to_k, ds, tile_q, j);
        }
    }
    to += 3 * x.prompt * x.keys * width + x.head * D;
    store_rows<T, D>(to + width, to_k, 3 * width, key, x.keys, x.scale);
    store_rows<T, D>(to + 2 * width, to_v, 3 * width, key, x.keys, 1);
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
    extern "C" __global__ void affine_##S(const T *x, const T *gain, const T *bias, T *out, u64 d, u64 n) {                    \
        affine(x, gain, bias, out, d, n);                                                                                      \
    }                                                                                                                          \
    extern "C" __global__ void add_bias_##S(T *x, const T *bias, u64 d, u64 n) { add_bias(x, bias, d, n); }                    \
    extern "C" __global__ void add_##S(const T *a, const T *b, T *out, u64 n) { add(a, b, out, n); }                           \
    extern "C" __global__ void causal_softmax_##S(const T *x, T *out, u64 heads, u64 queries, u64 keys, u64 offset,            \
                                                  const u32 *holes) {                                                          \
        causal_softmax(x, out, heads, queries, keys, offset, holes);                                                           \
    }                                                                                                                          \
    extern "C" __global__ void causal_softmax_grad_##S(const T *p, const T *g, T *out, u64 queries, u64 keys, u64 offset) {    \
        causal_softmax_grad(p, g, out, queries, keys, offset);                                                                 \
    }                                                                                                                          \
    extern "C" __global__ void hide_##S(T *map, u64 heads, u64 queries, u64 keys, u64 offset, const u32 *holes, double value,  \
                                        u64 n) {                                                                               \
        hide(map, heads, queries, keys, offset, holes, value, n);                                                              \
    }                                                                                                                          \
    extern "C" __global__ void pack_##S(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 s0, u64 s1, u64 s2, u64 n) {      \
        pack(x, out, pos, heads, dim, s0, s1, s2, n);                                                                          \
    }                                                                                                                          \
    extern "C" __global__ void unpack_##S(const T *x, T *out, u64 pos, u64 heads, u64 dim, u64 n) {                            \
        unpack(x, out, pos, heads, dim, n);                                                                                    \
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

#define HEADS(T)                                                                                                               \
    const T *q, const T *k, const T *v, u64 heads, u64 queries, u64 keys, u64 offset, u64 q0, u64 q1, u64 q2, u64 k0, u64 k1,  \
        u64 k2, u64 v0, u64 v1, u64 v2, const u32 *holes, double scale
#define GIVEN(T)                                                                                                               \
    Heads<T> { q, k, v, heads, queries, keys, offset, {q0, q1, q2}, {k0, k1, k2}, {v0, v1, v2}, holes, (float)scale, 0, 0 }
#define ATTENTION(T, S, D)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128) attention_##D##_##S(HEADS(T), T *out) { attention<T, D>(GIVEN(T), out); } \
    extern "C" __global__ void __launch_bounds__(128)                                                                          \
        attention_grad_q_##D##_##S(HEADS(T), const T *out, const T *grad, T *to, float *known) {                               \
        attention_grad_q<T, D>(GIVEN(T), out, grad, to, known);                                                                \
    }                                                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                                          \
        attention_grad_kv_##D##_##S(HEADS(T), const T *grad, T *to, const float *known) {                                      \
        attention_grad_kv<T, D>(GIVEN(T), grad, to, known);                                                                    \
    }

ATTENTION(__half, f16, 32)
ATTENTION(__half, f16, 64)
ATTENTION(__nv_bfloat16, bf16, 32)
ATTENTION(__nv_bfloat16, bf16, 64)
