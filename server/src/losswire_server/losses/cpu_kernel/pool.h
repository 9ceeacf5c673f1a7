// Threads that help the caller with one list of items, and otherwise sleep.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace losswire {

// A list of items, each taken by whoever is free. The caller works too, so a helper that wakes late delays nobody.
class Pool {
  public:
    // Lives as long as the process: helpers may still sleep in it when static objects are destroyed.
    static Pool& instance() {
        static Pool* pool = new Pool;
        return *pool;
    }

    // Calls work(i) once for each i in [0, count), on up to `threads` threads; returns when all have returned.
    template <class Work> void run(int64_t count, int threads, const Work& work) {
        // Work that needs no helper leaves the turn to others.
        std::unique_lock<std::mutex> turn(turn_, std::defer_lock);
        if (threads <= 1 || count <= 1 || !turn.try_lock()) {
            for (int64_t i = 0; i < count; ++i) work(i);
            return;
        }
        open(count, threads - 1, [](const void* work, int64_t i) { (*static_cast<const Work*>(work))(i); }, &work);
        take_items();
        close();
    }

  private:
    using Call = void (*)(const void*, int64_t);

    void open(int64_t count, int helpers, Call call, const void* work) {
        std::lock_guard<std::mutex> lock(mutex_);
        for (; helper_count_ < helpers; ++helper_count_) std::thread([this] { help(); }).detach();
        call_ = call, work_ = work, count_ = count, next_ = 0;
        wanted_ = helpers;
        wake_.notify_all();
    }

    // No helper joins any more; those that did finish their items.
    void close() {
        std::unique_lock<std::mutex> lock(mutex_);
        wanted_ = 0;
        done_.wait(lock, [this] { return working_ == 0; });
    }

    void take_items() {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) call_(work_, i);
    }

    void help() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return wanted_ > 0; });
            --wanted_, ++working_;
            lock.unlock();
            take_items();
            lock.lock();
            if (--working_ == 0) done_.notify_one();
        }
    }

    std::mutex turn_, mutex_;
    std::condition_variable wake_, done_;
    int helper_count_ = 0, wanted_ = 0, working_ = 0;
    Call call_ = nullptr;
    const void* work_ = nullptr;
    int64_t count_ = 0;
    std::atomic<int64_t> next_{0};
};

}  // namespace losswire
