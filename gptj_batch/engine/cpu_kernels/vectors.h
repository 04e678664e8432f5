// Vectors of floats as wide as a register, and what every kernel does with them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int TILE = 16;  // tokens of keys and values, or outputs of a product, that stand together
// A vector is what one register holds: of longer ones g++ keeps every sum in memory, which is twenty times as slow.
// SUMS of them leave enough registers, of 32 or 16, for what is loaded.
#ifdef __AVX512F__
constexpr int LANES = 16, SUMS = 24;
#else
constexpr int LANES = 8, SUMS = 12;
#endif
constexpr int PARTS = TILE / LANES;
typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IVec __attribute__((vector_size(LANES * 4)));

// How many vectors, at most `most`, have room for the sums of so many queries.
constexpr int fitting(int queries, int most) { return queries * most <= SUMS ? most : fitting(queries, most / 2); }

inline Vec load(const float* from) { Vec v; std::memcpy(&v, from, sizeof v); return v; }
inline Vec widen(const float* from) { return load(from); }
inline Vec widen(const uint16_t* from) {
    typedef uint16_t Half __attribute__((vector_size(LANES * 2)));
    Half half; std::memcpy(&half, from, sizeof half);
    return (Vec)(__builtin_convertvector(half, IVec) << 16);
}
inline IVec load_pairs(const uint16_t* from) { IVec v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }
inline Vec splat(float x) { return x - Vec{}; }

inline float to_float(uint16_t x) { uint32_t bits = uint32_t(x) << 16; float y; std::memcpy(&y, &bits, 4); return y; }
inline float to_float(float x) { return x; }

// Rounded to the nearest bfloat16, ties to even, as torch does; NaN stays NaN. The upper halves of the lanes hold it.
inline IVec round_bits(Vec x) {
    const IVec bits = (IVec)x;
    return (x == x) ? bits + 0x7fff + ((bits >> 16) & 1) : IVec{} + 0x7fc00000;
}
inline void store_rounded(uint16_t* to, Vec x) {
    typedef int16_t Half __attribute__((vector_size(LANES * 2)));
    const Half half = __builtin_convertvector(round_bits(x) >> 16, Half);
    std::memcpy(to, &half, sizeof half);
}
inline void store_rounded(float* to, Vec x) { store(to, x); }
inline void assign(uint16_t& to, float x) { to = uint16_t(uint32_t(round_bits(splat(x))[0]) >> 16); }
inline void assign(float& to, float x) { to = x; }

// acc + a[0] * b[0] + a[1] * b[1] in each lane: a is a pair of bfloat16 for each, b one pair.
inline Vec dot_pairs(Vec acc, IVec a, int32_t b) {
#ifdef __AVX512BF16__
    return (Vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512i)a, (__m512bh)_mm512_set1_epi32(b));
#else
    const float b0 = to_float(uint16_t(b)), b1 = to_float(uint16_t(uint32_t(b) >> 16));
    acc += (Vec)(a << 16) * b0;
    acc += (Vec)(a & int32_t(0xffff0000)) * b1;
    return acc;
#endif
}

// e^x for x <= 0, to about 2 ulp (Cephes' expf: range reduction by ln 2 in two parts, then a polynomial).
inline Vec exp_vec(Vec x) {
    const Vec lowest = splat(-87.0f);
    const IVec tiny = x < lowest;  // all ones where the result is 0
    x = tiny ? lowest : x;
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest whole number
    Vec n = (x * 1.44269504088896341f + magic) - magic;
    Vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    IVec power = (__builtin_convertvector(n, IVec) + 127) << 23;
    Vec result = p * (Vec)power;
    return tiny ? Vec{} : result;
}

inline float sum_lanes(Vec v) {
    float total = 0.0f;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}
inline float max_lanes(Vec v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = v[i] > most ? v[i] : most;
    return most;
}

// GELU by tanh: x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline Vec gelu(Vec x) {
    const Vec u = (x + x * x * x * 0.044715f) * 1.5957691216057308f;
    const Vec e = exp_vec(u < 0.0f ? u : -u);
    return u < 0.0f ? x * e / (1.0f + e) : x / (1.0f + e);
}

}  // namespace
