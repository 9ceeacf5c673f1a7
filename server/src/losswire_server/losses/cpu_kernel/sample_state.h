// What is kept of a sample with several positions between the parts of it.
#pragma once

#include "planes.h"

namespace losswire {

// The state of a split sample: one array per quantity, each as long as the sample has positions.
template <class A> class SampleState {
  public:
    SampleState(char* memory, int64_t positions) : memory_(memory), positions_(positions) {}

    // Reads or writes the sums of `count` lanes from position `first` on.
    template <bool kWrites> void exchange(LaneSums<A>& sums, int64_t first, int count, Factors f, bool extras) {
        first_ = first, count_ = count, next_ = 0;
        exchange_lanes<kWrites>(sums.argmax, extras, int64_t{});
        exchange_lanes<kWrites>(sums.reference, true, A{});
        exchange_lanes<kWrites>(sums.run_reference, true, A{});
        exchange_lanes<kWrites>(sums.largest, extras, A{});
        exchange_lanes<kWrites>(sums.target_logit, !has_probabilities(f), A{});
        exchange_sum<kWrites>(sums.exp_sum, true);
        exchange_sum<kWrites>(sums.gap_exp_sum, extras);
        exchange_sum<kWrites>(sums.factor_gap_sum, f != Factors::kNone);
        exchange_sum<kWrites>(sums.factor_sum, f != Factors::kNone);
        exchange_sum<kWrites>(sums.probability_sum, has_probabilities(f));
    }

  private:
    template <bool kWrites> void exchange_sum(RunningSum<A>& sum, bool is_used) {
        exchange_lanes<kWrites>(sum.recent, is_used, A{});
        exchange_lanes<kWrites>(sum.sum, is_used, A{});
        // What a double loses is never kept.
        if constexpr (sizeof(A) == 4) exchange_lanes<kWrites>(sum.lost, is_used, A{});
    }

    template <bool kWrites, class V, class Stored> void exchange_lanes(V& lanes, bool is_used, Stored) {
        if (!is_used) return;
        char* at = memory_ + next_ * positions_ + first_ * int64_t(sizeof(Stored));
        next_ += sizeof(Stored);
        Stored values[kLanes<A>] = {};
        if constexpr (kWrites) {
            for (int lane = 0; lane < kLanes<A>; ++lane) values[lane] = Stored(lanes[lane]);
            std::memcpy(at, values, size_t(count_) * sizeof(Stored));
        } else {
            std::memcpy(values, at, size_t(count_) * sizeof(Stored));
            for (int lane = 0; lane < kLanes<A>; ++lane) lanes[lane] = values[lane];
        }
    }

    char* memory_;
    int64_t positions_, first_ = 0, next_ = 0;
    int count_ = 0;
};

}  // namespace losswire
