// A job as cpu.py describes it, and what of it the kernels ask for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace losswire {

enum class Element : int64_t { kHalf = 0, kBfloat16 = 1, kFloat = 2, kDouble = 3 };

// What outputs need besides the sums for the loss: the largest logit and its class, the entropy's sum, the target's rank.
constexpr int64_t kLargest = 1, kEntropy = 2, kRank = 4;

// One job. Every field has 8 bytes and cpu.py packs them in this order. Pointers to outputs that nobody asked for are
// null. Tensors are contiguous; those that are read need not be aligned.
struct Job {
    const char* logits;       // (samples, classes, positions)
    const char* target;       // class indices, int64 (samples, positions), or probabilities like the logits
    const char* weight;       // (class_count) or null
    const char* factors;      // the weight in the type that is computed with, or null
    char* state;              // of the sample that the job is a part of, or null
    void* loss;               // float, or double for double logits; like the other floating outputs
    double* target_weight;
    void* logsumexp;
    void* target_logprob;
    int64_t* target_rank;
    int64_t* argmax;
    uint8_t* top1;
    uint8_t* topk;
    void* entropy;
    void* max_probability;
    void* probability_sum;
    int64_t samples, classes, positions;                // shape of the logits
    int64_t class_count, positions_per_sample;          // of a whole sample
    int64_t class_start, position_start;                // where a part begins
    int64_t ignore_index, top_k;
    Element logits_type, target_type, weight_type;
    int64_t is_probabilities;
    int64_t wanted;           // kWants... of the outputs, which parts that complete no position have no memory for
    double label_smoothing;
    int64_t counted;          // result: number of positions that are not ignored

    bool is_part() const { return state != nullptr; }
    bool completes_positions() const { return class_start + classes == class_count; }
    bool wants(int64_t what) const { return wanted & what; }
    bool is_double() const {
        return logits_type == Element::kDouble || (is_probabilities && target_type == Element::kDouble);
    }
    int64_t label(int64_t position) const {
        int64_t label;
        std::memcpy(&label, target + position * 8, sizeof label);
        return label;
    }
};

template <class X> constexpr Element element_of = Element::kDouble;
template <> constexpr inline Element element_of<Half> = Element::kHalf;
template <> constexpr inline Element element_of<Bfloat16> = Element::kBfloat16;
template <> constexpr inline Element element_of<float> = Element::kFloat;

inline int64_t size_of(Element type) {
    return type == Element::kDouble ? 8 : type == Element::kFloat ? 4 : 2;
}

inline double element_at(const char* tensor, Element type, int64_t index) {
    const char* address = tensor + index * size_of(type);
    switch (type) {
        case Element::kHalf: return load_one<Half>(address);
        case Element::kBfloat16: return load_one<Bfloat16>(address);
        case Element::kFloat: return load_one<float>(address);
        default: return load_one<double>(address);
    }
}

// Which factors v of the gaps a loss needs: none, 1, the weight w, q or q·w, with q the smoothed probabilities.
enum class Factors { kNone, kOne, kWeight, kProbabilities, kWeightedProbabilities };

inline Factors factors_of(const Job& job) {
    if (job.is_probabilities) return job.factors ? Factors::kWeightedProbabilities : Factors::kProbabilities;
    if (!(job.label_smoothing > 0)) return Factors::kNone;
    return job.factors ? Factors::kWeight : Factors::kOne;
}

constexpr bool has_weight(Factors f) { return f == Factors::kWeight || f == Factors::kWeightedProbabilities; }
constexpr bool has_probabilities(Factors f) {
    return f == Factors::kProbabilities || f == Factors::kWeightedProbabilities;
}

}  // namespace losswire
