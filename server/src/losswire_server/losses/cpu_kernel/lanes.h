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

// For what must see its callers' registers.
#define LOSSWIRE_INLINE __attribute__((always_inline)) inline

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
template <class A> inline Mask<A> read_mask(const Integer<A>* values) {
    Mask<A> mask;
    std::memcpy(&mask, values, sizeof mask);
    return mask;
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

// Whether a comparison holds in any lane.
template <class A> inline bool any_lane(Mask<A> mask) {
#if LOSSWIRE_AVX512
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif LOSSWIRE_AVX2
    return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
    Vector<int64_t> halves = (Vector<int64_t>)mask;
    return (halves[0] | halves[1]) != 0;
#endif
}

// Whether a > b in any lane; false in those with a NaN.
template <class A> inline bool any_greater(Vector<A> a, Vector<A> b) { return any_lane<A>(a > b); }

// The upper half of the lanes is added to the lower one until one lane remains.
template <class A> inline A sum_of_lanes(Vector<A> vector) {
    A lanes[kLanes<A>];
    write_vector(lanes, vector);
    for (int half = kLanes<A> / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
}

// Some lane's value, or NaN, where a lane is NaN.
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
#if LOSSWIRE_AVX512
    __m512 v = (__m512)vector;
    return (Vector<double>)(
        _mm512_cvtps_pd(_mm512_castps512_ps256(v)) + _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1))
    );
#elif LOSSWIRE_AVX2
    __m256 v = (__m256)vector;
    return (Vector<double>)(_mm256_cvtps_pd(_mm256_castps256_ps128(v)) + _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)));
#else
    typedef float HalfVector __attribute__((vector_size(kVectorBytes / 2)));
    HalfVector halves[2];
    std::memcpy(halves, &vector, sizeof vector);
    return __builtin_convertvector(halves[0], Vector<double>) + __builtin_convertvector(halves[1], Vector<double>);
#endif
}
inline Vector<double> widened(Vector<double> vector) { return vector; }

#if LOSSWIRE_AVX512
// GCC takes the halves of registers by way of memory, which costs a short row more than its elements do.
template <> inline double sum_of_lanes<double>(Vector<double> vector) {
    __m256d quarters = _mm256_add_pd(_mm512_castpd512_pd256((__m512d)vector), _mm512_extractf64x4_pd((__m512d)vector, 1));
    __m128d pair = _mm_add_pd(_mm256_castpd256_pd128(quarters), _mm256_extractf128_pd(quarters, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}
template <> inline float largest_of_lanes<float>(Vector<float> vector) {
    __m512 v = (__m512)vector;
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}
#elif LOSSWIRE_AVX2
template <> inline double sum_of_lanes<double>(Vector<double> vector) {
    __m128d pair = _mm_add_pd(_mm256_castpd256_pd128((__m256d)vector), _mm256_extractf128_pd((__m256d)vector, 1));
    return _mm_cvtsd_f64(_mm_add_sd(pair, _mm_unpackhi_pd(pair, pair)));
}
template <> inline float largest_of_lanes<float>(Vector<float> vector) {
    __m256 v = (__m256)vector;
    __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    quarter = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
    return _mm_cvtss_f32(_mm_max_ss(quarter, _mm_movehdup_ps(quarter)));
}
#endif

// All lanes in double precision.
inline void write_doubles(double* to, Vector<float> vector) {
#if LOSSWIRE_AVX512
    _mm512_storeu_pd(to, _mm512_cvtps_pd(_mm512_castps512_ps256((__m512)vector)));
    _mm512_storeu_pd(to + 8, _mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)vector, 1)));
#else
    for (int lane = 0; lane < kLanes<float>; ++lane) to[lane] = double(vector[lane]);
#endif
}
inline void write_doubles(double* to, Vector<double> vector) { write_vector(to, vector); }

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

// The first `count` elements from an address, `rest` in the other lanes: none for a count below 1, all for one of the
// lanes or more. Nothing behind them is read.
template <class X> LOSSWIRE_INLINE Vector<Arithmetic<X>> load_first(const char* address, int count, Arithmetic<X> rest) {
    using A = Arithmetic<X>;
    const Mask<A> is_element = lane_numbers<A>() < Integer<A>(count);
#if LOSSWIRE_AVX512
    const uint32_t bits = count >= kLanes<A> ? 0xffff : count > 0 ? (1u << count) - 1 : 0;
    if constexpr (std::is_same_v<X, float>) {
        return (Vector<float>)_mm512_mask_loadu_ps(_mm512_set1_ps(rest), __mmask16(bits), address);
    } else if constexpr (std::is_same_v<X, double>) {
        return (Vector<double>)_mm512_mask_loadu_pd(_mm512_set1_pd(rest), __mmask8(bits), address);
    } else {
        HalfBits elements = (HalfBits)_mm256_maskz_loadu_epi16(__mmask16(bits), address);
        Vector<float> values = std::is_same_v<X, Half> ? from_half(elements) : from_bfloat16(elements);
        return is_element ? values : broadcast(rest);
    }
#else
    if (count >= kLanes<A>) return load<X>(address);
    if (count <= 0) return broadcast(rest);
#if LOSSWIRE_AVX2
    if constexpr (std::is_same_v<X, float>) {
        Vector<float> values = (Vector<float>)_mm256_maskload_ps(reinterpret_cast<const float*>(address), (__m256i)is_element);
        return is_element ? values : broadcast(rest);
    } else if constexpr (std::is_same_v<X, double>) {
        Vector<double> values =
            (Vector<double>)_mm256_maskload_pd(reinterpret_cast<const double*>(address), (__m256i)is_element);
        return is_element ? values : broadcast(rest);
    }
#endif
    char buffer[kVectorBytes] = {};
    std::memcpy(buffer, address, size_t(count) * sizeof(X));
    return is_element ? load<X>(buffer) : broadcast(rest);
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
LOSSWIRE_INLINE void prefetch(const char* address) { __builtin_prefetch(address, 0, 2); }

}  // namespace losswire
