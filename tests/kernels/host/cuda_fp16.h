// CUDA's language on a CPU, as far as kernels.cu speaks it: a block's threads are threads, one block after the other.
#pragma once
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>

struct Place { unsigned x = 0, y = 0, z = 0; };
inline thread_local Place threadIdx;
inline Place blockIdx, blockDim, gridDim;
inline std::barrier<> *all_threads = nullptr;

#define __global__
#define __device__
#define __shared__ static

inline void __syncthreads() { all_threads->arrive_and_wait(); }

// All threads of the block come here, so lanes may exchange through memory.
template <typename A> A __shfl_xor_sync(unsigned, A value, int step) {
    static A lanes[1024];
    lanes[threadIdx.x] = value;
    __syncthreads();
    A other = lanes[threadIdx.x ^ step];
    __syncthreads();
    return other;
}

struct __half { _Float16 value; };
inline float __half2float(__half x) { return (float)x.value; }
inline __half __float2half_rn(float x) { return {(_Float16)x}; }
