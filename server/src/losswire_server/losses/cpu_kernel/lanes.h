// Vectors of the widest registers that this translation unit is compiled for: 64, 32 or 16 bytes.
//
// The compiler's own vector types carry the arithmetic. Here is only what they lack or compile badly: loads of narrow
// types, loads of a part, maximum, fused multiply-add, floor, and tests of any lane. Everything is compiled without
// contraction, so that each lane of each vector rounds alike, and a value's bits do not depend on the lane it is in.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace losswire {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define LOSSWIRE_AVX512 1
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define LOSSWIRE_AVX2 1
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Element types of the logits and of class probabilities. Half and Bfloat16 are storage only.
struct Half { uint16_t bits; };
struct Bfloat16 { uint16_t bits; };

// The type in which elements of type X are computed with.
template <class X> struct ArithmeticOf { using Type = float; };
template <> struct ArithmeticOf<double> { using Type = double; };
template <class X> using Arithmetic = typename ArithmeticOf<X>::Type;

template <class A> struct VectorOf { typedef A Type __attribute__((vector_size(kVectorBytes))); };
template <class A> using Vector = typename VectorOf<A>::Type;
template <class A> constexpr int kLanes = kVectorBytes / int(sizeof(A));
template <class A> using Integer = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
// Result of a comparison: every bit of a lane set, or none.
template <class A> using Mask = Vector<Integer<A>>;

template <class A> constexpr A kInfinity = std::numeric_limits<A>::infinity();
template <class A> constexpr A kLowest = std::numeric_limits<A>::lowest();
template <class A> constexpr A kNan = std::numeric_limits<A>::quiet_NaN();

template <class To, class From> inline To bit_cast(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class A> inline Vector<A> broadcast(A value) { return Vector<A>{} + value; }
template <class A> inline Vector<A> read_vector(const A* values) {
    Vector<A> vector;
    std::memcpy(&vector, values, sizeof vector);
    return vector;
}
template <class A> inline void write_vector(A* values, Vector<A> vector) { std::memcpy(values, &vector, sizeof vector); }

// 0, 1, 2, ...
template <class A> inline Mask<A> lane_numbers() {
    Mask<A> numbers;
    for (int lane = 0; lane < kLanes<A>; ++lane) numbers[lane] = lane;
    return numbers;
}

// The larger of each pair of lanes; b where either is NaN, as the instruction has it.
inline Vector<float> larger(Vector<float> a, Vector<float> b) {
#if LOSSWIRE_AVX512
    return (Vector<float>)_mm512_max_ps((__m512)a, (__m512)b);
#elif LOSSWIRE_AVX2
    return (Vector<float>)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}
inline Vector<double> larger(Vector<double> a, Vector<double> b) {
#if LOSSWIRE_AVX512
    return (Vector<double>)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif LOSSWIRE_AVX2
    return (Vector<double>)_mm256_max_pd((__m256d)a, (__m256d)b);
#else
    return a > b ? a : b;
#endif
}

// a·b + c with one rounding where the machine has such an instruction.
inline Vector<float> multiply_add(Vector<float> a, Vector<float> b, Vector<float> c) {
#if LOSSWIRE_AVX512
    return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LOSSWIRE_AVX2
    return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}
inline Vector<double> multiply_add(Vector<double> a, Vector<double> b, Vector<double> c) {
#if LOSSWIRE_AVX512
    return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif LOSSWIRE_AVX2
    return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

// Whether a > b in any lane; false in those with a NaN.
inline bool any_greater(Vector<float> a, Vector<float> b) {
#if LOSSWIRE_AVX512
    return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#elif LOSSWIRE_AVX2
    return _mm256_movemask_ps((__m256)(a > b)) != 0;
#else
    Mask<float> mask = a > b;
    return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}
inline bool any_greater(Vector<double> a, Vector<double> b) {
#if LOSSWIRE_AVX512
    return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ) != 0;
#elif LOSSWIRE_AVX2
    return _mm256_movemask_pd((__m256d)(a > b)) != 0;
#else
    Mask<double> mask = a > b;
    return (mask[0] | mask[1]) != 0;
#endif
}

// Largest power of two of lanes added pairwise, in an order that only the number of lanes determines.
template <class A> inline A sum_of_lanes(Vector<A> vector) {
    A lanes[kLanes<A>];
    write_vector(lanes, vector);
    for (int half = kLanes<A> / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

template <class A> inline A largest_of_lanes(Vector<A> vector) {
    A lanes[kLanes<A>];
    write_vector(lanes, vector);
    for (int half = kLanes<A> / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane)
            lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    return lanes[0];
}

// The sum of both halves of a vector, in double precision.
inline Vector<double> widened(Vector<float> vector) {
    typedef float HalfVector __attribute__((vector_size(kVectorBytes / 2)));
    HalfVector halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return __builtin_convertvector(halves[0], Vector<double>) + __builtin_convertvector(halves[1], Vector<double>);
}
inline Vector<double> widened(Vector<double> vector) { return vector; }

typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordBits __attribute__((vector_size(kVectorBytes)));

inline Vector<float> from_half(HalfBits bits) {
#if LOSSWIRE_AVX512
    return (Vector<float>)_mm512_cvtph_ps((__m256i)bits);
#elif LOSSWIRE_AVX2
    return (Vector<float>)_mm256_cvtph_ps((__m128i)bits);
#else
    // The exponents of both types differ by 112; a product with 2^112 makes subnormals right too.
    WordBits words = __builtin_convertvector(bits, WordBits);
    WordBits magnitude = (words & 0x7fffu) << 13;
    WordBits finite = (WordBits)((Vector<float>)magnitude * 0x1p112f);
    WordBits special = magnitude | 0x7f800000u;
    WordBits is_special = (WordBits)((words & 0x7c00u) == 0x7c00u);
    return (Vector<float>)(((words & 0x8000u) << 16) | (is_special & special) | (~is_special & finite));
#endif
}

inline Vector<float> from_bfloat16(HalfBits bits) {
#if LOSSWIRE_AVX512
    return (Vector<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bits), 16);
#elif LOSSWIRE_AVX2
    return (Vector<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#else
    return (Vector<float>)(__builtin_convertvector(bits, WordBits) << 16);
#endif
}

// The elements from an address, which need not be aligned, in the type they are computed with.
template <class X> inline Vector<Arithmetic<X>> load(const char* address) {
    if constexpr (std::is_same_v<X, Half> || std::is_same_v<X, Bfloat16>) {
        HalfBits bits;
        std::memcpy(&bits, address, sizeof bits);
        if constexpr (std::is_same_v<X, Half>) return from_half(bits);
        return from_bfloat16(bits);
    } else {
        Vector<X> vector;
        std::memcpy(&vector, address, sizeof vector);
        return vector;
    }
}

// The first `count` elements from an address, 0 in the other lanes. Nothing behind them is read.
template <class X> inline Vector<Arithmetic<X>> load_part(const char* address, int count) {
#if LOSSWIRE_AVX512
    if constexpr (std::is_same_v<X, float>) {
        return (Vector<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), address);
    } else if constexpr (std::is_same_v<X, double>) {
        return (Vector<double>)_mm512_maskz_loadu_pd(__mmask8((1u << count) - 1), address);
    } else {
        HalfBits bits = (HalfBits)_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), address);
        if constexpr (std::is_same_v<X, Half>) return from_half(bits);
        return from_bfloat16(bits);
    }
#else
    char buffer[kVectorBytes] = {};
    std::memcpy(buffer, address, size_t(count) * sizeof(X));
    return load<X>(buffer);
#endif
}

// One element.
template <class X> inline Arithmetic<X> load_one(const char* address) {
    X element;
    std::memcpy(&element, address, sizeof element);
    if constexpr (std::is_same_v<X, Half>) {
        uint32_t magnitude = (element.bits & 0x7fffu) << 13, sign = (element.bits & 0x8000u) << 16;
        uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
        return bit_cast<float>(sign | ((element.bits & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : finite));
    } else if constexpr (std::is_same_v<X, Bfloat16>) {
        return bit_cast<float>(uint32_t(element.bits) << 16);
    } else {
        return element;
    }
}

// Brings a line to the second-level cache: the first-level one has too few misses in flight to wait for memory.
inline void prefetch(const char* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace losswire
