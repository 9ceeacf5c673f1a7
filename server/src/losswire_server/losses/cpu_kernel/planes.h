// Positions that lie next to one another: the lanes of a vector are positions, and classes follow one another.
//
// A lane sees its classes one by one, so its bits depend neither on the other lanes nor on where a sample was cut. Its
// reference is the largest logit so far. With d = x - reference, e^-|d| is either what the logit adds or what a higher
// reference leaves of the sums, so that an element costs one exponential and no branch. Sums run in the arithmetic type
// for kRun classes, and are then added to a sum with a compensation, which only then learns of a higher reference.
//
// A tile of positions is reduced class by class, its sums in the first-level cache. So each class is read in runs of a
// KiB or more: classes often lie a power of two apart, where the lines of 19 classes share one set of every cache, and a
// line must be used up before its neighbours in the set arrive.
//
// Memory traffic per position: C logits, C probabilities if there are any; C factors from a cache.
#pragma once

#include "results.h"

namespace losswire {

// Sums of so many lose less than entropy can bear, and seldom need to be added.
constexpr int64_t kRun = 8;
// Vectors of a tile that is copied, which is to stay in the first-level cache, and at most of one that is read in place.
constexpr int kCopiedVectors = 4, kMaxVectors = 16;
// How many classes ahead a line is asked for, in the order in which they are read.
constexpr int64_t kClassesAhead = 4;
template <class A> constexpr int kCopiedLanes = kCopiedVectors * kLanes<A>;

// A sum per lane: what was added since the last run ended, the sum before it, and what its rounding lost.
template <class A> struct RunningSum {
    Vector<A> recent, sum, lost;

    void start() { recent = sum = lost = Vector<A>{}; }
    // Knuth's two-sum. A double needs no compensation.
    void end_run() {
        if constexpr (sizeof(A) == 4) {
            Vector<A> next = sum + recent, difference = next - sum;
            lost += (sum - (next - difference)) + (recent - difference);
            sum = next;
        } else {
            sum += recent;
        }
        recent = Vector<A>{};
    }
    // What earlier runs added.
    Vector<A> before() const { return sum + lost; }
    void scale(Vector<A> by) { sum *= by, lost *= by; }
};

// The sums of a vector of positions, as in results.h.
template <class A> struct LaneSums {
    Vector<A> reference, run_reference;  // now, and when the run began
    RunningSum<A> exp_sum, factor_gap_sum, factor_sum, gap_exp_sum, probability_sum;
    Vector<A> largest;
    Mask<A> argmax;
    Vector<A> target_logit;

    template <Factors F, bool kExtras> void start() {
        reference = run_reference = broadcast(kLowest<A>);
        largest = broadcast(-kInfinity<A>);
        argmax = Mask<A>{};
        target_logit = broadcast(kNan<A>);
        each_sum<F, kExtras>([](RunningSum<A>& sum) { sum.start(); });
    }

    template <Factors F, bool kExtras> void end_run() {
        Vector<A> rise = reference - run_reference;
        if (any_greater<A>(rise, Vector<A>{})) raise_before<F, kExtras>(rise);
        run_reference = reference;
        each_sum<F, kExtras>([](RunningSum<A>& sum) { sum.end_run(); });
    }

    // Puts the lanes into a batch, from place `at` on, once the last run has ended.
    template <Factors F, bool kExtras> void write(Batch& batch, int at) const {
        write_doubles(batch.reference + at, reference);
        write_doubles(batch.target_logit + at, target_logit);
        // Beside an infinite logit the others leave nothing; the sum is not a number.
        write_total(batch.exp_sum + at, exp_sum, reference * A(0));
        if constexpr (F != Factors::kNone) {
            write_total(batch.factor_gap_sum + at, factor_gap_sum, Vector<A>{});
            write_total(batch.factor_sum + at, factor_sum, Vector<A>{});
        }
        if constexpr (has_probabilities(F)) write_total(batch.probability_sum + at, probability_sum, Vector<A>{});
        if constexpr (kExtras) {
            write_total(batch.gap_exp_sum + at, gap_exp_sum, Vector<A>{});
            write_doubles(batch.largest + at, largest);
            for (int lane = 0; lane < kLanes<A>; ++lane) batch.argmax[at + lane] = argmax[lane];
        }
    }

  private:
    // Calls f with each sum that the loss and the outputs need.
    template <Factors F, bool kExtras, class Call> void each_sum(Call&& f) {
        f(exp_sum);
        if constexpr (F != Factors::kNone) f(factor_gap_sum), f(factor_sum);
        if constexpr (has_probabilities(F)) f(probability_sum);
        if constexpr (kExtras) f(gap_exp_sum);
    }

    // Refers what earlier runs added to a reference that is higher.
    template <Factors F, bool kExtras> void raise_before(Vector<A> rise) {
        Vector<A> decay = exponential(-rise);
        if constexpr (F != Factors::kNone) {
            Vector<A> before = factor_sum.before();
            factor_gap_sum.sum += before != 0 ? before * rise : Vector<A>{};
        }
        if constexpr (kExtras) {
            const Vector<A> most = broadcast(std::numeric_limits<A>::max());
            gap_exp_sum.scale(decay);
            gap_exp_sum.sum += decay * (rise < most ? rise : most) * exp_sum.before();
        }
        exp_sum.scale(decay);
    }

    // In double precision, and without what was lost where that is not a number.
    static void write_total(double* to, const RunningSum<A>& sum, Vector<A> more) {
        alignas(64) double lost[kLanes<A>];
        write_doubles(to, sum.sum + more);
        write_doubles(lost, sum.sum - sum.sum == 0 ? sum.lost : Vector<A>{});
        for (int lane = 0; lane < kLanes<A>; ++lane) to[lane] += lost[lane];
    }
};

// Consecutive positions in whole vectors. Where they are read in place the last vector overlaps the one before it: its
// lanes are computed twice, to the same bits, and nothing behind them is read. Copies have room behind them instead.
template <class A> struct Tile {
    int64_t first;
    int count, vectors, last_lane;

    static Tile in_place(int64_t first, int count) { return {first, count, vectors_of(count), count - kLanes<A>}; }
    static Tile copied(int64_t first, int count) {
        return {first, count, vectors_of(count), (vectors_of(count) - 1) * kLanes<A>};
    }
    static int vectors_of(int count) { return (count + kLanes<A> - 1) / kLanes<A>; }
    // Where a vector begins.
    int lane_of(int k) const { return std::min(k * kLanes<A>, last_lane); }
};

// Some classes of a tile. Rows of both tensors are `row_bytes` apart.
struct Plane {
    const char* logits;
    const char* probabilities;  // or null
    const char* factors;        // of the first class; or null
    int64_t row_bytes, classes, first_class;
    double label_smoothing, smoothing_share;  // e and e/C
    int64_t next_bytes;                       // from a tile to the next one
};

template <class X, Factors F, bool kExtras> class PlaneReducer {
    using A = Arithmetic<X>;

  public:
    PlaneReducer(const Plane& plane, LaneSums<A>* sums, const Tile<A>& tile)
        : plane_(plane),
          sums_(sums),
          tile_(tile),
          keep_(A(1 - plane.label_smoothing)),
          share_(A(plane.smoothing_share)),
          ahead_(std::min(kClassesAhead, plane.classes)) {}

    // Adds the classes of the plane.
    void reduce() {
        // So that the first logit, if it is finite, adds 1 whatever it is.
        if (plane_.first_class == 0)
            for (int k = 0; k < tile_.vectors; ++k)
                sums_[k].reference = larger(load<X>(plane_.logits + tile_.lane_of(k) * int64_t(sizeof(X))), sums_[k].reference);
        for (int64_t c = 0; c < plane_.classes; ++c) {
            add_class(c);
            if ((plane_.first_class + c + 1) % kRun == 0)
                for (int k = 0; k < tile_.vectors; ++k) sums_[k].template end_run<F, kExtras>();
        }
    }

  private:
    // Of a vector's elements.
    static constexpr int64_t kBytes = kLanes<A> * int64_t(sizeof(X));

    void add_class(int64_t c) {
        const int64_t offset = c * plane_.row_bytes;
        const int64_t later = c + ahead_ < plane_.classes ? offset + ahead_ * plane_.row_bytes
                                                          : offset + (ahead_ - plane_.classes) * plane_.row_bytes + plane_.next_bytes;
        const A factor = has_weight(F) ? load_one<A>(plane_.factors + c * int64_t(sizeof(A))) : A(1);
        for (int k = 0; k < tile_.vectors; ++k) {
            const int64_t at = tile_.lane_of(k) * int64_t(sizeof(X));
            prefetch_from(later + at);
            add(c, sums_[k], offset + at, factor);
        }
    }

    // An address past the end of the tensor does no harm.
    LOSSWIRE_INLINE void prefetch_from(int64_t offset) const {
        for (int64_t line = 0; line < kBytes; line += 64) {
            prefetch(plane_.logits + offset + line);
            if constexpr (has_probabilities(F)) prefetch(plane_.probabilities + offset + line);
        }
    }

    LOSSWIRE_INLINE void add(int64_t c, LaneSums<A>& sums, int64_t offset, A factor) {
        const Vector<A> x = load<X>(plane_.logits + offset), d = x - sums.reference, gap = d > 0 ? d : -d;
        const Mask<A> is_higher = d > 0;
        const Vector<A> e = exponential(-gap), one = broadcast(A(1));
        const Vector<A> keep = is_higher ? e : one, before = sums.exp_sum.recent;
        sums.reference = larger(x, sums.reference);  // keeps the reference where x is NaN
        sums.exp_sum.recent = multiply_add(before, keep, is_higher ? one : e);
        if constexpr (kExtras) {
            // At a logit of -inf this is 0·inf; entropy takes the limit, 0.
            Vector<A> more = e == 0 ? Vector<A>{} : e * gap * (is_higher ? before : one);
            sums.gap_exp_sum.recent = multiply_add(sums.gap_exp_sum.recent, keep, more);
            Mask<A> is_first_nan = (x != x) & (sums.largest == sums.largest);
            Mask<A> is_larger = (x > sums.largest) | is_first_nan;
            sums.largest = is_larger ? x : sums.largest;
            sums.argmax = is_larger ? Mask<A>{} + Integer<A>(plane_.first_class + c) : sums.argmax;
        }
        if constexpr (F != Factors::kNone) {
            const Vector<A> v = factors(sums, offset, factor), factor_sum = sums.factor_sum.recent;
            // A higher reference widens the gaps before it; this logit's own is 0.
            Vector<A> widened = (is_higher & (factor_sum == 0)) ? Vector<A>{} : gap;
            sums.factor_gap_sum.recent = multiply_add(widened, is_higher ? factor_sum : v, sums.factor_gap_sum.recent);
            sums.factor_sum.recent = factor_sum + v;
        }
    }

    LOSSWIRE_INLINE Vector<A> factors(LaneSums<A>& sums, int64_t offset, A factor) const {
        if constexpr (!has_probabilities(F)) return broadcast(factor);
        Vector<A> p = load<X>(plane_.probabilities + offset);
        sums.probability_sum.recent += p;
        Vector<A> v = p * keep_ + share_;
        if constexpr (has_weight(F)) v *= factor;
        return v;
    }

    const Plane plane_;
    LaneSums<A>* const sums_;
    const Tile<A> tile_;
    const A keep_, share_;
    const int64_t ahead_;
};

// Adds the classes before each lane's target to `counts`, for the vector that begins at a lane.
template <class X, class A = Arithmetic<X>>
inline void add_classes_before(Mask<A>& counts, const Plane& plane, int lane, Vector<A> target_logit, Mask<A> target) {
    for (int64_t c = 0; c < plane.classes; ++c) {
        Vector<A> x = load<X>(plane.logits + c * plane.row_bytes + lane * int64_t(sizeof(X)));
        Mask<A> is_tie_before = (x == target_logit) & (target > Integer<A>(plane.first_class + c));
        counts -= (x > target_logit) | is_tie_before;
    }
}

}  // namespace losswire
