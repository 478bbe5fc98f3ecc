// A thread of a kernel, and what PTX's instructions mean: for the C++ that ptx.cpp makes of a kernel.
//
// A register is an unsigned integer, a float or a double of the size that it is declared with; an instruction reads and writes the
// type that it names, as bits. Halves and bfloats are computed in f32 and rounded, which is right for a single operation.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8, b8;
typedef uint16_t u16, b16;
typedef uint32_t u32, b32;
typedef uint64_t u64, b64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;
typedef float f32;
typedef double f64;
typedef bool pred;

template <class To, class From> inline To bits(From x) {
    To out{};
    __builtin_memcpy(&out, &x, sizeof(To) < sizeof(From) ? sizeof(To) : sizeof(From));
    return out;
}

struct f16 {
    u16 at;
    f16() = default;
    f16(float x) : at(bits<u16>((_Float16)x)) {}
    operator float() const { return (float)bits<_Float16>(at); }
};
struct bf16 {
    u16 at;
    bf16() = default;
    bf16(float x) {
        u32 all = bits<u32>(x);
        at = x != x ? 0x7fff : (u16)((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    operator float() const { return bits<float>((u32)at << 16); }
};

// What a thread waits for together with others.
enum Wait : u32 { RUNS, AT_BARRIER, SHUFFLES, VOTES, MULTIPLIES, LOADS_MATRICES, ENDED };
enum Way : u32 { BFLY, DOWN, UP, IDX };

struct Thread;
// What the machine does for threads.
struct Machine {
    void (*wait)(Thread *, Wait);
    char *(*reach)(Thread *, u64 address, u32 size, bool writes);
    void (*stop)(Thread *, const char *why);
};
struct Thread {
    u32 tid[3], ntid[3], ctaid[3], nctaid[3], lane, warp;
    char *shared;
    const Machine *machine;
    // What it brings to those that it waits with, and gets from them.
    u32 way, in[16], out[8], mask;
    bool ok;
};
typedef void (*Kernel)(Thread *, const char *parameters);

template <class T> constexpr bool whole = false;
template <class T> constexpr bool negative = false;
#define WHOLE(T, N) template <> constexpr bool whole<T> = true; template <> constexpr bool negative<T> = N;
WHOLE(bool, false) WHOLE(u8, false) WHOLE(u16, false) WHOLE(u32, false) WHOLE(u64, false)
WHOLE(s8, true) WHOLE(s16, true) WHOLE(s32, true) WHOLE(s64, true)

// Operands.

template <class T, class R> inline T as(R x) {
    if constexpr (__is_same(T, bool)) return (bool)x;
    else return bits<T>(x);
}
// Into a register: a signed number keeps its sign in a wider one.
template <class R, class T> inline void put(R &to, T x) {
    if constexpr (__is_same(R, bool) || __is_same(R, T)) to = (R)x;
    else if constexpr (sizeof(R) > sizeof(T) && negative<T>) to = (R)(s64)x;
    else to = bits<R>(x);
}
struct Nowhere {
    template <class T> Nowhere &operator=(T) { return *this; }
};
template <class T> inline void put(Nowhere &, T) {}

// Memory.

template <class T> inline T load_from(const char *p) {
    T x;
    __builtin_memcpy(&x, p, sizeof(T));
    return x;
}
template <class T> inline T ld_param(const char *p) { return load_from<T>(p); }
template <class T> inline T ld_global(Thread *t, u64 at) { return load_from<T>(t->machine->reach(t, at, sizeof(T), false)); }
template <class T> inline T ld_shared(Thread *t, u64 at) { return load_from<T>(t->shared + (u32)at); }
template <class T> inline T ld_local(Thread *, u64 at) { return load_from<T>((const char *)at); }
template <class T> inline void st_global(Thread *t, u64 at, T x) { __builtin_memcpy(t->machine->reach(t, at, sizeof(T), true), &x, sizeof(T)); }
template <class T> inline void st_shared(Thread *t, u64 at, T x) { __builtin_memcpy(t->shared + (u32)at, &x, sizeof(T)); }
template <class T> inline void st_local(Thread *, u64 at, T x) { __builtin_memcpy((char *)at, &x, sizeof(T)); }
template <class T> inline T ld_generic(Thread *t, u64 at) { return ld_global<T>(t, at); }
template <class T> inline void st_generic(Thread *t, u64 at, T x) { st_global<T>(t, at, x); }
// Threads take turns, so that nothing comes between.
template <class T> inline T atom_add(Thread *t, u64 at, T x) {
    T was = ld_global<T>(t, at);
    st_global<T>(t, at, (T)(was + x));
    return was;
}

// Arithmetic.

template <class T> struct Unsigned { typedef T type; };
template <> struct Unsigned<s8> { typedef u8 type; };
template <> struct Unsigned<s16> { typedef u16 type; };
template <> struct Unsigned<s32> { typedef u32 type; };
template <> struct Unsigned<s64> { typedef u64 type; };
template <class T> using U = typename Unsigned<T>::type;
template <class T> struct Wider {};
template <> struct Wider<u16> { typedef u32 type; };
template <> struct Wider<s16> { typedef s32 type; };
template <> struct Wider<u32> { typedef u64 type; };
template <> struct Wider<s32> { typedef s64 type; };

template <class T> inline T add(T a, T b) { return (T)((U<T>)a + (U<T>)b); }
template <class T> inline T sub(T a, T b) { return (T)((U<T>)a - (U<T>)b); }
template <class T> inline T mul(T a, T b) { return (T)(a * b); }
template <> inline s32 mul(s32 a, s32 b) { return (s32)((u32)a * (u32)b); }
template <> inline s64 mul(s64 a, s64 b) { return (s64)((u64)a * (u64)b); }
template <> inline u16 mul(u16 a, u16 b) { return (u16)((u32)a * b); }
template <class T> inline T mul_hi(T a, T b) {
    if constexpr (sizeof(T) == 8) return (T)((negative<T> ? (__int128)a * b : (__int128)((unsigned __int128)a * b)) >> 64);
    else return (T)(((typename Wider<T>::type)a * b) >> (8 * sizeof(T)));
}
template <class T> inline auto mul_wide(T a, T b) { return (typename Wider<T>::type)((typename Wider<T>::type)a * b); }
template <class T> inline T div_of(T a, T b) { return whole<T> && b == (T)0 ? (T)-1 : (T)(a / b); }
template <class T> inline T rem_of(T a, T b) { return b == 0 ? a : (T)(a % b); }
template <class T> inline T fma_of(T a, T b, T c) {
    if constexpr (sizeof(T) == 8) return fma(a, b, c);
    else if constexpr (sizeof(T) == 4) return fmaf(a, b, c);
    else return (T)(float)((double)(float)a * (float)b + (float)c);
}
// Towards -∞, and towards 0: the exact value fits a double nearly always, and where it does not these agree with its rounding.
inline float fma_down(float a, float b, float c) {
    double exact = (double)a * b + c;
    float r = (float)exact;
    return (double)r > exact ? nextafterf(r, -INFINITY) : r;
}
inline float add_toward_0(float a, float b) {
    double exact = (double)a + b;
    float r = (float)exact;
    return fabs((double)r) > fabs(exact) ? nextafterf(r, 0.0f) : r;
}
template <class T> inline T neg(T a) { return (T)-a; }
template <class T> inline T abs_of(T a) { return a < (T)0 ? (T)-a : (T)(a + (T)0); }
// NaN loses, as IEEE's minNum has it.
template <class T> inline T min_of(T a, T b) { return a != a ? b : b < a ? b : a; }
template <class T> inline T max_of(T a, T b) { return a != a ? b : b > a ? b : a; }
template <class T> inline T min_nan(T a, T b) { return a != a ? a : b != b ? b : b < a ? b : a; }
template <class T> inline T max_nan(T a, T b) { return a != a ? a : b != b ? b : b > a ? b : a; }
template <class T> inline T shl(T a, u32 n) { return n >= 8 * sizeof(T) ? 0 : (T)((U<T>)a << n); }
template <class T> inline T shr(T a, u32 n) { return n >= 8 * sizeof(T) ? (negative<T> && a < 0 ? (T)-1 : (T)0) : (T)(a >> n); }
template <class T> inline T bfi(T a, T b, u32 at, u32 length) {
    if (at >= 8 * sizeof(T) || !length) return b;
    T mask = (length >= 8 * sizeof(T) ? (T)-1 : (T)(((T)1 << length) - 1)) << at;
    return (T)((b & ~mask) | ((a << at) & mask));
}
template <class T> inline T clz(T a) { return a == 0 ? 8 * sizeof(T) : sizeof(T) == 8 ? __builtin_clzll(a) : __builtin_clz((u32)a); }
inline u32 prmt(u32 a, u32 b, u32 way) {
    u64 both = (u64)b << 32 | a;
    u32 out = 0;
    for (int i = 0; i < 4; i++) {
        u32 n = way >> 4 * i & 15;
        u8 byte = (u8)(both >> 8 * (n & 7));
        if (n & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= (u32)byte << 8 * i;
    }
    return out;
}
inline f32 root(f32 a) { return sqrtf(a); }
inline f64 root(f64 a) { return sqrt(a); }

// Conversions: nearest even, to an integer by the way that is named, and what does not fit becomes the nearest that does.
enum Round { NEAREST, ZERO, DOWNWARDS, UPWARDS, EVEN };
template <class D, class S> inline D convert(S x, Round way, bool saturate) {
    if constexpr (whole<D> && !whole<S>) {
        double v = (double)x;
        if (v != v) return sizeof(D) == 8 ? (D)(1ull << 63) : (D)0;
        v = way == ZERO ? trunc(v) : way == DOWNWARDS ? floor(v) : way == UPWARDS ? ceil(v) : nearbyint(v);
        double top = ldexp(1.0, (int)(8 * sizeof(D)) - (negative<D> ? 1 : 0)), low = negative<D> ? -top : 0.0;
        if (v < low) return negative<D> ? (D)(1ull << (8 * sizeof(D) - 1)) : (D)0;
        if (v >= top) return negative<D> ? (D)((1ull << (8 * sizeof(D) - 1)) - 1) : (D)-1;
        return (D)v;
    } else if constexpr (whole<D>) {
        return (D)x;
    } else {
        if constexpr (sizeof(D) <= sizeof(S) && !whole<S>) {
            if (way != NEAREST) {
                double v = (double)x;
                v = way == ZERO ? trunc(v) : way == DOWNWARDS ? floor(v) : way == UPWARDS ? ceil(v) : nearbyint(v);
                return (D)v;
            }
        }
        D out;
        if constexpr (sizeof(D) == 8) out = (D)x;
        else if constexpr (sizeof(D) == 4) out = (D)x;
        else out = D((float)x);
        if (saturate) {
            float v = (float)out;
            return v != v || v < 0 ? (D)0.0f : v > 1 ? (D)1.0f : out;
        }
        return out;
    }
}

// Together with others.

inline u32 shuffle(Thread *t, Way way, u32 value, u32 by, u32 clamp, u32 mask, bool &ok) {
    t->way = way, t->in[0] = value, t->in[1] = by, t->in[2] = clamp, t->mask = mask;
    t->machine->wait(t, SHUFFLES);
    ok = t->ok;
    return t->out[0];
}
inline u32 vote(Thread *t, bool value, u32 mask) {
    t->in[0] = value, t->mask = mask;
    t->machine->wait(t, VOTES);
    return t->out[0];
}
