// Jobs that are evaluated row by row: one position a sample, and more classes than kMaxTransposedClasses.
#pragma once

#include "dispatch.h"
#include "rows.h"

namespace losswire {

class RowJob {
  public:
    explicit RowJob(Job& job)
        : job_(job),
          type_(common_type(job)),
          is_converted_(type_ != job.logits_type || (job.is_probabilities && type_ != job.target_type)) {
        reduce_ = chosen_reduce();
    }

    int64_t segments_per_row() const { return (job_.classes + kMaxSegmentClasses - 1) / kMaxSegmentClasses; }

    Sums segment(int64_t row, int64_t segment) const { return (this->*reduce_)(row, segment); }

    Sums start() const { return job_.is_double() ? no_sums<double>() : no_sums<float>(); }

    void fold_next(Sums& sums, const Sums& next) const {
        if (next.target_logit == next.target_logit) sums.target_logit = next.target_logit;
        job_.is_double() ? fold<double>(sums, next) : fold<float>(sums, next);
    }

    // Evaluates whole rows: some side by side where they share factors, which then come from the first-level cache.
    void evaluate(int64_t first, int64_t end, Results& results) const {
        const int64_t segments = segments_per_row(), most_abreast = job_.factors && segments > 1 ? kRowsAbreast : 1;
        for (int64_t row = first, next; row < end; row = next) {
            next = std::min(end, row + most_abreast);
            Sums sums[kRowsAbreast];
            for (int64_t i = row; i < next; ++i) sums[i - row] = (this->*reduce_)(i, 0);
            for (int64_t segment = 1; segment < segments; ++segment)
                for (int64_t i = row; i < next; ++i) fold_next(sums[i - row], (this->*reduce_)(i, segment));
            for (int64_t i = row; i < next; ++i) results.add(i, sums[i - row]);
        }
    }

  private:
    using Reduce = Sums (RowJob::*)(int64_t, int64_t) const;
    static constexpr int64_t kRowsAbreast = 4;

    Reduce chosen_reduce() const;

    template <class X, Factors F, bool kEntropy> Sums reduce(int64_t row, int64_t segment) const {
        Stretch stretch = stretch_of(row, segment);
        Sums sums = sums_of<X, F, kEntropy>(stretch);
        add_target<X>(sums, stretch, row);
        return sums;
    }

    LOSSWIRE_INLINE Stretch stretch_of(int64_t row, int64_t segment) const {
        int64_t start = segment * kMaxSegmentClasses, first = row * job_.classes + start;
        Stretch stretch{};
        stretch.classes = std::min(kMaxSegmentClasses, job_.classes - start);
        stretch.first_class = job_.class_start + start;
        stretch.wants_largest = job_.wants(kLargest);
        stretch.label_smoothing = job_.label_smoothing;
        stretch.smoothing_share = job_.label_smoothing / double(job_.class_count);
        if (job_.factors) stretch.factors = job_.factors + stretch.first_class * (job_.is_double() ? 8 : 4);
        stretch.logits = job_.logits + first * size_of(job_.logits_type);
        if (job_.is_probabilities) stretch.probabilities = job_.target + first * size_of(job_.target_type);
        if (is_converted_) convert(stretch, first);
        return stretch;
    }

    __attribute__((noinline)) void convert(Stretch& stretch, int64_t first) const {
        static thread_local double buffers[2][kMaxSegmentClasses];
        auto convert_both = [&](auto to) {
            using A = TypeIn<decltype(to)>;
            A *logits = reinterpret_cast<A*>(buffers[0]), *probabilities = reinterpret_cast<A*>(buffers[1]);
            copy_elements(logits, job_.logits, job_.logits_type, first, stretch.classes);
            copy_elements(probabilities, job_.target, job_.target_type, first, stretch.classes);
            stretch.logits = reinterpret_cast<const char*>(logits);
            stretch.probabilities = reinterpret_cast<const char*>(probabilities);
        };
        job_.is_double() ? convert_both(Type<double>{}) : convert_both(Type<float>{});
    }

    template <class X> LOSSWIRE_INLINE void add_target(Sums& sums, const Stretch& stretch, int64_t row) const {
        if (job_.wants(kLargest)) add_argmax<X>(sums, stretch);
        if (job_.is_probabilities) return;
        int64_t label = job_.label(row), place = label - stretch.first_class;
        if (label >= 0 && place >= 0 && place < stretch.classes)
            sums.target_logit = load_one<X>(stretch.logits + place * int64_t(sizeof(X)));
        if (job_.wants(kRank) && label >= 0 && label < job_.class_count) {
            const char* of_target = job_.logits + (row * job_.classes + label) * int64_t(sizeof(X));
            sums.rank = classes_before<X>(stretch, load_one<X>(of_target), label);
        }
    }

    Job& job_;
    const Element type_;
    const bool is_converted_;
    Reduce reduce_;
};

// Not within the class, where Clang 14 does not generate the functions that generic lambdas name.
inline RowJob::Reduce RowJob::chosen_reduce() const {
    return with_type(type_, [&](auto type) {
        return with_factors(factors_of(job_), [&](auto factors) {
            return with_flag(job_.wants(kEntropy), [&](auto entropy) -> Reduce {
                return &RowJob::reduce<TypeIn<decltype(type)>, decltype(factors)::value, decltype(entropy)::value>;
            });
        });
    });
}

}  // namespace losswire
