// Rows whose classes lie next to one another: the lanes of a vector are classes.
//
// A row is reduced segment by segment. Each segment is touched twice while it is in the first-level cache: once for its
// largest logit (a read from memory), once for the sums (one exponential per element), during which the segment
// after the next one is brought to the second-level cache. Which lane a class falls into, and the order in which lanes are added, depend on its place in the segment
// alone.
//
// Memory traffic per row: C logits, C probabilities if there are any; C factors from a cache.
#pragma once

#include "results.h"

namespace losswire {

constexpr int64_t kMaxSegmentClasses = 4096;  // MAX_SEGMENT_CLASSES of job.py

// A stretch of classes of one row.
struct Stretch {
    const char* logits;
    const char* probabilities;  // or null
    const char* factors;        // or null
    int64_t classes;
    int64_t first_class;
    int64_t ahead;  // elements from here to the stretch that is reduced after the next one
    double label_smoothing, smoothing_share;  // e and e/C
};

// Sums of vectors in four independent chains, moved to double precision every 16 vectors of each.
template <class A> struct Chains {
    static constexpr int kCount = 4;
    static constexpr int64_t kRun = 16 * kCount * kLanes<A>;

    Vector<A> chain[kCount] = {};
    Vector<double> total = {};

    void end_run() {
        total += widened((chain[0] + chain[1]) + (chain[2] + chain[3]));
        for (auto& each : chain) each = Vector<A>{};
    }
    double sum() const { return sum_of_lanes<double>(total); }
};

template <class X, Factors F, bool kEntropy> class SegmentSums {
    using A = Arithmetic<X>;

  public:
    explicit SegmentSums(const Stretch& stretch)
        : stretch_(stretch),
          keep_(A(1 - stretch.label_smoothing)),
          share_(A(stretch.smoothing_share)) {}

    Sums reduce(A* scratch) {
        A largest = find_largest(scratch);
        reference_ = broadcast(largest > kLowest<A> ? largest : kLowest<A>);
        const A* logits = kIsConverted ? scratch : reinterpret_cast<const A*>(stretch_.logits);
        const char* address = reinterpret_cast<const char*>(logits);
        int64_t n = stretch_.classes, i = 0;
        while (i + kStep <= n) {
            for (int64_t end = std::min(n - kStep, i + exp_sum_.kRun - kStep); i <= end; i += kStep) {
                prefetch_ahead(i);
                for (int k = 0; k < 4; ++k) add<false>(k, i + k * kLanes<A>, load<A>(address + (i + k * kLanes<A>) * sizeof(A)), 0);
            }
            end_run();
        }
        int k = 0;
        for (; i + kLanes<A> <= n; i += kLanes<A>) add<false>(k++, i, load<A>(address + i * sizeof(A)), 0);
        if (i < n) add<true>(k, i, load_part<A>(address + i * sizeof(A), int(n - i)), int(n - i));
        end_run();
        return sums(largest);
    }

  private:
    static constexpr int64_t kStep = 4 * kLanes<A>;
    static constexpr bool kIsConverted = !std::is_same_v<X, A>;

    // NaN or not, when there are NaNs: they show in the sums.
    A find_largest(A* scratch) const {
        int64_t n = stretch_.classes, i = 0;
        Vector<A> largest[4];
        for (auto& each : largest) each = broadcast(-kInfinity<A>);
        auto take = [&](int k, int64_t i, Vector<A> x) {
            if constexpr (kIsConverted) write_vector(scratch + i, x);
            largest[k] = larger(largest[k], x);
        };
        const char* logits = stretch_.logits;
        for (; i + kStep <= n; i += kStep)
            for (int k = 0; k < 4; ++k) take(k, i + k * kLanes<A>, load<X>(logits + (i + k * kLanes<A>) * sizeof(X)));
        for (; i + kLanes<A> <= n; i += kLanes<A>) take(0, i, load<X>(logits + i * sizeof(X)));
        if (i < n) {
            Vector<A> x = load_part<X>(logits + i * sizeof(X), int(n - i));
            take(0, i, lane_numbers<A>() < Integer<A>(n - i) ? x : broadcast(-kInfinity<A>));
        }
        return largest_of_lanes<A>(larger(larger(largest[0], largest[1]), larger(largest[2], largest[3])));
    }

    // What the stretch after the next one will read, a line for each that is worked on. An address past the end of the
    // tensor does no harm.
    void prefetch_ahead(int64_t i) const {
        for (int64_t line = i; line < i + kStep; line += 64 / int64_t(sizeof(X))) {
            prefetch(stretch_.logits + (stretch_.ahead + line) * int64_t(sizeof(X)));
            if constexpr (has_probabilities(F))
                prefetch(stretch_.probabilities + (stretch_.ahead + line) * int64_t(sizeof(X)));
        }
    }

    template <bool kIsPart, class T> Vector<A> load_as(const char* tensor, int64_t i, int count) const {
        if constexpr (kIsPart) return load_part<T>(tensor + i * sizeof(T), count);
        return load<T>(tensor + i * sizeof(T));
    }

    template <bool kIsPart> void add(int k, int64_t i, Vector<A> x, int count) {
        Vector<A> y = x - reference_;
        Vector<A> e = exponential(y);
        if constexpr (kIsPart) {
            Mask<A> is_class = lane_numbers<A>() < Integer<A>(count);
            y = is_class ? y : Vector<A>{};
            e = is_class ? e : Vector<A>{};
        }
        exp_sum_.chain[k] += e;
        // At a logit of -inf this is 0·inf; entropy takes the limit, 0.
        if constexpr (kEntropy) gap_exp_sum_.chain[k] -= e == 0 ? Vector<A>{} : e * y;
        if constexpr (F == Factors::kOne) factor_gap_sum_.chain[k] -= y;
        if constexpr (F == Factors::kWeight) {
            Vector<A> v = load_as<kIsPart, A>(stretch_.factors, i, count);
            factor_gap_sum_.chain[k] = multiply_add(-y, v, factor_gap_sum_.chain[k]);
            factor_sum_.chain[k] += v;
        }
        if constexpr (has_probabilities(F)) {
            Vector<A> p = load_as<kIsPart, X>(stretch_.probabilities, i, count);
            Vector<A> v = p * keep_ + share_;
            if constexpr (kIsPart) v = lane_numbers<A>() < Integer<A>(count) ? v : Vector<A>{};
            if constexpr (has_weight(F)) v *= load_as<kIsPart, A>(stretch_.factors, i, count);
            factor_gap_sum_.chain[k] = multiply_add(-y, v, factor_gap_sum_.chain[k]);
            factor_sum_.chain[k] += v;
            probability_sum_.chain[k] += p;
        }
    }

    void end_run() {
        exp_sum_.end_run();
        if constexpr (kEntropy) gap_exp_sum_.end_run();
        if constexpr (F != Factors::kNone) factor_gap_sum_.end_run();
        if constexpr (F != Factors::kNone && F != Factors::kOne) factor_sum_.end_run();
        if constexpr (has_probabilities(F)) probability_sum_.end_run();
    }

    Sums sums(A largest) const {
        Sums sums = no_sums<A>();
        sums.largest = largest;
        sums.reference = reference_[0];
        sums.exp_sum = exp_sum_.sum();
        if constexpr (kEntropy) sums.gap_exp_sum = gap_exp_sum_.sum();
        if constexpr (F != Factors::kNone) sums.factor_gap_sum = factor_gap_sum_.sum();
        if constexpr (F == Factors::kOne) sums.factor_sum = double(stretch_.classes);
        if constexpr (F != Factors::kNone && F != Factors::kOne) sums.factor_sum = factor_sum_.sum();
        if constexpr (has_probabilities(F)) sums.probability_sum = probability_sum_.sum();
        return sums;
    }

    const Stretch& stretch_;
    const A keep_, share_;
    Vector<A> reference_;
    Chains<A> exp_sum_, factor_gap_sum_, factor_sum_, gap_exp_sum_, probability_sum_;
};

// First class of a stretch that has this logit, or is NaN if the logit is; -1 if none.
template <class X> inline int64_t find_class(const Stretch& stretch, Arithmetic<X> logit) {
    for (int64_t i = 0; i < stretch.classes; ++i) {
        Arithmetic<X> x = load_one<X>(stretch.logits + i * sizeof(X));
        if (x == logit || (x != x && logit != logit)) return stretch.first_class + i;
    }
    return -1;
}

// Classes of a stretch whose logit is larger than the target's, or as large and first.
template <class X> inline int64_t classes_before(const Stretch& stretch, Arithmetic<X> target_logit, int64_t target) {
    int64_t count = 0;
    for (int64_t i = 0; i < stretch.classes; ++i) {
        Arithmetic<X> x = load_one<X>(stretch.logits + i * sizeof(X));
        count += x > target_logit || (x == target_logit && stretch.first_class + i < target);
    }
    return count;
}

// Sets the largest logit and its class, which are not those of the sums if there is a NaN.
template <class X> inline void add_argmax(Sums& sums, const Stretch& stretch) {
    if (sums.exp_sum != sums.exp_sum) {
        int64_t first_nan = find_class<X>(stretch, kNan<Arithmetic<X>>);
        if (first_nan >= 0) {
            sums.largest = kNan<double>;
            sums.argmax = first_nan;
            return;
        }
        // All logits are numbers, but infinite ones: the search below is exact.
    }
    sums.argmax = find_class<X>(stretch, Arithmetic<X>(sums.largest));
}

}  // namespace losswire
