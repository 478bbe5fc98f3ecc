// Runs kernels by their names, as a driver does: `launch("add_f32", 8, 1, 128, arguments)`.
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../../src/ops/cuda/kernels.cu"

typedef void (*Runner)(void **);
static std::map<std::string, Runner> kernels;

template <auto kernel> struct Run;
template <typename... A, void (*kernel)(A...)> struct Run<kernel> {
    template <size_t... I> static void call(void **arguments, std::index_sequence<I...>) { kernel(*(A *)arguments[I]...); }
    static void run(void **arguments) { call(arguments, std::index_sequence_for<A...>()); }
};

#define ONE(name) kernels[#name] = Run<name>::run;
#define ALL(name) ONE(name##_f32) ONE(name##_f64) ONE(name##_f16) ONE(name##_bf16)

extern "C" int launch(const char *name, unsigned columns, unsigned rows, unsigned threads, void **arguments) {
    if (kernels.empty()) {
        ALL(norm_scale) ALL(normalize) ALL(layer_norm) ALL(layer_norm_grad) ALL(affine) ALL(add_bias) ALL(add)
        ALL(causal_softmax) ALL(causal_softmax_grad) ALL(hide) ALL(scale_by) ALL(pack) ALL(unpack) ALL(gelu) ALL(gelu_grad)
        ALL(cross_entropy) ALL(cross_entropy_grad) ALL(sum_rows_parts) ALL(sum_rows_whole) ALL(add_rows) ALL(average)
        ALL(adam_step) ALL(write_box) ALL(not_finite) ALL(squares)
    }
    auto found = kernels.find(name);
    if (found == kernels.end()) return 1;
    std::barrier<> barrier(threads);
    all_threads = &barrier;
    gridDim = {columns, rows, 1};
    blockDim = {threads, 1, 1};
    for (unsigned y = 0; y < rows; y++)
        for (unsigned x = 0; x < columns; x++) {
            blockIdx = {x, y, 0};
            std::vector<std::thread> all;
            for (unsigned t = 0; t < threads; t++)
                all.emplace_back([=] {
                    threadIdx = {t, 0, 0};
                    found->second(arguments);
                });
            for (auto &thread : all) thread.join();
        }
    return 0;
}
