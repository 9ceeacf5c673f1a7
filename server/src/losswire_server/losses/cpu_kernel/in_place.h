// A small job whose tensors stand in the bytes of a message: from there to its sums, with no tensor in between.
#pragma once

#include <cstring>
#include <vector>

#include "job.h"

namespace losswire {

// Every field has 8 bytes, and in_place.py packs them in this order.
struct InPlace {
    int64_t logits_start, target_start;        // offsets in the message
    int64_t label_bytes, labels_are_unsigned;  // of class indices, which job.target holds as int64
    double loss_sum, weight_sum;               // results, and the number of positions that are not ignored
    int64_t counted;
    Job job;                                   // with the addresses of what is in the message, and of results, left out
};

// Adds the second half to the first until one value is left; the count is rounded up to a power of two by zeros.
// sums.py adds in the same order.
inline double tree_sum(std::vector<double>& values) {
    size_t size = 1;
    while (size < values.size()) size *= 2;
    values.resize(size);
    while (size > 1) {
        size /= 2;
        for (size_t i = 0; i < size; ++i) values[i] += values[i + size];
    }
    return values[0];
}

template <class Integer> int64_t integer_at(const char* address) {
    Integer value;
    std::memcpy(&value, address, sizeof value);
    return int64_t(value);
}

inline int64_t label_at(const char* labels, int64_t bytes, bool is_unsigned, int64_t position) {
    const char* address = labels + position * bytes;
    switch (bytes) {
        case 1: return is_unsigned ? integer_at<uint8_t>(address) : integer_at<int8_t>(address);
        case 2: return integer_at<int16_t>(address);
        case 4: return integer_at<int32_t>(address);
        default: return integer_at<int64_t>(address);
    }
}

// Memory of one thread, kept from job to job.
struct InPlaceMemory {
    std::vector<int64_t> labels;
    std::vector<float> float_loss;
    std::vector<double> loss, target_weight;
};

// Whether every class index is in [0, classes) or the one to be ignored; makes them int64 if they are not.
inline bool read_labels(InPlace& call, const char* labels, InPlaceMemory& memory) {
    Job& job = call.job;
    const int64_t count = job.samples * job.positions;
    if (call.label_bytes != 8) memory.labels.resize(size_t(count));
    bool in_range = true;
    for (int64_t i = 0; i < count; ++i) {
        int64_t label = label_at(labels, call.label_bytes, call.labels_are_unsigned, i);
        in_range &= uint64_t(label) < uint64_t(job.classes) || label == job.ignore_index;
        if (call.label_bytes != 8) memory.labels[size_t(i)] = label;
    }
    job.target = call.label_bytes == 8 ? labels : reinterpret_cast<const char*>(memory.labels.data());
    return in_range;
}

// Evaluates the job in a message by `evaluate(job)`. False if a class index is out of range.
template <class Evaluate> bool evaluate_in_place(InPlace& call, const char* message, const Evaluate& evaluate) {
    thread_local InPlaceMemory memory;
    Job& job = call.job;
    const size_t count = size_t(job.samples * job.positions);
    job.logits = message + call.logits_start;
    job.target = message + call.target_start;
    if (!job.is_probabilities && !read_labels(call, job.target, memory)) return false;
    memory.loss.resize(count);
    memory.target_weight.resize(count);
    memory.float_loss.resize(count);
    const bool is_double = job.logits_type == Element::kDouble;
    job.loss = is_double ? static_cast<void*>(memory.loss.data()) : memory.float_loss.data();
    job.target_weight = memory.target_weight.data();
    evaluate(job);
    if (!is_double) std::copy(memory.float_loss.begin(), memory.float_loss.end(), memory.loss.begin());
    call.loss_sum = tree_sum(memory.loss);
    call.weight_sum = tree_sum(memory.target_weight);
    call.counted = job.counted;
    return true;
}

}  // namespace losswire
