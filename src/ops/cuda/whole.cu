// Attention as a whole, for 16 bits: what the product of q and k, the softmax and the product with v do one after the other, with the
// same roundings, but no map in memory. Sums go first over all keys, then what they weigh is added up.

#include "values.cuh"

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

// What was a sum of 16 x 8 is as a factor half of 16 x 16.
template <typename T> __device__ void as_factor(u32 factor[2], const float sum[4]) {
    factor[0] = two<T>(sum[0], sum[1]);
    factor[1] = two<T>(sum[2], sum[3]);
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
            u32 weights[4];
            as_factor<T>(weights, s[2 * j]), as_factor<T>(weights + 2, s[2 * j + 1]);
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
            u32 weights[4];
            as_factor<T>(weights, s[2 * j]), as_factor<T>(weights + 2, s[2 * j + 1]);
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
                as_factor<T>(p + 2 * half, s), as_factor<T>(ds + 2 * half, of_p);
            }
            weigh<T, D>(to_v, p, tile_g, j);
            weigh<T, D>(to_k, ds, tile_q, j);
        }
    }
    to += 3 * x.prompt * x.keys * width + x.head * D;
    store_rows<T, D>(to + width, to_k, 3 * width, key, x.keys, x.scale);
    store_rows<T, D>(to + 2 * width, to_v, 3 * width, key, x.keys, 1);
}

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
