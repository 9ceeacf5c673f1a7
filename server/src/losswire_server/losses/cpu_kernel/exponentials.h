// exp and log of vectors, for the arguments that occur in sums of exponentials.
#pragma once

#include "lanes.h"

namespace losswire {

// Rounds towards -inf.
inline Vector<float> floor_of(Vector<float> x) {
#if LOSSWIRE_AVX2
    return (Vector<float>)_mm256_floor_ps((__m256)x);
#else
    Vector<float> truncated = __builtin_convertvector(__builtin_convertvector(x, Mask<float>), Vector<float>);
    return truncated > x ? truncated - 1.0f : truncated;
#endif
}

// e^y for y <= 80, within 1.5 units in the last place of float32 besides what rounding y·log2(e) costs; 0 below -87,
// exactly 1 at 0, NaN for NaN.
//
// e^y = 2^n · 2^f with n + f = y·log2(e), n whole and 0 <= f < 1. The polynomial is the minimax one for the relative
// error of 2^f (8.3e-8), with 2^0 = 1 exactly.
inline Vector<float> exponential(Vector<float> y) {
    const float c1 = 0.693151311804638f, c2 = 0.24016445015482243f, c3 = 0.05579991310440162f,
                c4 = 0.009017030321766704f, c5 = 0.0018671300701202291f, log2_e = 1.4426950408889634f;
    auto power = [&](Vector<float> f) {
        Vector<float> p = multiply_add(f, broadcast(c5), broadcast(c4));
        p = multiply_add(p, f, broadcast(c3));
        p = multiply_add(p, f, broadcast(c2));
        p = multiply_add(p, f, broadcast(c1));
        return multiply_add(p, f, broadcast(1.0f));
    };
#if LOSSWIRE_AVX512
    // Both instructions take the floor, treat infinities as limits, and hand on NaN.
    __m512 t = (__m512)(y * log2_e);
    __m512 f = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return (Vector<float>)_mm512_scalef_ps((__m512)power((Vector<float>)f), t);
#else
    Vector<float> t = larger(broadcast(-87.0f), y) * log2_e;
    Vector<float> n = floor_of(t);
    Mask<float> bits = (Mask<float>)power(t - n) + (__builtin_convertvector(n, Mask<float>) << 23);
    Vector<float> e = y == y ? (Vector<float>)bits : y;
    return y < -87.0f ? Vector<float>{} : e;
#endif
}

// e^y for y <= 700, within 1 unit in the last place of float64; 0 below -700, exactly 1 at 0, NaN for NaN.
inline Vector<double> exponential(Vector<double> y) {
    const double log2_e = 1.4426950408889634, ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    const double to_whole = 0x1.8p52;
    Vector<double> clamped = larger(broadcast(-700.0), y);
    Vector<double> shifted = clamped * log2_e + to_whole;
    Vector<double> n = shifted - to_whole;
    Vector<double> r = multiply_add(n, broadcast(-ln2_high), clamped);
    r = multiply_add(n, broadcast(-ln2_low), r);
    // Taylor's series: the first term left out is 1.7e-18 at |r| = ln(2)/2.
    const double inverse_factorials[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                         1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1, 1};
    Vector<double> p = broadcast(inverse_factorials[0]);
    for (int i = 1; i < 14; ++i) p = multiply_add(p, r, broadcast(inverse_factorials[i]));
    Vector<double> e = (Vector<double>)((Mask<double>)p + ((Mask<double>)shifted << 52));
    e = y == y ? e : y;
    return y < -700.0 ? Vector<double>{} : e;
}

// log x for x = 0 or x a normal number, within 1 unit in the last place of float64: -inf at 0, exactly 0 at 1.
//
// x = 2^k·m with sqrt(1/2) <= m < sqrt(2), and log m = 2·atanh(h) = 2·(h + h^3/3 + h^5/5 + ...), h = (m-1)/(m+1).
inline Vector<double> logarithm(Vector<double> x) {
    const double ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
    Mask<double> bits = (Mask<double>)x;
    Mask<double> k = (bits - 0x3fe6a09e667f3bcd) >> 52;
    Vector<double> m = (Vector<double>)(bits - (k << 52));
    // Small integers become floating-point numbers by way of the mantissa of 1.5·2^52.
    Vector<double> exponent = (Vector<double>)(k + 0x4338000000000000) - 0x1.8p52;
    Vector<double> h = (m - 1.0) / (m + 1.0), z = h * h;
    Vector<double> series = broadcast(1.0 / 23);
    for (int odd = 21; odd >= 3; odd -= 2) series = multiply_add(series, z, broadcast(1.0 / odd));
    Vector<double> twice = h + h;
    Vector<double> log = exponent * ln2_high + (twice + (twice * z * series + exponent * ln2_low));
    log = x == 0.0 ? broadcast(-kInfinity<double>) : log;
    return x < kInfinity<double> ? log : x;
}

inline double exponential_of(double y) { return exponential(broadcast(y))[0]; }

}  // namespace losswire
