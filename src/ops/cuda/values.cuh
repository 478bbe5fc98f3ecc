// Values as kernels read and write them.
//
// Storage is f32, f64, f16 or bf16; everything is computed, and every sum is kept, in f32 (f64 for f64). Sums run in a fixed order,
// so that the same input gives the same bits on the same device. Sizes are 64 bits wide: a batch of attention maps has more
// elements than 32 bits count. Nothing is atomic but a flag.
#pragma once

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

// As many values as 16 bytes hold: what a thread reads and writes at once, where all that a kernel is given begins at such a boundary.
template <typename T> struct alignas(16) Pack {
    static constexpr u32 N = 16 / sizeof(T);
    T at[N];
};

template <typename... P> __device__ bool aligned(const P *... at) { return ((... | (u64)at) & 15) == 0; }

// Which values are a thread's, among all of the grid or those of its block's row.
struct Turn { u64 first, step; };
__device__ inline Turn of_grid() { return {(u64)blockIdx.x * blockDim.x + threadIdx.x, (u64)gridDim.x * blockDim.x}; }
__device__ inline Turn of_block() { return {threadIdx.x, blockDim.x}; }

// The values of a pack, read one by one where they do not begin at such a boundary: a thread has the same ones either way, so that a sum
// does not depend on where a row begins.
template <typename T> __device__ Pack<T> read(const T *x, u64 pack, bool whole) {
    if (whole) return ((const Pack<T> *)x)[pack];
    Pack<T> values;
#pragma unroll
    for (u32 k = 0; k < Pack<T>::N; k++) values.at[k] = x[pack * Pack<T>::N + k];
    return values;
}

// f(i, values ...) for every i.
template <typename T, typename F, typename... In> __device__ void each(u64 n, Turn turn, F f, const T *x, const In *... more) {
    constexpr u32 N = Pack<T>::N;
    bool whole = aligned(x, more...);
    for (u64 i = turn.first; i < n / N; i += turn.step)
        [&](auto... packs) {
#pragma unroll
            for (u32 k = 0; k < N; k++) f(i * N + k, load(packs.at[k])...);
        }(read(x, i, whole), read(more, i, whole)...);
    for (u64 i = n / N * N + turn.first; i < n; i += turn.step) f(i, load(x[i]), load(more[i])...);
}

// out = f(i, values ...) for every i; out may be one of those that are read.
template <typename T, typename F, typename... In> __device__ void map(T *out, u64 n, Turn turn, F f, const In *... in) {
    constexpr u32 N = Pack<T>::N;
    bool whole = aligned(out, in...);
    for (u64 i = turn.first; i < n / N; i += turn.step) {
        Pack<T> made;
        [&](auto... packs) {
#pragma unroll
            for (u32 k = 0; k < N; k++) store(made.at + k, f(i * N + k, load(packs.at[k])...));
        }(read(in, i, whole)...);
        if (whole) ((Pack<T> *)out)[i] = made;
        else
#pragma unroll
            for (u32 k = 0; k < N; k++) out[i * N + k] = made.at[k];
    }
    for (u64 i = n / N * N + turn.first; i < n; i += turn.step) store(out + i, f(i, load(in[i])...));
}

template <typename T> __device__ typename Real<T>::type rounded(typename Real<T>::type x) {
    T kept;
    store(&kept, x);
    return load(kept);
}

struct Sum { template <typename A> __device__ static A of(A a, A b) { return a + b; } };
// NaN wins, as it does on the CPU.
struct Max { template <typename A> __device__ static A of(A a, A b) { return a > b || a != a ? a : b; } };

// Which keys a query sees: those up to its own position, but for a hole (first and end per prompt; none for a null pointer).
__device__ inline u64 reach_of(u64 query, u64 keys, u64 offset) {
    u64 reach = query + offset + 1;
    return reach < keys ? reach : keys;
}

__device__ inline bool in_hole(const u32 *holes, u64 prompt, u64 key) {
    return holes && key >= holes[2 * prompt] && key < holes[2 * prompt + 1];
}
