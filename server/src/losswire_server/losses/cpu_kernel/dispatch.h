// From the types and options of a job, known at run time, to the template that was compiled for them.
#pragma once

#include <utility>

#include "job.h"

namespace losswire {

template <class T> struct Type { using type = T; };
template <class T> using TypeIn = typename std::decay_t<T>::type;

// Calls f(Type<X>{}) with the element type.
template <class F> inline auto with_type(Element type, F&& f) {
    switch (type) {
        case Element::kHalf: return f(Type<Half>{});
        case Element::kBfloat16: return f(Type<Bfloat16>{});
        case Element::kFloat: return f(Type<float>{});
        default: return f(Type<double>{});
    }
}

// Calls f with a constant of the factors.
template <class F> inline auto with_factors(Factors factors, F&& f) {
    switch (factors) {
        case Factors::kNone: return f(std::integral_constant<Factors, Factors::kNone>{});
        case Factors::kOne: return f(std::integral_constant<Factors, Factors::kOne>{});
        case Factors::kWeight: return f(std::integral_constant<Factors, Factors::kWeight>{});
        case Factors::kProbabilities: return f(std::integral_constant<Factors, Factors::kProbabilities>{});
        default: return f(std::integral_constant<Factors, Factors::kWeightedProbabilities>{});
    }
}

template <class F> inline auto with_flag(bool flag, F&& f) {
    return flag ? f(std::true_type{}) : f(std::false_type{});
}

// The type that both tensors of a job are computed from: their own if they share it, else the arithmetic type.
inline Element common_type(const Job& job) {
    if (!job.is_probabilities || job.target_type == job.logits_type) return job.logits_type;
    return job.is_double() ? Element::kDouble : Element::kFloat;
}

// Copies elements, converting them if they have another type.
template <class To> inline void copy_elements(To* to, const char* tensor, Element type, int64_t first, int64_t count) {
    with_type(type, [&](auto t) {
        using From = TypeIn<decltype(t)>;
        const char* from = tensor + first * int64_t(sizeof(From));
        if constexpr (std::is_same_v<From, To>) {
            std::memcpy(to, from, size_t(count) * sizeof(To));
        } else if constexpr (std::is_same_v<To, float> || std::is_same_v<To, double>) {
            for (int64_t i = 0; i < count; ++i) to[i] = To(load_one<From>(from + i * int64_t(sizeof(From))));
        }
    });
}

}  // namespace losswire
