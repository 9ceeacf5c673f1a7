// Jobs that are evaluated with positions in the lanes: several positions a sample, or rows of few classes.
#pragma once

#include "dispatch.h"
#include "planes.h"

namespace losswire {

// Rows of up to this many classes are transposed, 64 at a time, in the first-level cache.
constexpr int64_t kMaxTransposedClasses = 64;

// Classes that are copied at a time where positions cannot be read in place.
constexpr int64_t kCopiedClasses = 64;

inline bool uses_planes(const Job& job) { return job.positions_per_sample > 1 || job.class_count <= kMaxTransposedClasses; }

// The state of a split sample: one array per quantity, each as long as the sample has positions.
template <class A> class SampleState {
  public:
    SampleState(char* memory, int64_t positions) : memory_(memory), positions_(positions) {}

    // Reads or writes the sums of `count` lanes from position `first` on.
    template <bool kWrites> void exchange(LaneSums<A>& sums, int64_t first, int count, Factors f, bool extras) {
        first_ = first, count_ = count, next_ = 0;
        exchange_lanes<kWrites>(sums.argmax, extras, int64_t{});
        exchange_lanes<kWrites>(sums.reference, true, A{});
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
        if constexpr (sizeof(A) == 4) {
            exchange_lanes<kWrites>(sum.sum, is_used, A{});
            exchange_lanes<kWrites>(sum.lost, is_used, A{});
        }
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

// Tiles of up to kTileLanes positions: of one sample where it has as many, else of several.
class PlaneJob {
  public:
    explicit PlaneJob(Job& job)
        : job_(job), type_(common_type(job)), factors_(factors_of(job)),
          extras_(job.wants(kLargest | kEntropy)),
          lanes_(job.is_double() ? kTileLanes<double> : kTileLanes<float>),
          is_in_place_(type_ == job.logits_type && (!job.is_probabilities || type_ == job.target_type)) {
        evaluate_ = with_type(type_, [&](auto type) {
            using X = TypeIn<decltype(type)>;
            return with_factors(factors_, [&](auto factors) {
                return with_flag(extras_, [&](auto extras) -> Evaluate {
                    return [](const PlaneJob& job, int64_t tile, Results& results) {
                        job.evaluate_tile<X, decltype(factors)::value, decltype(extras)::value>(tile, results);
                    };
                });
            });
        });
    }

    int64_t tile_count() const {
        if (spans_samples()) return (job_.samples * job_.positions + lanes_ - 1) / lanes_;
        return job_.samples * tiles_per_sample();
    }
    void evaluate(int64_t first, int64_t end, Results& results) const {
        for (int64_t tile = first; tile < end; ++tile) evaluate_(*this, tile, results);
    }

  private:
    using Evaluate = void (*)(const PlaneJob&, int64_t, Results&);

    bool spans_samples() const { return job_.positions < lanes_; }
    int64_t tiles_per_sample() const { return (job_.positions + lanes_ - 1) / lanes_; }

    // Place of a tile's first position in the results, and how many it has.
    int64_t first_of(int64_t tile) const {
        if (spans_samples()) return tile * lanes_;
        return tile / tiles_per_sample() * job_.positions + tile % tiles_per_sample() * lanes_;
    }
    int count_of(int64_t tile) const {
        int64_t end = spans_samples() ? job_.samples * job_.positions : (tile / tiles_per_sample() + 1) * job_.positions;
        return int(std::min<int64_t>(lanes_, end - first_of(tile)));
    }

    template <class X, Factors F, bool kExtras> void evaluate_tile(int64_t tile, Results& results) const {
        using A = Arithmetic<X>;
        int64_t first = first_of(tile);
        int count = count_of(tile), vectors = (count + kLanes<A> - 1) / kLanes<A>;
        LaneSums<A> sums[kTileVectors];
        if (job_.is_part() && job_.class_start > 0) exchange<A, false>(sums, first, count);
        auto reduce = [&](const Plane& plane) {
            for (int k = 0; k < vectors; ++k) {
                Plane own = plane;
                own.logits += k * kLanes<A> * int64_t(sizeof(X));
                if constexpr (has_probabilities(F)) own.probabilities += k * kLanes<A> * int64_t(sizeof(X));
                PlaneReducer<X, F, kExtras>(own).add_to(sums[k]);
            }
        };
        each_plane<X>(first, count, reduce);
        if (!job_.is_probabilities) find_targets<X>(sums, first, count);
        if (!job_.completes_positions()) return exchange<A, true>(sums, first, count);
        Batch& batch = results.batch();
        for (int k = 0; k < vectors; ++k) sums[k].template write<F, kExtras>(batch, k * kLanes<A>);
        if (job_.wants(kRank)) count_ranks<X>(batch.rank, sums, first, count, vectors);
        results.write(first, count);
    }

    template <class A, bool kWrites> void exchange(LaneSums<A>* sums, int64_t first, int count) const {
        SampleState<A> state(job_.state, job_.positions_per_sample);
        for (int lane = 0, k = 0; lane < count; lane += kLanes<A>, ++k)
            state.template exchange<kWrites>(
                sums[k], job_.position_start + first + lane, std::min(kLanes<A>, count - lane), factors_, extras_
            );
    }

    // Calls f with planes of all classes of a tile: one where it can be read in place, else copies of some classes.
    template <class X, class F> void each_plane(int64_t first, int count, F&& f) const {
        Plane plane{};
        plane.row_bytes = job_.positions * int64_t(sizeof(X));
        plane.first_class = job_.class_start;
        plane.classes = job_.classes;
        plane.label_smoothing = job_.label_smoothing;
        plane.smoothing_share = job_.label_smoothing / double(job_.class_count);
        plane.factors = factors_at<X>(job_.class_start);
        if (is_in_place_ && !spans_samples() && count == lanes_) {
            int64_t offset = offset_of(first) * int64_t(sizeof(X));
            plane.logits = job_.logits + offset;
            plane.probabilities = job_.target + offset;
            return f(plane);
        }
        constexpr int kWidth = kTileLanes<Arithmetic<X>>;
        alignas(64) X logits[kCopiedClasses * kWidth], probabilities[kCopiedClasses * kWidth];
        if (count < kWidth) std::memset(logits, 0, sizeof logits), std::memset(probabilities, 0, sizeof probabilities);
        plane.row_bytes = kWidth * int64_t(sizeof(X));
        plane.logits = reinterpret_cast<const char*>(logits);
        plane.probabilities = reinterpret_cast<const char*>(probabilities);
        for (int64_t c = 0; c < job_.classes; c += kCopiedClasses) {
            plane.classes = std::min(kCopiedClasses, job_.classes - c);
            plane.first_class = job_.class_start + c;
            plane.factors = factors_at<X>(plane.first_class);
            copy_plane(logits, job_.logits, job_.logits_type, first, count, c, plane.classes);
            if (job_.is_probabilities)
                copy_plane(probabilities, job_.target, job_.target_type, first, count, c, plane.classes);
            f(plane);
        }
    }

    template <class X> const char* factors_at(int64_t class_) const {
        return job_.factors ? job_.factors + class_ * int64_t(sizeof(Arithmetic<X>)) : nullptr;
    }

    // Where the logit of a position's first class lies, in elements.
    int64_t offset_of(int64_t place) const {
        return place / job_.positions * job_.classes * job_.positions + place % job_.positions;
    }

    // Copies `classes` classes of a tile's positions to rows of a whole tile, lane by lane or sample by sample.
    template <class X>
    void copy_plane(X* to, const char* tensor, Element type, int64_t first, int count, int64_t c, int64_t classes) const {
        constexpr int kWidth = kTileLanes<Arithmetic<X>>;
        each_run(first, count, [&](int lane, int run, int64_t offset) {
            int64_t from = offset + c * job_.positions;
            if (run == 1 && type == element_of<X>) {
                const char* address = tensor + from * int64_t(sizeof(X));
                for (int64_t k = 0; k < classes; ++k)
                    std::memcpy(to + k * kWidth + lane, address + k * job_.positions * int64_t(sizeof(X)), sizeof(X));
            } else {
                for (int64_t k = 0; k < classes; ++k)
                    copy_elements(to + k * kWidth + lane, tensor, type, from + k * job_.positions, run);
            }
        });
    }

    template <class X> void find_targets(LaneSums<Arithmetic<X>>* sums, int64_t first, int count) const {
        using A = Arithmetic<X>;
        int64_t labels[kTileLanes<A>];
        A logits[kTileLanes<A>];
        std::memcpy(labels, job_.target + first * 8, size_t(count) * 8);
        for (int k = 0; k < kTileVectors; ++k) write_vector(logits + k * kLanes<A>, sums[k].target_logit);
        each_run(first, count, [&](int lane, int run, int64_t offset) {
            for (int end = lane + run; lane < end; ++lane, ++offset) {
                int64_t place = labels[lane] - job_.class_start;
                if (labels[lane] < 0 || place < 0 || place >= job_.classes) continue;
                logits[lane] = load_one<X>(job_.logits + (offset + place * job_.positions) * int64_t(sizeof(X)));
            }
        });
        for (int k = 0; k < kTileVectors; ++k) sums[k].target_logit = read_vector(logits + k * kLanes<A>);
    }

    // Calls f(lane, run, offset) for each run of lanes that lie in one sample, with the offset of their first logit.
    template <class F> void each_run(int64_t first, int count, F&& f) const {
        int64_t sample = first / job_.positions, position = first % job_.positions;
        for (int lane = 0; lane < count; ++sample, position = 0) {
            int run = int(std::min<int64_t>(count - lane, job_.positions - position));
            f(lane, run, sample * job_.classes * job_.positions + position);
            lane += run;
        }
    }

    template <class X>
    void count_ranks(int64_t* ranks, const LaneSums<Arithmetic<X>>* sums, int64_t first, int count, int vectors) const {
        using A = Arithmetic<X>;
        Mask<A> counts[kTileVectors] = {}, targets[kTileVectors] = {};
        for (int lane = 0; lane < count; ++lane) {
            int64_t label = job_.label(first + lane);
            targets[lane / kLanes<A>][lane % kLanes<A>] = Integer<A>(label < 0 || label >= job_.class_count ? 0 : label);
        }
        each_plane<X>(first, count, [&](Plane plane) {
            for (int k = 0; k < vectors; ++k, plane.logits += kVectorBytes / int(sizeof(A)) * int64_t(sizeof(X)))
                add_classes_before<X>(counts[k], plane, sums[k].target_logit, targets[k]);
        });
        for (int lane = 0; lane < count; ++lane) ranks[lane] = counts[lane / kLanes<A>][lane % kLanes<A>];
    }

    Job& job_;
    const Element type_;
    const Factors factors_;
    const bool extras_;
    const int lanes_;
    const bool is_in_place_;
    Evaluate evaluate_;
};

}  // namespace losswire
