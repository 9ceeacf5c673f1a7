// Jobs that are evaluated with positions in the lanes: several positions a sample, or rows of few classes.
#pragma once

#include "dispatch.h"
#include "sample_state.h"

namespace losswire {

// Rows of up to this many classes are transposed, 64 at a time, in the first-level cache.
constexpr int64_t kMaxTransposedClasses = 64;

// What is copied at a time where positions cannot be read in place: 64 classes of the positions of 64 samples.
constexpr int64_t kCopiedElements = 4096;

inline bool uses_planes(const Job& job) { return job.positions_per_sample > 1 || job.class_count <= kMaxTransposedClasses; }

// Tiles of positions: of one sample where it fills a vector and can be read in place, else copies of several samples.
class PlaneJob {
  public:
    PlaneJob(Job& job, int threads)
        : job_(job), type_(common_type(job)), factors_(factors_of(job)),
          extras_(job.wants(kLargest | kEntropy)),
          is_in_place_(type_ == job.logits_type && (!job.is_probabilities || type_ == job.target_type)),
          vector_lanes_(job.is_double() ? kLanes<double> : kLanes<float>),
          lanes_(tile_lanes(threads)),
          tiles_per_sample_((job.positions + lanes_ - 1) / lanes_) {
        evaluate_ = chosen_evaluate();
    }

    int64_t tile_count() const {
        if (spans_samples()) return (job_.samples * job_.positions + lanes_ - 1) / lanes_;
        return job_.samples * tiles_per_sample_;
    }
    void evaluate(int64_t first, int64_t end, Results& results) const {
        for (int64_t tile = first; tile < end; ++tile) (this->*evaluate_)(tile, results);
    }

  private:
    using Evaluate = void (PlaneJob::*)(int64_t, Results&) const;

    Evaluate chosen_evaluate() const;

    // The most positions of a tile: long runs, but no longer than leave each thread several tiles.
    int tile_lanes(int threads) const {
        int vectors = kCopiedVectors;
        while (!spans_samples() && vectors < kMaxVectors && job_.positions >= 2 * vectors * vector_lanes_ &&
               job_.samples * job_.positions >= 8 * threads * 2 * vectors * vector_lanes_)
            vectors *= 2;
        return vectors * vector_lanes_;
    }
    bool spans_samples() const { return !is_in_place_ || job_.positions < vector_lanes_; }

    // Tiles of one sample are as long as one another, give or take one, so that none is shorter than a vector.
    template <class A> Tile<A> tile_at(int64_t number) const {
        if (spans_samples()) {
            int64_t first = number * lanes_, end = std::min(first + lanes_, job_.samples * job_.positions);
            return Tile<A>::copied(first, int(end - first));
        }
        int64_t sample = number / tiles_per_sample_, place = number % tiles_per_sample_;
        int64_t first = job_.positions * place / tiles_per_sample_;
        int64_t end = job_.positions * (place + 1) / tiles_per_sample_;
        return Tile<A>::in_place(sample * job_.positions + first, int(end - first));
    }

    template <class X, Factors F, bool kExtras> void evaluate_tile(int64_t number, Results& results) const {
        using A = Arithmetic<X>;
        const Tile<A> tile = tile_at<A>(number);
        LaneSums<A> sums[kMaxVectors];
        for (int k = 0; k < tile.vectors; ++k) sums[k].template start<F, kExtras>();
        if (job_.is_part() && job_.class_start > 0) exchange<A, false>(sums, tile);
        each_plane<X>(tile, [&](const Plane& plane) { PlaneReducer<X, F, kExtras>(plane, sums, tile).reduce(); });
        if (!job_.is_probabilities) find_targets<X>(sums, tile);
        if (!job_.completes_positions()) return exchange<A, true>(sums, tile);
        Batch& batch = results.batch();
        for (int k = 0; k < tile.vectors; ++k) {
            sums[k].template end_run<F, kExtras>();
            sums[k].template write<F, kExtras>(batch, tile.lane_of(k));
        }
        if (job_.wants(kRank)) count_ranks<X>(batch.rank, sums, tile);
        results.write(tile.first, tile.count);
    }

    template <class A, bool kWrites> void exchange(LaneSums<A>* sums, const Tile<A>& tile) const {
        SampleState<A> state(job_.state, job_.positions_per_sample);
        for (int k = 0; k < tile.vectors; ++k) {
            int lane = tile.lane_of(k), count = std::min(kLanes<A>, tile.count - lane);
            state.template exchange<kWrites>(sums[k], job_.position_start + tile.first + lane, count, factors_, extras_);
        }
    }

    // Calls f with planes of all classes of a tile: one where it can be read in place, else copies of some classes.
    template <class X, class F> void each_plane(const Tile<Arithmetic<X>>& tile, F&& f) const {
        Plane plane{};
        plane.row_bytes = job_.positions * int64_t(sizeof(X));
        plane.first_class = job_.class_start;
        plane.classes = job_.classes;
        plane.label_smoothing = job_.label_smoothing;
        plane.smoothing_share = job_.label_smoothing / double(job_.class_count);
        plane.factors = factors_at<X>(job_.class_start);
        if (spans_samples()) return each_copy<X>(plane, tile, f);
        int64_t offset = offset_of(tile.first) * int64_t(sizeof(X));
        plane.logits = job_.logits + offset;
        plane.probabilities = job_.target + offset;
        plane.next_bytes = tile.count * int64_t(sizeof(X));
        f(plane);
    }

    template <class X, class F> void each_copy(Plane plane, const Tile<Arithmetic<X>>& tile, F&& f) const {
        const int width = tile.vectors * kLanes<Arithmetic<X>>;
        const int64_t step = std::min(job_.classes, kCopiedElements / width);
        alignas(64) X logits[kCopiedElements], probabilities[kCopiedElements];
        if (tile.count < width) {
            std::memset(logits, 0, size_t(step * width) * sizeof(X));
            if (job_.is_probabilities) std::memset(probabilities, 0, size_t(step * width) * sizeof(X));
        }
        plane.row_bytes = width * int64_t(sizeof(X));
        plane.logits = reinterpret_cast<const char*>(logits);
        plane.probabilities = reinterpret_cast<const char*>(probabilities);
        for (int64_t c = 0; c < job_.classes; c += step) {
            plane.classes = std::min(step, job_.classes - c);
            plane.first_class = job_.class_start + c;
            plane.factors = factors_at<X>(plane.first_class);
            copy_plane(logits, width, job_.logits, job_.logits_type, tile, c, plane.classes);
            if (job_.is_probabilities)
                copy_plane(probabilities, width, job_.target, job_.target_type, tile, c, plane.classes);
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

    // Copies `classes` classes of a tile's positions to rows of `width` elements, lane by lane or sample by sample.
    template <class X>
    void copy_plane(
        X* to, int width, const char* tensor, Element type, const Tile<Arithmetic<X>>& tile, int64_t c, int64_t classes
    ) const {
        each_run(tile.first, tile.count, [&](int lane, int run, int64_t offset) {
            int64_t from = offset + c * job_.positions;
            if (run == 1 && type == element_of<X>) {
                const char* address = tensor + from * int64_t(sizeof(X));
                for (int64_t k = 0; k < classes; ++k)
                    std::memcpy(to + k * width + lane, address + k * job_.positions * int64_t(sizeof(X)), sizeof(X));
            } else {
                for (int64_t k = 0; k < classes; ++k)
                    copy_elements(to + k * width + lane, tensor, type, from + k * job_.positions, run);
            }
        });
    }

    template <class X> void find_targets(LaneSums<Arithmetic<X>>* sums, const Tile<Arithmetic<X>>& tile) const {
        using A = Arithmetic<X>;
        int64_t labels[kMaxVectors * kLanes<A>];
        A logits[kMaxVectors * kLanes<A>];
        std::memcpy(labels, job_.target + tile.first * 8, size_t(tile.count) * 8);
        for (int k = 0; k < tile.vectors; ++k) write_vector(logits + tile.lane_of(k), sums[k].target_logit);
        each_run(tile.first, tile.count, [&](int lane, int run, int64_t offset) {
            for (int end = lane + run; lane < end; ++lane, ++offset) {
                // As a number without sign, what is no class of this part is too large.
                const int64_t place = labels[lane] - job_.class_start;
                if (uint64_t(place) < uint64_t(job_.classes))
                    logits[lane] = load_one<X>(job_.logits + (offset + place * job_.positions) * int64_t(sizeof(X)));
            }
        });
        for (int k = 0; k < tile.vectors; ++k) sums[k].target_logit = read_vector(logits + tile.lane_of(k));
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
    void count_ranks(int64_t* ranks, const LaneSums<Arithmetic<X>>* sums, const Tile<Arithmetic<X>>& tile) const {
        using A = Arithmetic<X>;
        Integer<A> labels[kMaxVectors * kLanes<A>] = {};
        Mask<A> counts[kMaxVectors] = {};
        for (int lane = 0; lane < tile.count; ++lane) {
            int64_t label = job_.label(tile.first + lane);
            labels[lane] = Integer<A>(label < 0 || label >= job_.class_count ? 0 : label);
        }
        each_plane<X>(tile, [&](const Plane& plane) {
            for (int k = 0; k < tile.vectors; ++k)
                add_classes_before<X>(counts[k], plane, tile.lane_of(k), sums[k].target_logit, read_mask<A>(labels + tile.lane_of(k)));
        });
        for (int k = 0; k < tile.vectors; ++k)
            for (int lane = 0; lane < kLanes<A>; ++lane) ranks[tile.lane_of(k) + lane] = counts[k][lane];
    }

    Job& job_;
    const Element type_;
    const Factors factors_;
    const bool extras_;
    const bool is_in_place_;
    const int vector_lanes_, lanes_;
    const int64_t tiles_per_sample_;
    Evaluate evaluate_;
};

// Not within the class, where Clang 14 does not generate the functions that generic lambdas name.
inline PlaneJob::Evaluate PlaneJob::chosen_evaluate() const {
    return with_type(type_, [&](auto type) {
        return with_factors(factors_, [&](auto factors) {
            return with_flag(extras_, [&](auto extras) -> Evaluate {
                return &PlaneJob::evaluate_tile<TypeIn<decltype(type)>, decltype(factors)::value, decltype(extras)::value>;
            });
        });
    });
}

}  // namespace losswire
