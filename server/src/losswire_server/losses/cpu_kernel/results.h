// From the sums over a position's classes to its results.
#pragma once

#include "exponentials.h"
#include "job.h"

namespace losswire {

// Sums over the classes of one position, or over some of them, with gaps from a reference r near the largest logit:
//
//     exp_sum         s = sum of e^(x - r)                log-sum-exp is r + log s
//     factor_gap_sum  L = sum of v·(r - x)                -(sum of v·log_softmax) is L + V·log s
//     factor_sum      V = sum of v
//     gap_exp_sum     T = sum of (r - x)·e^(x - r)        the entropy is log s + T/s
struct Sums {
    double reference, exp_sum, factor_gap_sum, factor_sum, gap_exp_sum, probability_sum;
    double largest;       // largest logit: NaN if any is, -inf before the first class
    int64_t argmax;       // its first class
    int64_t rank;         // classes before the target
    double target_logit;  // NaN before the target class
};

// A difference as the arithmetic type has it: infinite where it is out of range.
template <class A> inline double difference(double a, double b) {
    const double most = double(std::numeric_limits<A>::max()), exact = a - b;
    return exact > most ? kInfinity<double> : exact < -most ? -kInfinity<double> : exact;
}

template <class A> inline Sums no_sums() {
    return {double(kLowest<A>), 0, 0, 0, 0, 0, -kInfinity<double>, 0, 0, kNan<double>};
}

// Refers sums to a reference that is higher.
template <class A> inline void raise(Sums& sums, double reference) {
    if (sums.reference == reference) return;
    double rise = difference<A>(reference, sums.reference), decay = exponential_of(-rise);
    if (sums.factor_sum != 0) sums.factor_gap_sum += sums.factor_sum * rise;
    double finite_rise = std::min(rise, double(std::numeric_limits<A>::max()));
    sums.gap_exp_sum = decay * sums.gap_exp_sum + decay * finite_rise * sums.exp_sum;
    sums.exp_sum *= decay;
    sums.reference = reference;
}

// Adds the sums over the next classes.
template <class A> inline void fold(Sums& sums, Sums next) {
    double reference = std::max(sums.reference, next.reference);
    raise<A>(sums, reference);
    raise<A>(next, reference);
    sums.exp_sum += next.exp_sum;
    sums.factor_gap_sum += next.factor_gap_sum;
    sums.factor_sum += next.factor_sum;
    sums.gap_exp_sum += next.gap_exp_sum;
    sums.probability_sum += next.probability_sum;
    sums.rank += next.rank;
    if (next.largest > sums.largest || (next.largest != next.largest && sums.largest == sums.largest)) {
        sums.largest = next.largest;
        sums.argmax = next.argmax;
    }
}

// Positions whose results are written together, so that what is computed of them fills vectors.
constexpr int kBatch = 256;

// The sums of consecutive positions, as those of `Sums`. Arrays that a job does not need are not filled.
struct Batch {
    alignas(64) double reference[kBatch], exp_sum[kBatch], factor_gap_sum[kBatch], factor_sum[kBatch],
        gap_exp_sum[kBatch], probability_sum[kBatch], largest[kBatch], target_logit[kBatch];
    int64_t argmax[kBatch], rank[kBatch];
};

// Finishes positions of a job.
class Results {
  public:
    explicit Results(Job& job) : job_(job) {}
    Results(const Results&) = delete;
    Results& operator=(const Results&) = delete;

    // Adds the position at a place: the one after the last, or what was added is written first.
    void add(int64_t place, const Sums& sums) {
        if (count_ == kBatch || place != first_ + count_) flush();
        if (count_ == 0) first_ = place;
        batch_.reference[count_] = sums.reference;
        batch_.exp_sum[count_] = sums.exp_sum;
        batch_.factor_gap_sum[count_] = sums.factor_gap_sum;
        batch_.factor_sum[count_] = sums.factor_sum;
        batch_.gap_exp_sum[count_] = sums.gap_exp_sum;
        batch_.probability_sum[count_] = sums.probability_sum;
        batch_.largest[count_] = sums.largest;
        batch_.target_logit[count_] = sums.target_logit;
        batch_.argmax[count_] = sums.argmax;
        batch_.rank[count_] = sums.rank;
        ++count_;
    }

    // Where the sums of `kBatch` positions can be put instead, and written at once.
    Batch& batch() { return batch_; }
    void write(int64_t first, int count) {
        first_ = first, count_ = count;
        flush();
    }

    void flush() {
        if (count_ == 0) return;
        for (int i = count_; i < kBatch && i % kLanes<double> != 0; ++i) batch_.exp_sum[i] = 1;
        for (int i = 0; i < count_; i += kLanes<double>)
            write_vector(log_sum_ + i, logarithm(read_vector(batch_.exp_sum + i)));
        if (job_.is_probabilities) {
            write_probability_losses();
        } else if (job_.is_double()) {
            write_index_losses<double>();
        } else {
            write_index_losses<float>();
        }
        if (job_.wanted || job_.probability_sum) write_outputs();
        count_ = 0;
    }

    int64_t counted() const { return counted_; }

  private:
    void write_probability_losses() {
        alignas(64) double loss[kBatch];
        for (int i = 0; i < count_; ++i) loss[i] = batch_.factor_gap_sum[i] + batch_.factor_sum[i] * log_sum_[i];
        put(job_.loss, loss);
        for (int i = 0; i < count_; ++i) job_.target_weight[first_ + i] = 1;
        counted_ += count_;
    }

    template <class A> void write_index_losses() {
        alignas(64) double nll[kBatch], loss[kBatch], weights[kBatch];
        int64_t labels[kBatch], counted = 0;
        const int64_t ignored = job_.ignore_index;
        const double e = job_.label_smoothing, share = e / double(job_.class_count);
        std::memcpy(labels, job_.target + first_ * 8, size_t(count_) * 8);
        for (int i = 0; i < count_; ++i) weights[i] = 1;
        if (job_.weight)
            for (int i = 0; i < count_; ++i)
                if (labels[i] != ignored) weights[i] = element_at(job_.weight, job_.weight_type, labels[i]);
        // One loop, so that what many positions need is not carried to and from a cache.
        for (int i = 0; i < count_; ++i) {
            const bool counts = labels[i] != ignored;
            counted += counts;
            nll[i] = difference<A>(batch_.reference[i], batch_.target_logit[i]) + log_sum_[i];
            loss[i] = (1 - e) * weights[i] * nll[i];
            weights[i] = counts ? weights[i] : 0;
            if (e == 0) loss[i] = counts ? loss[i] : 0;
        }
        counted_ += counted;
        std::memcpy(job_.target_weight + first_, weights, size_t(count_) * 8);
        if (e > 0) {
            for (int i = 0; i < count_; ++i) {
                loss[i] += share * (batch_.factor_gap_sum[i] + batch_.factor_sum[i] * log_sum_[i]);
                loss[i] = labels[i] != ignored ? loss[i] : 0;
            }
        }
        put(job_.loss, loss);
        if (job_.target_logprob) {
            for (int i = 0; i < count_; ++i) nll[i] = labels[i] != job_.ignore_index ? -nll[i] : 0;
            put(job_.target_logprob, nll);
        }
        if (job_.wants(kRank)) write_ranks(labels);
    }

    void write_ranks(const int64_t* labels) {
        for (int i = 0; i < count_; ++i) {
            bool has_rank = labels[i] != job_.ignore_index && batch_.largest[i] == batch_.largest[i];
            int64_t place = first_ + i, rank = has_rank ? batch_.rank[i] : -1;
            if (job_.target_rank) job_.target_rank[place] = rank;
            if (job_.top1) job_.top1[place] = rank == 0;
            if (job_.topk) job_.topk[place] = rank >= 0 && rank < job_.top_k;
        }
    }

    void write_outputs() {
        alignas(64) double values[kBatch];
        if (job_.logsumexp) {
            for (int i = 0; i < count_; ++i) {
                bool is_infinite = batch_.largest[i] == kInfinity<double> || batch_.largest[i] == -kInfinity<double>;
                values[i] = is_infinite ? batch_.largest[i] : batch_.reference[i] + log_sum_[i];
            }
            put(job_.logsumexp, values);
        }
        if (job_.argmax) std::memcpy(job_.argmax + first_, batch_.argmax, size_t(count_) * 8);
        if (job_.entropy) {
            for (int i = 0; i < count_; ++i) values[i] = log_sum_[i] + batch_.gap_exp_sum[i] / batch_.exp_sum[i];
            put(job_.entropy, values);
        }
        if (job_.max_probability) {
            for (int i = 0; i < count_; ++i) {
                double probability = exponential_of(batch_.largest[i] - batch_.reference[i]) / batch_.exp_sum[i];
                values[i] = batch_.exp_sum[i] > 0 ? probability : kNan<double>;
            }
            put(job_.max_probability, values);
        }
        if (job_.probability_sum) put(job_.probability_sum, batch_.probability_sum);
    }

    void put(void* results, const double* values) const {
        if (job_.logits_type == Element::kDouble) {
            std::memcpy(static_cast<double*>(results) + first_, values, size_t(count_) * 8);
        } else {
            float* narrow = static_cast<float*>(results) + first_;
            for (int i = 0; i < count_; ++i) narrow[i] = float(values[i]);
        }
    }

    Job& job_;
    int64_t first_ = 0, counted_ = 0;
    int count_ = 0;
    alignas(64) double log_sum_[kBatch];
    Batch batch_;
};

}  // namespace losswire
