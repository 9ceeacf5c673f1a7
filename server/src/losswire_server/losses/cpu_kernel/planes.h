// Positions that lie next to one another: the lanes of a vector are positions, and classes follow one another.
//
// A lane sees its classes one by one, so its bits depend neither on the other lanes nor on where a sample was cut. Its
// reference is raised only when a logit exceeds it by kSlack, so that an element costs one exponential. Sums run in the
// arithmetic type for kRun classes, and are then added to a sum with a compensation.
//
// Memory traffic per position: C logits, C probabilities if there are any; C factors from a cache.
#pragma once

#include "results.h"

namespace losswire {

// Large enough that a reference is seldom raised, small enough for exp: rounding a gap below 8 changes e^gap by at most
// 2.4e-7, and the product with log2(e) as much again. 16 would be 9 % faster, and the entropy wrong by 4e-6.
constexpr int kSlack = 8;
// Entropy subtracts numbers up to kSlack, and so multiplies what a run loses.
constexpr int64_t kRun = 8;
constexpr int kTileVectors = 4;
// How far ahead in each class.
constexpr int64_t kPrefetchBytes = 1024;
template <class A> constexpr int kTileLanes = kTileVectors * kLanes<A>;

// A sum per lane: what was added since the last run ended, the sum before it, and what its rounding lost.
template <class A> struct RunningSum {
    Vector<A> recent = {}, sum = {}, lost = {};

    // Knuth's two-sum. A double needs no compensation.
    void end_run() {
        if constexpr (sizeof(A) == 4) {
            Vector<A> next = sum + recent, difference = next - sum;
            lost += (sum - (next - difference)) + (recent - difference);
            sum = next;
            recent = Vector<A>{};
        }
    }
    Vector<A> total() const { return sum + (lost + recent); }
    void scale(Mask<A> which, Vector<A> by) {
        recent = which ? recent * by : recent;
        sum = which ? sum * by : sum;
        lost = which ? lost * by : lost;
    }
    // The totals of all lanes, in double precision.
    void write_totals(double* totals) const {
        A sums[kLanes<A>], recents[kLanes<A>], losts[kLanes<A>];
        write_vector(sums, sum), write_vector(recents, recent), write_vector(losts, lost);
        for (int lane = 0; lane < kLanes<A>; ++lane) {
            double high = double(sums[lane]) + double(recents[lane]);
            totals[lane] = high - high == 0 ? high + double(losts[lane]) : high;
        }
    }
};

// The sums of a vector of positions, as in results.h.
template <class A> struct LaneSums {
    Vector<A> reference = broadcast(kLowest<A>);
    RunningSum<A> exp_sum, factor_gap_sum, factor_sum, gap_exp_sum, probability_sum;
    Vector<A> largest = broadcast(-kInfinity<A>);
    Mask<A> argmax = {};
    Vector<A> target_logit = broadcast(kNan<A>);

    void end_run() {
        exp_sum.end_run();
        factor_gap_sum.end_run();
        factor_sum.end_run();
        gap_exp_sum.end_run();
        probability_sum.end_run();
    }

    // Copies what the loss and the outputs need of other sums.
    template <Factors F, bool kExtras> void copy(const LaneSums& other) {
        reference = other.reference;
        exp_sum = other.exp_sum;
        if constexpr (F != Factors::kNone) factor_gap_sum = other.factor_gap_sum, factor_sum = other.factor_sum;
        if constexpr (has_probabilities(F)) probability_sum = other.probability_sum;
        if constexpr (kExtras) gap_exp_sum = other.gap_exp_sum, largest = other.largest, argmax = other.argmax;
    }

    // Puts the lanes into a batch, from place `at` on.
    template <Factors F, bool kExtras> void write(Batch& batch, int at) const {
        write_lanes(batch.reference + at, reference);
        write_lanes(batch.target_logit + at, target_logit);
        exp_sum.write_totals(batch.exp_sum + at);
        if constexpr (F != Factors::kNone) {
            factor_gap_sum.write_totals(batch.factor_gap_sum + at);
            factor_sum.write_totals(batch.factor_sum + at);
        }
        if constexpr (has_probabilities(F)) probability_sum.write_totals(batch.probability_sum + at);
        if constexpr (kExtras) {
            gap_exp_sum.write_totals(batch.gap_exp_sum + at);
            write_lanes(batch.largest + at, largest);
            write_lanes(batch.argmax + at, argmax);
        }
    }

  private:
    template <class To, class V> static void write_lanes(To* to, V lanes) {
        decltype(lanes[0] + 0) values[kLanes<A>];
        std::memcpy(values, &lanes, sizeof lanes);
        for (int lane = 0; lane < kLanes<A>; ++lane) to[lane] = To(values[lane]);
    }
};

// Some classes of a vector of positions. Rows of both tensors are `row_bytes` apart.
struct Plane {
    const char* logits;
    const char* probabilities;  // or null
    const char* factors;        // of the first class; or null
    int64_t row_bytes, classes, first_class;
    double label_smoothing, smoothing_share;  // e and e/C
};

template <class X, Factors F, bool kExtras> class PlaneReducer {
    using A = Arithmetic<X>;

  public:
    explicit PlaneReducer(const Plane& plane)
        : plane_(plane), keep_(A(1 - plane.label_smoothing)), share_(A(plane.smoothing_share)) {}

    // Adds the classes of the plane. The sums are copied, so that they can live in registers.
    void add_to(LaneSums<A>& sums) {
        sums_.template copy<F, kExtras>(sums);
        // As if the first logit had raised the reference, but without a branch.
        if (plane_.first_class == 0) sums_.reference = larger(load<X>(plane_.logits), sums_.reference);
        for (int64_t c = 0; c < plane_.classes;) {
            int64_t end = std::min(plane_.classes, c + kRun - (plane_.first_class + c) % kRun);
            for (; c + 4 <= end; c += 4) add_four(c);
            for (; c < end; ++c) add_one(c);
            if ((plane_.first_class + c) % kRun == 0) sums_.end_run();
        }
        sums.template copy<F, kExtras>(sums_);
    }

  private:
    Vector<A> logits(int64_t c) const {
        const char* address = plane_.logits + c * plane_.row_bytes;
        prefetch(address + kPrefetchBytes);
        return load<X>(address);
    }

    void add_four(int64_t c) {
        Vector<A> x[4], y[4], most = broadcast(A(kSlack));
        for (int k = 0; k < 4; ++k) {
            x[k] = logits(c + k);
            y[k] = x[k] - sums_.reference;
            most = larger(y[k], most);  // keeps `most` where y is NaN
        }
        if (__builtin_expect(any_greater<A>(most, broadcast(A(kSlack))), 0)) {
            for (int k = 0; k < 4; ++k) add_one(c + k);
        } else {
            for (int k = 0; k < 4; ++k) add(c + k, x[k], y[k]);
        }
    }

    void add_one(int64_t c) {
        Vector<A> x = logits(c), y = x - sums_.reference;
        if (any_greater<A>(y, broadcast(A(kSlack)))) {
            raise(x, y > A(kSlack));
            y = x - sums_.reference;
        }
        add(c, x, y);
    }

    // Refers the sums of some lanes to the logits x. Inlined for the same reason.
    LOSSWIRE_INLINE void raise(Vector<A> x, Mask<A> which) {
        Vector<A> rise = x - sums_.reference, decay = exponential(-rise);
        if constexpr (F != Factors::kNone) {
            Vector<A> factor_sum = sums_.factor_sum.total();
            auto& gap_sum = sums_.factor_gap_sum.recent;
            gap_sum = which & (factor_sum != 0) ? gap_sum + factor_sum * rise : gap_sum;
        }
        if constexpr (kExtras) {
            const Vector<A> most = broadcast(std::numeric_limits<A>::max());
            Vector<A> finite_rise = rise < most ? rise : most, exp_sum = sums_.exp_sum.total();
            auto& gap_sum = sums_.gap_exp_sum;
            gap_sum.scale(which, decay);
            gap_sum.recent = which ? gap_sum.recent + decay * finite_rise * exp_sum : gap_sum.recent;
        }
        sums_.exp_sum.scale(which, decay);
        sums_.reference = which ? x : sums_.reference;
    }

    void add(int64_t c, Vector<A> x, Vector<A> y) {
        Vector<A> e = exponential(y);
        sums_.exp_sum.recent += e;
        if constexpr (kExtras) {
            sums_.gap_exp_sum.recent -= e == 0 ? Vector<A>{} : e * y;
            sums_.gap_exp_sum.end_run();
            Mask<A> is_first_nan = (x != x) & (sums_.largest == sums_.largest);
            Mask<A> is_larger = (x > sums_.largest) | is_first_nan;
            sums_.largest = is_larger ? x : sums_.largest;
            sums_.argmax = is_larger ? Mask<A>{} + Integer<A>(plane_.first_class + c) : sums_.argmax;
        }
        if constexpr (F != Factors::kNone) {
            Vector<A> v = factors(c);
            sums_.factor_gap_sum.recent = multiply_add(-y, v, sums_.factor_gap_sum.recent);
            sums_.factor_sum.recent += v;
        }
    }

    Vector<A> factors(int64_t c) {
        Vector<A> v = broadcast(A(1));
        if constexpr (has_probabilities(F)) {
            const char* address = plane_.probabilities + c * plane_.row_bytes;
            prefetch(address + kPrefetchBytes);
            Vector<A> p = load<X>(address);
            sums_.probability_sum.recent += p;
            v = p * keep_ + share_;
        }
        if constexpr (has_weight(F)) v *= load_one<A>(plane_.factors + c * sizeof(A));
        return v;
    }

    LaneSums<A> sums_;
    const Plane plane_;
    const A keep_, share_;
};

// Adds the classes before each lane's target to `counts`.
template <class X, class A = Arithmetic<X>>
inline void add_classes_before(Mask<A>& counts, const Plane& plane, Vector<A> target_logit, Mask<A> target) {
    for (int64_t c = 0; c < plane.classes; ++c) {
        Vector<A> x = load<X>(plane.logits + c * plane.row_bytes);
        Mask<A> is_tie_before = (x == target_logit) & (target > Integer<A>(plane.first_class + c));
        counts -= (x > target_logit) | is_tie_before;
    }
}

}  // namespace losswire
