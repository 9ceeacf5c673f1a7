// Rows whose classes lie next to one another: the lanes of a vector are classes.
//
// A row is reduced segment by segment, and a segment block by block: the logits of a block stay in registers from the one
// load to the exponentials. The reference is the largest logit of the first block, and is raised only when a logit
// exceeds it by kRowSlack, so that an element costs one exponential. Which lane a class falls into, and the order in
// which lanes are added, depend on its place in the segment alone.
//
// Memory traffic per row: C logits, C probabilities if there are any; C factors from a cache.
#pragma once

#include "results.h"

namespace losswire {

constexpr int64_t kMaxSegmentClasses = 4096;  // MAX_SEGMENT_CLASSES of job.py
// Normal logits seldom exceed the first 128 by more, and the entropy subtracts numbers of this size.
constexpr int kRowSlack = 4;
// How far ahead of its use a line is asked for.
constexpr int64_t kRowPrefetchBytes = 4096;

// A stretch of classes of one row.
struct Stretch {
    const char* logits;
    const char* probabilities;  // or null
    const char* factors;        // or null
    int64_t classes;
    int64_t first_class;
    bool wants_largest;
    double label_smoothing, smoothing_share;  // e and e/C
};

// Sums of vectors in independent chains, moved to double precision every 16 vectors of each.
template <class A> struct Chains {
    static constexpr int kCount = 4;

    Vector<A> chain[kCount] = {};
    Vector<double> total = {};

    LOSSWIRE_INLINE void end_run() {
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

    static constexpr int kVectors = 8;
    static constexpr int64_t kBlock = kVectors * kLanes<A>;

    LOSSWIRE_INLINE Sums reduce() {
        const int64_t n = stretch_.classes;
        int64_t i = 0;
        start(load_block(0).largest());
        while (i + kBlock <= n) {
            for (int64_t end = std::min(n, i + kRun); i + kBlock <= end; i += kBlock) add_block(i);
            end_run();
        }
        if (i + kBlock / 2 < n) {
            add_tail<kVectors, false>(i, int(n - i));
        } else if (i < n) {
            add_tail<kVectors / 2, false>(i, int(n - i));
        }
        return sums();
    }

    // The same for less than a block: in it nothing can exceed the reference, and all sums stay in registers.
    template <int kCount> LOSSWIRE_INLINE Sums reduce_short() {
        add_tail<kCount, true>(0, int(stretch_.classes));
        return sums();
    }

  private:
    static constexpr int64_t kRun = 16 * Chains<A>::kCount * kLanes<A>;

    template <int kCount> struct Block {
        Vector<A> x[kCount];

        Vector<A> largest() const {
            Vector<A> found = larger(larger(x[0], x[1]), larger(x[2], x[3]));
            if constexpr (kCount > 4) found = larger(found, larger(larger(x[4], x[5]), larger(x[6], x[7])));
            return found;
        }
    };

    LOSSWIRE_INLINE Block<kVectors> load_block(int64_t i) const {
        Block<kVectors> block;
        for (int k = 0; k < kVectors; ++k) block.x[k] = load<X>(logits_at(i + k * kLanes<A>));
        return block;
    }

    const char* logits_at(int64_t i) const { return stretch_.logits + i * int64_t(sizeof(X)); }

    LOSSWIRE_INLINE void add_block(int64_t i) {
        Block<kVectors> block = load_block(i);
        prefetch_from(logits_at(i));
        if constexpr (has_probabilities(F)) prefetch_from(stretch_.probabilities + i * int64_t(sizeof(X)));
        take_largest(block.largest(), i);
        for (int k = 0; k < kVectors; ++k)
            add<false>(k % Chains<A>::kCount, i + k * kLanes<A>, block.x[k], kLanes<A>);
    }

    // The last classes, at most `kCount` vectors of them. Vectors without any change no sum, and cost less than a branch.
    template <int kCount, bool kIsFirst> LOSSWIRE_INLINE void add_tail(int64_t i, int count) {
        Block<kCount> block;
        for (int k = 0; k < kCount; ++k)
            block.x[k] = load_first<X>(logits_at(i + k * kLanes<A>), count - k * kLanes<A>, -kInfinity<A>);
        if constexpr (kIsFirst) {
            start(block.largest());
        } else {
            take_largest(block.largest(), i);
        }
        for (int k = 0; k < kCount; ++k)
            add<true>(k % Chains<A>::kCount, i + k * kLanes<A>, block.x[k], count - k * kLanes<A>);
        end_run();
    }

    // An address past the end of the tensor does no harm. Inlined, because GCC takes a function that only prefetches for
    // one that does nothing, and drops its calls.
    LOSSWIRE_INLINE static void prefetch_from(const char* address) {
        for (int64_t line = 0; line < kBlock * int64_t(sizeof(X)); line += 64) prefetch(address + line + kRowPrefetchBytes);
    }

    LOSSWIRE_INLINE void start(Vector<A> largest) {
        largest_ = largest;
        refer_to(std::max(kLowest<A>, largest_of_lanes<A>(largest)));
    }

    // Raises the reference if a logit exceeds it by more than the slack. Beside NaNs it may miss one: they show in the
    // sums. `i` classes were added before.
    LOSSWIRE_INLINE void take_largest(Vector<A> largest, int64_t i) {
        largest_ = larger(largest, largest_);
        if (__builtin_expect(any_greater<A>(largest, limit_), 0)) raise(largest_of_lanes<A>(largest), i);
    }

    // Inlined, so that the sums can live in registers.
    LOSSWIRE_INLINE void raise(A logit, int64_t i) {
        if (!(logit > reference_[0])) return;
        const double rise = difference<A>(double(logit), double(reference_[0]));
        const Vector<double> decay = exponential(broadcast(-rise));
        end_run();
        if constexpr (F == Factors::kOne) factor_gap_sum_.total += double(i / kLanes<double>) * rise;
        if constexpr (F != Factors::kNone && F != Factors::kOne) {
            Vector<double> factor_sum = factor_sum_.total;
            factor_gap_sum_.total += factor_sum != 0 ? factor_sum * rise : Vector<double>{};
        }
        if constexpr (kEntropy) {
            double finite_rise = std::min(rise, double(std::numeric_limits<A>::max()));
            gap_exp_sum_.total = decay * gap_exp_sum_.total + decay * finite_rise * exp_sum_.total;
        }
        exp_sum_.total *= decay;
        refer_to(logit);
    }

    LOSSWIRE_INLINE void refer_to(A logit) {
        reference_ = broadcast(logit);
        limit_ = reference_ + A(kRowSlack);
    }

    template <bool kIsPart, class T> Vector<A> load_as(const char* tensor, int64_t i, int count) const {
        if constexpr (kIsPart) return load_first<T>(tensor + i * int64_t(sizeof(T)), count, 0);
        return load<T>(tensor + i * int64_t(sizeof(T)));
    }

    // Adds a vector of classes to the chains; of a part the lanes from `count` on, which may be none or all, hold -inf.
    template <bool kIsPart> LOSSWIRE_INLINE void add(int k, int64_t i, Vector<A> x, int count) {
        Vector<A> y = x - reference_;
        Vector<A> e = exponential(y);
        exp_sum_.chain[k] += e;
        // At a logit of -inf this is 0·inf; entropy takes the limit, 0.
        if constexpr (kEntropy) gap_exp_sum_.chain[k] -= e == 0 ? Vector<A>{} : e * y;
        if constexpr (kIsPart && F != Factors::kNone) y = lane_numbers<A>() < Integer<A>(count) ? y : Vector<A>{};
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

    LOSSWIRE_INLINE void end_run() {
        exp_sum_.end_run();
        if constexpr (kEntropy) gap_exp_sum_.end_run();
        if constexpr (F != Factors::kNone) factor_gap_sum_.end_run();
        if constexpr (F != Factors::kNone && F != Factors::kOne) factor_sum_.end_run();
        if constexpr (has_probabilities(F)) probability_sum_.end_run();
    }

    Sums sums() const {
        Sums sums = no_sums<A>();
        sums.reference = reference_[0];
        sums.largest = stretch_.wants_largest ? largest_of_lanes<A>(largest_) : reference_[0];
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
    Vector<A> reference_, limit_, largest_ = broadcast(-kInfinity<A>);
    Chains<A> exp_sum_, factor_gap_sum_, factor_sum_, gap_exp_sum_, probability_sum_;
};

template <class X, Factors F, bool kEntropy> LOSSWIRE_INLINE Sums sums_of(const Stretch& stretch) {
    using Reducer = SegmentSums<X, F, kEntropy>;
    if (stretch.classes >= Reducer::kBlock) return Reducer(stretch).reduce();
    if (stretch.classes > Reducer::kBlock / 2) return Reducer(stretch).template reduce_short<Reducer::kVectors>();
    return Reducer(stretch).template reduce_short<Reducer::kVectors / 2>();
}

// First class of a stretch that has this logit, or is NaN if the logit is; -1 if none.
template <class X> inline int64_t find_class(const Stretch& stretch, Arithmetic<X> logit) {
    using A = Arithmetic<X>;
    const char* logits = stretch.logits;
    int64_t i = 0;
    for (; i + kLanes<A> <= stretch.classes; i += kLanes<A>) {
        Vector<A> x = load<X>(logits + i * int64_t(sizeof(X)));
        if (any_lane<A>(logit == logit ? x == logit : x != x)) break;
    }
    for (; i < stretch.classes; ++i) {
        A x = load_one<X>(logits + i * int64_t(sizeof(X)));
        if (logit == logit ? x == logit : x != x) return stretch.first_class + i;
    }
    return -1;
}

// Classes of a stretch, from `first` to `end`, that compare with a logit as `is_before` says.
template <class X, class Compare>
inline int64_t count_classes(const Stretch& stretch, int64_t first, int64_t end, Compare is_before) {
    using A = Arithmetic<X>;
    Mask<A> counts = {};
    int64_t i = first, count = 0;
    for (; i + kLanes<A> <= end; i += kLanes<A>) counts -= is_before(load<X>(stretch.logits + i * int64_t(sizeof(X))));
    for (; i < end; ++i) count += is_before(load_one<X>(stretch.logits + i * int64_t(sizeof(X))));
    for (int lane = 0; lane < kLanes<A>; ++lane) count += counts[lane];
    return count;
}

// Classes of a stretch whose logit is larger than the target's, or as large and first.
template <class X> inline int64_t classes_before(const Stretch& stretch, Arithmetic<X> target_logit, int64_t target) {
    int64_t here = std::clamp<int64_t>(target - stretch.first_class, 0, stretch.classes);
    return count_classes<X>(stretch, 0, here, [&](auto x) { return x >= target_logit; }) +
           count_classes<X>(stretch, here, stretch.classes, [&](auto x) { return x > target_logit; });
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
