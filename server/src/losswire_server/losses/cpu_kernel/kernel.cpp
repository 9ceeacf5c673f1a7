// Evaluates a list of jobs in one parallel region. Compiled once for each instruction set; cpu.py loads the best one.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <memory>
#include <variant>
#include <vector>

#include "in_place.h"
#include "plane_job.h"
#include "pool.h"
#include "row_job.h"

namespace losswire {
namespace {

// Lists below this are not worth waking a thread for: they take less than 20 µs.
constexpr int64_t kMinParallelBytes = 512 * 1024;
// An item has at least this many bytes, and at most as many as make eight of them a thread.
constexpr int64_t kMinItemBytes = 32 * 1024, kMaxItemBytes = 1024 * 1024, kItemsPerThread = 8;

// Part of a job: rows or tiles [first, end); or segments [first, end) of one row, whose sums go to `segments`.
struct Item {
    int job;
    int64_t row, first, end;
    Sums* segments;
};

// A row whose segments are reduced by several items, and folded once all are done.
struct SplitRow {
    int job;
    int64_t row;
    std::vector<Sums> segments;
};

// What is kept between the parts of a row.
static_assert(sizeof(Sums) <= 88, "cpu.py allocates 88 bytes a position, or 120");

int64_t byte_count(const Job& job) {
    int64_t size = size_of(job.logits_type) + (job.is_probabilities ? size_of(job.target_type) : 0);
    return job.samples * job.classes * job.positions * size;
}

class JobList {
  public:
    JobList(Job* jobs, int count, int threads) : jobs_(jobs), threads_(threads) {
        for (int i = 0; i < count; ++i) bytes_left_ += byte_count(jobs[i]);
        if (bytes_left_ < kMinParallelBytes) threads_ = 1;
        item_bytes_ = std::clamp(bytes_left_ / (threads_ * kItemsPerThread), kMinItemBytes, kMaxItemBytes);
        kinds_.reserve(size_t(count));
        for (int i = 0; i < count; ++i) {
            jobs[i].counted = 0;
            if (uses_planes(jobs[i])) {
                kinds_.emplace_back(std::in_place_type<PlaneJob>, jobs[i], threads_);
            } else {
                kinds_.emplace_back(std::in_place_type<RowJob>, jobs[i]);
            }
        }
    }

    void evaluate() {
        for (int i = 0; i < int(kinds_.size()); ++i) {
            if (std::holds_alternative<PlaneJob>(kinds_[size_t(i)])) {
                plan_tiles(i);
            } else {
                plan_rows(i);
            }
            bytes_left_ -= byte_count(jobs_[i]);
        }
        run();
        for (SplitRow& row : split_rows_) fold_split(row);
    }

  private:
    void plan_tiles(int i) {
        Job& job = jobs_[i];
        // Positions of a part continue the state that the part before left.
        if (job.is_part() && job.class_start > 0) run();
        int64_t tiles = std::get<PlaneJob>(kinds_[size_t(i)]).tile_count();
        plan_range(i, 0, tiles, byte_count(job) / std::max<int64_t>(1, tiles));
    }

    void plan_rows(int i) {
        const Job& job = jobs_[i];
        int64_t row_bytes = byte_count(job) / std::max<int64_t>(1, job.samples), whole_rows = 0;
        // A row that is larger than a thread's share of what is left is reduced by several.
        auto splits = [&](int64_t row) {
            return threads_ > 1 && row_bytes > item_bytes_ && row_bytes * threads_ > bytes_left_ - row * row_bytes;
        };
        if (!job.is_part())
            while (whole_rows < job.samples && !splits(whole_rows)) ++whole_rows;
        plan_range(i, 0, whole_rows, row_bytes);
        for (int64_t row = whole_rows; row < job.samples; ++row) plan_segments(i, row);
    }

    void plan_range(int i, int64_t first, int64_t end, int64_t bytes_each) {
        int64_t step = std::max<int64_t>(1, item_bytes_ / std::max<int64_t>(1, bytes_each));
        for (; first < end; first += step) items_.push_back({i, 0, first, std::min(end, first + step), nullptr});
    }

    void plan_segments(int i, int64_t row) {
        int64_t count = std::get<RowJob>(kinds_[size_t(i)]).segments_per_row();
        int64_t step = std::max<int64_t>(1, count / (threads_ * kItemsPerThread));
        split_rows_.push_back({i, row, std::vector<Sums>(size_t(count))});
        Sums* segments = split_rows_.back().segments.data();
        for (int64_t first = 0; first < count; first += step)
            items_.push_back({i, row, first, std::min(count, first + step), segments});
    }

    void run() {
        Pool::instance().run(int64_t(items_.size()), threads_, [this](int64_t i) { evaluate(items_[size_t(i)]); });
        items_.clear();
    }

    void evaluate(const Item& item) {
        auto& kind = kinds_[size_t(item.job)];
        if (item.segments) {
            for (int64_t s = item.first; s < item.end; ++s) item.segments[s] = std::get<RowJob>(kind).segment(item.row, s);
            return;
        }
        Results results(jobs_[item.job]);
        std::visit([&](auto& job) { job.evaluate(item.first, item.end, results); }, kind);
        finish(results, item.job);
    }

    void fold_split(const SplitRow& split) {
        Job& job = jobs_[split.job];
        const RowJob& row_job = std::get<RowJob>(kinds_[size_t(split.job)]);
        Sums sums = row_job.start();
        if (job.is_part() && job.class_start > 0) std::memcpy(&sums, job.state, sizeof sums);
        for (const Sums& segment : split.segments) row_job.fold_next(sums, segment);
        if (!job.completes_positions()) {
            std::memcpy(job.state, &sums, sizeof sums);
            return;
        }
        Results results(job);
        results.add(split.row, sums);
        finish(results, split.job);
    }

    void finish(Results& results, int i) {
        results.flush();
        __atomic_fetch_add(&jobs_[i].counted, results.counted(), __ATOMIC_RELAXED);
    }

    Job* jobs_;
    int threads_;
    int64_t bytes_left_ = 0, item_bytes_ = 0;
    std::vector<std::variant<PlaneJob, RowJob>> kinds_;
    std::vector<Item> items_;
    std::vector<SplitRow> split_rows_;
};

}  // namespace
}  // namespace losswire

// Evaluates `count` jobs, none of them without elements, on up to `threads` threads. Returns 0, or 1 if out of memory.
extern "C" __attribute__((visibility("default"))) int losswire_evaluate(losswire::Job* jobs, int64_t count, int64_t threads) {
    try {
        losswire::JobList(jobs, int(count), int(threads)).evaluate();
        return 0;
    } catch (...) {
        return 1;
    }
}

// Evaluates the job in a message on this thread. Returns 0, 1 if out of memory, or 2 if a class index is out of range.
extern "C" __attribute__((visibility("default"))) int losswire_evaluate_in_place(losswire::InPlace* call, const char* message) {
    try {
        auto evaluate = [](losswire::Job& job) { losswire::JobList(&job, 1, 1).evaluate(); };
        return losswire::evaluate_in_place(*call, message, evaluate) ? 0 : 2;
    } catch (...) {
        return 1;
    }
}

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know the name before version 15.
static bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

// Whether this processor can run what was compiled for an instruction set.
extern "C" __attribute__((visibility("default"))) int losswire_supports(const char* instruction_set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!std::strcmp(instruction_set, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!std::strcmp(instruction_set, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#endif
    return !std::strcmp(instruction_set, "portable");
}
