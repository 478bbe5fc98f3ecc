// A GPU in software: CUDA's driver, and as much of cuBLAS and cuRAND as candle calls, for a machine that has no GPU.
//
// Kernels are the PTX that a real driver would get, made into the machine's code (ptx.cpp). A block's threads take turns: each runs
// until it waits for others. What a real device leaves undefined is made to hurt here:
//   - Nothing on a stream is done before somebody waits for it, so that a missing wait reads what is not there yet. With
//     GPU_EAGER=1 a stream that is not the first of the process does its work at once instead, as far as events let it.
//   - New memory is filled with bytes that make NaNs, memory is gone when its free is reached, and every access to global memory
//     is looked up: one outside of what is allocated, or not aligned, ends the process with the kernel's name.
//   - A barrier or a shuffle that not all threads reach ends the process.
// GPU_MEMORY is how many bytes there are (2 GiB); GPU_LOG names a file that gets what was launched and copied, in order; GPU_DRIVER is
// the version of CUDA that the driver knows, as it counts them (12040 is 12.4); with GPU_NONE=1 there is a driver and no GPU.
#include <cuda.h>

#include <dlfcn.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "ptx.h"
#include "thread.h"

static std::recursive_mutex everything;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(everything)

[[noreturn]] static void fail(const std::string &why) {
    fprintf(stderr, "GPU in software: %s\n", why.c_str());
    abort();
}

static void log(const char *format, auto... values) {
    static FILE *file = [] {
        const char *name = getenv("GPU_LOG");
        return name ? fopen(name, "a") : nullptr;
    }();
    if (file) fprintf(file, format, values...), fflush(file);
}

// Memory.

static std::map<u64, size_t> allocated; // of the device
static std::map<u64, size_t> pinned;    // of the host
static size_t used = 0;

static size_t memory() {
    static size_t bytes = getenv("GPU_MEMORY") ? strtoull(getenv("GPU_MEMORY"), nullptr, 10) : (size_t)2 << 30;
    return bytes;
}

static const std::pair<const u64, size_t> *holder(const std::map<u64, size_t> &all, u64 at, size_t size) {
    auto next = all.upper_bound(at);
    if (next == all.begin()) return nullptr;
    auto &block = *--next;
    return at + size <= block.first + block.second ? &block : nullptr;
}

static void must_be_there(const char *what, u64 at, size_t size) {
    if (size && !holder(allocated, at, size)) fail(std::string(what) + " of " + std::to_string(size) + " bytes is not in memory of the device");
}

// Streams: queues of work that is done when it is waited for.

struct Stream;
struct Event { Stream *stream = nullptr; u64 number = 0; };
struct Work { std::function<void()> run; };
struct Stream {
    std::deque<Work> queue;
    u64 done = 0, asked = 0;
    bool eager = false, busy = false;

    void until(u64 number) {
        // A stream that waits for an event of another, which waits for one of this: never, since events are of the past.
        while (done < number && !queue.empty()) {
            Work work = std::move(queue.front());
            queue.pop_front();
            work.run();
            done++;
        }
    }
    void add(std::function<void()> run) {
        queue.push_back({std::move(run)});
        asked++;
        if (eager) until(asked);
    }
};

static Stream *stream_of(CUstream handle) {
    static std::map<std::pair<u64, std::thread::id>, std::unique_ptr<Stream>> own;
    // The per-thread default stream is another for every thread of the host.
    u64 number = (u64)handle;
    if (number > 2) return (Stream *)handle;
    auto &stream = own[{number, number == 2 ? std::this_thread::get_id() : std::thread::id()}];
    if (!stream) stream = std::make_unique<Stream>();
    return stream.get();
}
static std::vector<Stream *> streams;

static void all_streams() {
    for (Stream *stream : streams) stream->until(stream->asked);
}

// Threads of a block: contexts that take turns.

namespace {

constexpr size_t STACK = 128 << 10;

struct Turn {
    Thread thread;
    ucontext_t context;
    jmp_buf here;
    Wait waits = RUNS;
    bool started = false;
};

struct Block {
    std::vector<Turn> turns;
    std::vector<char> stacks;
    jmp_buf back;
    Turn *now = nullptr;
    Kernel kernel = nullptr;
    const char *parameters = nullptr;
    const char *name = "";
    std::vector<char> shared;
    const std::pair<const u64, size_t> *last[4] = {};
    unsigned next = 0;
} block;

void wait_for(Thread *, Wait wait) {
    Turn *turn = block.now;
    turn->waits = wait;
    if (!_setjmp(turn->here)) _longjmp(block.back, 1);
}

[[noreturn]] void stop(Thread *t, const char *why) {
    fail(std::string(block.name) + ", block " + std::to_string(t->ctaid[0]) + ", thread " + std::to_string(t->tid[0]) + ": " + why);
}

char *reach(Thread *t, u64 at, u32 size, bool writes) {
    if (at & (size - 1)) stop(t, "an address is not aligned");
    for (auto *known : block.last)
        if (known && at >= known->first && at + size <= known->first + known->second) return (char *)at;
    auto *found = holder(allocated, at, size);
    if (!found) {
        char *own = block.shared.data();
        if ((char *)at >= own && (char *)at + size <= own + block.shared.size()) return (char *)at;
        char *stack = block.stacks.data();
        if ((char *)at >= stack && (char *)at + size <= stack + block.stacks.size()) return (char *)at;
        stop(t, writes ? "writes where nothing is allocated" : "reads where nothing is allocated");
    }
    block.last[block.next++ % 4] = found;
    return (char *)at;
}

const Machine machine = {wait_for, reach, (void (*)(Thread *, const char *))stop};

// A context runs one thread after the other: it is made once.
void begin() {
    for (;;) {
        block.kernel(&block.now->thread, block.parameters);
        wait_for(nullptr, ENDED);
    }
}

void resume(Turn &turn, size_t index) {
    block.now = &turn;
    turn.waits = RUNS;
    if (_setjmp(block.back)) return;
    if (turn.started) _longjmp(turn.here, 1);
    turn.started = true;
    getcontext(&turn.context);
    turn.context.uc_stack.ss_sp = block.stacks.data() + index * STACK;
    turn.context.uc_stack.ss_size = STACK;
    turn.context.uc_link = nullptr;
    makecontext(&turn.context, begin, 0);
    setcontext(&turn.context);
}

float half(u32 bits16, bool bfloat) { return bfloat ? (float)bits<bf16>((u16)bits16) : (float)bits<f16>((u16)bits16); }

// What lanes of a warp do together; all of `lanes` have come.
void together(Turn *lanes[32], Wait what) {
    auto in = [&](int lane) { return lanes[lane] ? lanes[lane]->thread.in : nullptr; };
    u32 votes = 0;
    if (what == VOTES)
        for (int i = 0; i < 32; i++) votes |= in(i) && in(i)[0] ? 1u << i : 0;
    if (what == MULTIPLIES) {
        // Fragments of m16n8k16 as PTX lays them out: a lane has row lane/4, columns of lane%4.
        float a[16][16], b[16][8], c[16][8];
        for (int lane = 0; lane < 32; lane++) {
            bool bfloat = lanes[lane]->thread.way;
            int row = lane / 4, column = lane % 4 * 2;
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 2; j++) a[row + i % 2 * 8][column + i / 2 * 8 + j] = half(in(lane)[i] >> 16 * j, bfloat);
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 2; j++) b[column + i * 8 + j][row] = half(in(lane)[4 + i] >> 16 * j, bfloat);
            for (int i = 0; i < 4; i++) c[row + i / 2 * 8][column + i % 2] = bits<float>(in(lane)[6 + i]);
        }
        for (int row = 0; row < 16; row++)
            for (int column = 0; column < 8; column++) {
                double sum = c[row][column];
                for (int k = 0; k < 16; k++) sum += (double)a[row][k] * b[k][column];
                int lane = row % 8 * 4 + column / 2;
                lanes[lane]->thread.out[row / 8 * 2 + column % 2] = bits<u32>((float)sum);
            }
    }
    if (what == LOADS_MATRICES)
        // Lanes 8i to 8i + 7 say where the rows of matrix i are; a lane gets two elements of row lane/4.
        for (int lane = 0; lane < 32; lane++)
            for (int i = 0; i < 4; i++) {
                u32 out = 0;
                for (int j = 0; j < 2; j++) {
                    int row = lane / 4, column = lane % 4 * 2 + j;
                    if (lanes[lane]->thread.way) std::swap(row, column);
                    u32 at = in(8 * i + row)[0];
                    if (at % 16 || at + 16 > block.shared.size()) fail(std::string(block.name) + ": a row of ldmatrix is not in shared memory, or not aligned");
                    out |= (u32)load_from<u16>(block.shared.data() + at + 2 * column) << 16 * j;
                }
                lanes[lane]->thread.out[i] = out;
            }
    for (int lane = 0; lane < 32; lane++) {
        if (!lanes[lane]) continue;
        Thread &t = lanes[lane]->thread;
        if (what == VOTES) t.out[0] = votes & t.mask;
        if (what == SHUFFLES) {
            u32 by = t.in[1], clamp = t.in[2] & 31, segment = t.in[2] >> 8 & 31;
            u32 most = (lane & segment) | (clamp & ~segment), least = lane & segment;
            int from = t.way == BFLY ? lane ^ by : t.way == DOWN ? lane + by : t.way == UP ? lane - (int)by : (int)(least | (by & ~segment));
            t.ok = t.way == UP ? from >= (int)most : from <= (int)most;
            if (!t.ok) from = lane;
            if (!lanes[from]) stop(&t, "shuffles with a lane that is not there");
            t.out[0] = in(from)[0];
        }
    }
    for (int lane = 0; lane < 32; lane++)
        if (lanes[lane]) lanes[lane]->waits = RUNS;
}

void run_block(size_t count) {
    size_t ended = 0;
    while (ended < count) {
        bool moved = false;
        for (size_t first = 0; first < count; first += 32) {
            size_t end = std::min(first + 32, count);
            for (bool again = true; again;) {
                again = false;
                for (size_t i = first; i < end; i++)
                    if (block.turns[i].waits == RUNS) {
                        resume(block.turns[i], i);
                        moved = true;
                        ended += block.turns[i].waits == ENDED;
                    }
                // The first lane that waits for its warp says for whom.
                for (size_t i = first; i < end; i++) {
                    Turn &turn = block.turns[i];
                    if (turn.waits < SHUFFLES || turn.waits == ENDED) continue;
                    Turn *lanes[32] = {};
                    bool all = true;
                    for (size_t lane = 0; lane < 32; lane++) {
                        if (!(turn.thread.mask >> lane & 1)) continue;
                        bool there = first + lane < end && block.turns[first + lane].waits == turn.waits;
                        if (first + lane >= end || block.turns[first + lane].waits == ENDED) continue;
                        all &= there;
                        lanes[lane] = &block.turns[first + lane];
                    }
                    if (!all) continue;
                    together(lanes, turn.waits);
                    again = moved = true;
                    break;
                }
            }
        }
        size_t at_barrier = 0;
        for (size_t i = 0; i < count; i++) at_barrier += block.turns[i].waits == AT_BARRIER;
        if (at_barrier && at_barrier + ended == count) {
            for (size_t i = 0; i < count; i++)
                if (block.turns[i].waits == AT_BARRIER) block.turns[i].waits = RUNS;
            moved = true;
        }
        if (!moved) fail(std::string(block.name) + ": threads wait for others that never come");
    }
}

void run_grid(Kernel kernel, const char *name, const u32 grid[3], const u32 size[3], const char *parameters, size_t shared, bool waits) {
    size_t count = (size_t)size[0] * size[1] * size[2];
    if (count > 1024) fail(std::string(name) + ": more than 1024 threads a block");
    block.kernel = kernel, block.name = name, block.parameters = parameters;
    if (block.turns.empty()) block.turns.resize(1024), block.stacks.resize(1024 * STACK);
    std::fill(std::begin(block.last), std::end(block.last), nullptr);
    // Threads that wait for nobody need no context of their own.
    Turn alone;
    block.shared.resize(shared);
    size_t own = waits ? count : 1;
    auto turn = [&](size_t i) -> Turn & { return waits ? block.turns[i] : alone; };
    for (size_t i = 0; i < own; i++) {
        Thread &t = turn(i).thread;
        for (int k = 0; k < 3; k++) t.ntid[k] = size[k], t.nctaid[k] = grid[k];
        t.shared = block.shared.data(), t.machine = &machine;
    }
    for (u32 z = 0; z < grid[2]; z++)
        for (u32 y = 0; y < grid[1]; y++)
            for (u32 x = 0; x < grid[0]; x++) {
                std::fill(block.shared.begin(), block.shared.end(), (char)0xff);
                u32 i = 0;
                for (u32 c = 0; c < size[2]; c++)
                    for (u32 b = 0; b < size[1]; b++)
                        for (u32 a = 0; a < size[0]; a++, i++) {
                            Turn &now = turn(i);
                            Thread &t = now.thread;
                            now.waits = RUNS;
                            t.tid[0] = a, t.tid[1] = b, t.tid[2] = c, t.ctaid[0] = x, t.ctaid[1] = y, t.ctaid[2] = z;
                            t.lane = i % 32, t.warp = i / 32;
                            if (!waits) kernel(&t, parameters);
                        }
                if (waits) run_block(count);
            }
}

// Kernels, compiled when they are asked for and kept beside the others of the machine.

struct Function {
    Kernel kernel;
    Entry entry;
    std::string name;
};
struct Loaded {
    Module module;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

Kernel compile(const std::string &source) {
    namespace fs = std::filesystem;
    static const fs::path kept = [] {
        const char *named = getenv("GPU_CACHE");
        fs::path place = named ? fs::path(named) : fs::temp_directory_path() / ("gpu-in-software-" + std::to_string(getuid()));
        fs::create_directories(place);
        return place;
    }();
    // Kernels change with the header that they are compiled against.
    static const std::string header = [] {
        FILE *file = fopen(HERE "/thread.h", "r");
        std::string all(1 << 20, 0);
        all.resize(fread(all.data(), 1, all.size(), file));
        fclose(file);
        return all;
    }();
    char name[32];
    snprintf(name, sizeof name, "%016zx", std::hash<std::string>()(source + header));
    fs::path library = kept / (std::string(name) + ".so");
    if (!fs::exists(library)) {
        fs::path code = kept / (std::string(name) + "." + std::to_string(getpid()) + ".cpp");
        fs::path made = kept / (std::string(name) + "." + std::to_string(getpid()) + ".so");
        FILE *file = fopen(code.c_str(), "w");
        fwrite(source.data(), 1, source.size(), file);
        fclose(file);
        // A process of a test may have no environment.
        std::string command = "PATH=$PATH:/usr/local/bin:/usr/bin:/bin g++ -std=c++20 -O1 -w -fPIC -shared -march=native -ffp-contract=off -I " HERE " " + code.string() + " -o " + made.string();
        if (system(command.c_str()) != 0) fail("a kernel does not compile: " + command);
        fs::rename(made, library); // whole or not there, for other processes
        fs::remove(code);
    }
    void *handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle) fail(dlerror());
    return (Kernel)dlsym(handle, "run");
}

} // namespace

#define OK return CUDA_SUCCESS

extern "C" {

CUresult cuInit(unsigned) { return getenv("GPU_NONE") && *getenv("GPU_NONE") == '1' ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) {
    *version = getenv("GPU_DRIVER") ? atoi(getenv("GPU_DRIVER")) : CUDA_VERSION;
    OK;
}
CUresult cuDeviceGetCount(int *count) { *count = 1; OK; }
CUresult cuDeviceGet(CUdevice *device, int number) {
    if (number) return CUDA_ERROR_INVALID_DEVICE;
    *device = 0;
    OK;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice) {
    snprintf(name, size, "GPU in software");
    OK;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice) { *bytes = memory(); OK; }
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute what, CUdevice) {
    switch (what) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 9; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 2; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    default: fail("asked for attribute " + std::to_string(what));
    }
    OK;
}
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice) { *pool = (CUmemoryPool)1; OK; }
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute, void *) { OK; }

static thread_local CUcontext current = nullptr;
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice) { *context = (CUcontext)1; OK; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { OK; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = current; OK; }
CUresult cuCtxSetCurrent(CUcontext context) { current = context; OK; }
CUresult cuCtxDestroy_v2(CUcontext) { OK; }
CUresult cuCtxSynchronize() { LOCKED; all_streams(); OK; }
CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : error == CUDA_ERROR_INVALID_DEVICE ? "invalid device ordinal" : "an error";
    OK;
}
CUresult cuGetErrorName(CUresult error, const char **text) { return cuGetErrorString(error, text); }

// Streams and events.

CUresult cuStreamCreate(CUstream *stream, unsigned) {
    LOCKED;
    static bool eager = getenv("GPU_EAGER") && *getenv("GPU_EAGER") == '1';
    auto *made = new Stream;
    made->eager = eager && !streams.empty();
    streams.push_back(made);
    *stream = (CUstream)made;
    OK;
}
CUresult cuStreamDestroy_v2(CUstream stream) { // the work of it is still done
    LOCKED;
    Stream *s = stream_of(stream);
    s->until(s->asked);
    OK;
}
CUresult cuStreamSynchronize(CUstream stream) {
    LOCKED;
    Stream *s = stream_of(stream);
    log("wait\n");
    s->until(s->asked);
    OK;
}
CUresult cuStreamIsCapturing(CUstream, CUstreamCaptureStatus *status) { *status = CU_STREAM_CAPTURE_STATUS_NONE; OK; }
CUresult cuEventCreate(CUevent *event, unsigned) { *event = (CUevent) new Event; OK; }
CUresult cuEventDestroy_v2(CUevent event) { delete (Event *)event; OK; }
CUresult cuEventRecord(CUevent event, CUstream stream) {
    LOCKED;
    Stream *s = stream_of(stream);
    s->add([] {});
    *(Event *)event = {s, s->asked};
    OK;
}
CUresult cuEventSynchronize(CUevent event) {
    LOCKED;
    log("wait for an event\n");
    Event e = *(Event *)event;
    if (e.stream) e.stream->until(e.number);
    OK;
}
CUresult cuEventQuery(CUevent event) {
    LOCKED;
    Event e = *(Event *)event;
    return !e.stream || e.stream->done >= e.number ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned) {
    LOCKED;
    Event e = *(Event *)event;
    stream_of(stream)->add([e] { if (e.stream) e.stream->until(e.number); });
    OK;
}

// Memory.

CUresult cuMemAllocAsync(CUdeviceptr *at, size_t bytes, CUstream) {
    LOCKED;
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    if (used + bytes > memory()) all_streams(); // frees that are asked for
    if (used + bytes > memory()) return CUDA_ERROR_OUT_OF_MEMORY;
    void *made = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!made) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(made, 0xff, bytes);
    allocated[(u64)made] = bytes;
    used += bytes;
    *at = (CUdeviceptr)made;
    log("allocate %zu\n", bytes);
    OK;
}
CUresult cuMemFreeAsync(CUdeviceptr at, CUstream stream) {
    LOCKED;
    stream_of(stream)->add([at] {
        auto found = allocated.find(at);
        if (found == allocated.end()) fail("frees what is not allocated");
        memset((void *)at, 0xff, found->second);
        used -= found->second;
        allocated.erase(found);
        free((void *)at);
    });
    OK;
}
CUresult cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) { return cuMemAllocAsync(at, bytes, (CUstream)1); }
CUresult cuMemFree_v2(CUdeviceptr at) { LOCKED; all_streams(); cuMemFreeAsync(at, (CUstream)1); stream_of((CUstream)1)->until(~0ull); OK; }
CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    LOCKED;
    *total = memory(), *free = memory() - used;
    OK;
}
CUresult cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    LOCKED;
    *at = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    pinned[(u64)*at] = bytes;
    OK;
}
CUresult cuMemFreeHost(void *at) {
    LOCKED;
    all_streams();
    if (!pinned.erase((u64)at)) fail("frees what is not pinned");
    free(at);
    OK;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    LOCKED;
    log("copy %zu to the device\n", bytes);
    bool fixed = holder(pinned, (u64)from, bytes);
    // From memory that is not pinned a real driver takes a copy before it returns.
    auto kept = std::make_shared<std::vector<char>>();
    if (!fixed) kept->assign((const char *)from, (const char *)from + bytes);
    stream_of(stream)->add([=] {
        must_be_there("a copy to the device", to, bytes);
        memcpy((void *)to, fixed ? from : kept->data(), bytes);
    });
    OK;
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    LOCKED;
    bool fixed = holder(pinned, (u64)to, bytes);
    log("copy %zu from the device%s\n", bytes, fixed ? ", pinned" : "");
    Stream *s = stream_of(stream);
    s->add([=] {
        must_be_there("a copy from the device", from, bytes);
        memcpy(to, (void *)from, bytes);
    });
    if (!fixed) s->until(s->asked);
    OK;
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    LOCKED;
    log("copy %zu on the device\n", bytes);
    stream_of(stream)->add([=] {
        must_be_there("the source of a copy", from, bytes);
        must_be_there("the destination of a copy", to, bytes);
        memmove((void *)to, (void *)from, bytes);
    });
    OK;
}
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext, CUdeviceptr from, CUcontext, size_t bytes, CUstream stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream) {
    LOCKED;
    log("set %zu\n", bytes);
    stream_of(stream)->add([=] {
        must_be_there("what is set", to, bytes);
        memset((void *)to, value, bytes);
    });
    OK;
}

// Kernels.

CUresult cuModuleLoadData(CUmodule *module, const void *ptx) {
    LOCKED;
    *module = (CUmodule) new Loaded{Module((const char *)ptx), {}};
    OK;
}
CUresult cuModuleLoad(CUmodule *, const char *) { return CUDA_ERROR_FILE_NOT_FOUND; }
CUresult cuModuleUnload(CUmodule) { OK; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    LOCKED;
    auto *loaded = (Loaded *)module;
    if (!loaded->module.has(name)) return CUDA_ERROR_NOT_FOUND;
    auto &made = loaded->functions[name];
    if (!made) {
        try {
            Entry entry = loaded->module.translate(name);
            made = std::make_unique<Function>(Function{compile(entry.source), entry, name});
        } catch (const std::runtime_error &e) {
            fail(std::string(name) + ": " + e.what());
        }
    }
    *function = (CUfunction)made.get();
    OK;
}
CUresult cuLaunchKernel(CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                        CUstream stream, void **arguments, void **) {
    LOCKED;
    auto *f = (Function *)function;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (f->entry.shared_size + shared > 232448) return CUDA_ERROR_INVALID_VALUE;
    auto parameters = std::make_shared<std::vector<char>>(f->entry.parameters_size + 16);
    for (size_t i = 0; i < f->entry.parameters.size(); i++)
        memcpy(parameters->data() + f->entry.parameters[i].offset, arguments[i], f->entry.parameters[i].size);
    log("launch %s of %u %u %u blocks of %u\n", f->name.c_str(), gx, gy, gz, bx * by * bz);
    stream_of(stream)->add([=] {
        u32 grid[3] = {gx, gy, gz}, size[3] = {bx, by, bz};
        run_grid(f->kernel, f->name.c_str(), grid, size, parameters->data(), f->entry.shared_size + shared, f->entry.waits);
    });
    OK;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { OK; }

// cuBLAS: the two products that candle asks for.

struct Blas { Stream *stream = nullptr; };
int cublasCreate_v2(Blas **handle) { *handle = new Blas; return 0; }
int cublasDestroy_v2(Blas *handle) { delete handle; return 0; }
int cublasGetVersion_v2(Blas *, int *version) { *version = 130000; return 0; }
int cublasSetStream_v2(Blas *handle, CUstream stream) {
    LOCKED;
    handle->stream = stream_of(stream);
    return 0;
}
}

static size_t type_size(int type) { return type == 1 ? 8 : type == 0 ? 4 : 2; }
static double value_at(u64 at, size_t i, int type) {
    switch (type) {
    case 0: return ((const float *)at)[i];
    case 1: return ((const double *)at)[i];
    case 2: return (float)((const f16 *)at)[i];
    case 14: return (float)((const bf16 *)at)[i];
    }
    fail("a product of type " + std::to_string(type));
}

// c = alpha op(a) op(b) + beta c, column by column, as BLAS stores matrices.
template <class A>
static void multiply(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, u64 a, size_t lda, u64 b, size_t ldb, double beta, u64 c, size_t ldc, int type, int c_type) {
    if (!m || !n) return;
    auto end = [&](bool t, size_t rows, size_t columns, size_t ld) { return (((t ? rows : columns) - 1) * ld + (t ? columns : rows)) * type_size(type); };
    if (k) must_be_there("a factor of a product", a, end(ta, m, k, lda)), must_be_there("a factor of a product", b, end(tb, k, n, ldb));
    must_be_there("a product", c, ((n - 1) * ldc + m) * type_size(c_type));
    std::vector<A> left(m * k), right(k * n), sum(m);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < k; j++) left[j * m + i] = (A)value_at(a, ta ? j + i * lda : i + j * lda, type);
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < n; j++) right[j * k + i] = (A)value_at(b, tb ? j + i * ldb : i + j * ldb, type);
    for (size_t j = 0; j < n; j++) {
        std::fill(sum.begin(), sum.end(), (A)0);
        for (size_t l = 0; l < k; l++) {
            A r = right[j * k + l];
            for (size_t i = 0; i < m; i++) sum[i] += left[l * m + i] * r;
        }
        for (size_t i = 0; i < m; i++) {
            size_t at = i + j * ldc;
            A out = (A)alpha * sum[i] + (beta == 0 ? (A)0 : (A)beta * (A)value_at(c, at, c_type));
            switch (c_type) {
            case 0: ((float *)c)[at] = (float)out; break;
            case 1: ((double *)c)[at] = out; break;
            case 2: ((f16 *)c)[at] = f16((float)out); break;
            case 14: ((bf16 *)c)[at] = bf16((float)out); break;
            }
        }
    }
}

extern "C" {

int cublasGemmStridedBatchedEx(Blas *handle, int ta, int tb, int m, int n, int k, const void *alpha, u64 a, int type, int lda, long long sa, u64 b,
                               int b_type, int ldb, long long sb, const void *beta, u64 c, int c_type, int ldc, long long sc, int count, int compute, int) {
    LOCKED;
    // 16 bits may be added up in f32.
    if (b_type != type || (c_type != type && !(c_type == 0 && type != 1))) fail("a product of two types");
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7; // CUBLAS_STATUS_INVALID_VALUE
    // The factors are of the type that is computed in: 16 bits for CUBLAS_COMPUTE_16F (64, 65), f64 for _64F (70, 71), else f32.
    int of = compute == 64 || compute == 65 ? 2 : compute == 70 || compute == 71 ? 1 : 0;
    if ((of == 1) != (type == 1)) return 15; // CUBLAS_STATUS_NOT_SUPPORTED
    double x = value_at((u64)alpha, 0, of), y = value_at((u64)beta, 0, of);
    log("product %d %d %d of %d, type %d\n", m, n, k, count, type);
    handle->stream->add([=] {
        for (int i = 0; i < count; i++) {
            u64 size = type_size(type), to = c + i * sc * type_size(c_type), left = a + i * sa * size, right = b + i * sb * size;
            if (type == 1) multiply<double>(ta, tb, m, n, k, x, left, lda, right, ldb, y, to, ldc, type, c_type);
            else multiply<float>(ta, tb, m, n, k, x, left, lda, right, ldb, y, to, ldc, type, c_type);
        }
    });
    return 0;
}
int cublasDgemmStridedBatched(Blas *handle, int ta, int tb, int m, int n, int k, const double *alpha, u64 a, int lda, long long sa, u64 b, int ldb,
                              long long sb, const double *beta, u64 c, int ldc, long long sc, int count) {
    LOCKED;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    double x = *alpha, y = *beta;
    log("product %d %d %d of %d, type 1\n", m, n, k, count);
    handle->stream->add([=] {
        for (int i = 0; i < count; i++) multiply<double>(ta, tb, m, n, k, x, a + i * sa * 8, lda, b + i * sb * 8, ldb, y, c + i * sc * 8, ldc, 1, 1);
    });
    return 0;
}

// cuRAND: a generator exists, and draws nothing.

int curandCreateGenerator(void **generator, int) { *generator = (void *)1; return 0; }
int curandDestroyGenerator(void *) { return 0; }
int curandSetPseudoRandomGeneratorSeed(void *, unsigned long long) { return 0; }
int curandSetStream(void *, CUstream) { return 0; }
int curandGenerateUniform(void *, float *, size_t) { fail("cuRAND is asked for numbers"); }
int curandGenerateUniformDouble(void *, double *, size_t) { fail("cuRAND is asked for numbers"); }
}
