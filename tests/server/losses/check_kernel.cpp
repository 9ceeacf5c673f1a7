// Compares the kernel, compiled into this program, with float64: test_arm.py runs it where Python cannot load a library.
#include <cmath>
#include <cstdio>

#include "kernel.cpp"

namespace losswire {
namespace {

double uniform() {
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return double(state >> 8) / double(1 << 24);
}

// A multiple of 1/8 in about [-12, 12], which every type holds exactly but bfloat16, where it is made to.
double logit(Element type) {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += uniform();
    double value = std::round(16 * sum) / 8;
    return type == Element::kBfloat16 && std::fabs(value) >= 4 ? std::round(value) : value;
}

void put(std::vector<char>& memory, Element type, size_t index, double value) {
    const float narrow = float(value);
    const uint32_t bits = bit_cast<uint32_t>(narrow);
    const uint16_t bfloat16 = uint16_t(bits >> 16);
    const uint16_t half = uint16_t((bits >> 16 & 0x8000) | (value == 0 ? 0 : ((bits >> 13) & 0x3ffff) - (112 << 10)));
    switch (type) {
        case Element::kHalf: std::memcpy(&memory[index * 2], &half, 2); break;
        case Element::kBfloat16: std::memcpy(&memory[index * 2], &bfloat16, 2); break;
        case Element::kFloat: std::memcpy(&memory[index * 4], &narrow, 4); break;
        default: std::memcpy(&memory[index * 8], &value, 8);
    }
}

// How many of the positions of five samples are wrong.
int wrong_positions(Element type, int64_t classes, int64_t positions) {
    const int64_t samples = 5;
    const size_t count = size_t(samples * positions);
    std::vector<double> x(count * size_t(classes)), loss(count), weight(count), entropy(count);
    std::vector<char> logits(x.size() * 8);
    for (size_t i = 0; i < x.size(); ++i) put(logits, type, i, x[i] = logit(type));
    std::vector<int64_t> target(count), argmax(count), rank(count);
    for (int64_t& each : target) each = int64_t(uniform() * double(classes));

    Job job{};
    job.logits = logits.data(), job.target = reinterpret_cast<const char*>(target.data());
    job.loss = loss.data(), job.target_weight = weight.data(), job.entropy = entropy.data();
    job.argmax = argmax.data(), job.target_rank = rank.data();
    job.samples = samples, job.classes = job.class_count = classes, job.positions = job.positions_per_sample = positions;
    job.ignore_index = -100, job.top_k = 5, job.logits_type = type, job.label_smoothing = 0.1;
    job.wanted = kLargest | kEntropy | kRank;
    if (losswire_evaluate(&job, 1, 2)) return int(count);

    const Element result = type == Element::kDouble ? Element::kDouble : Element::kFloat;
    const double most = type == Element::kDouble ? 1e-12 : 3e-6;
    int wrong = 0;
    for (size_t p = 0; p < count; ++p) {
        const size_t first = p / size_t(positions) * size_t(classes * positions) + p % size_t(positions);
        auto at = [&](int64_t c) { return x[first + size_t(c * positions)]; };
        int64_t largest = 0, before = 0;
        for (int64_t c = 1; c < classes; ++c)
            if (at(c) > at(largest)) largest = c;
        double sum = 0, gaps = 0, weighted_gaps = 0;
        for (int64_t c = 0; c < classes; ++c) {
            const double gap = at(largest) - at(c);
            sum += std::exp(-gap), gaps += gap, weighted_gaps += std::exp(-gap) * gap;
            before += at(c) > at(target[p]) || (at(c) == at(target[p]) && c < target[p]);
        }
        const double nll = at(largest) - at(target[p]) + std::log(sum);
        const double expected = 0.9 * nll + 0.1 * (gaps / double(classes) + std::log(sum));
        const double expected_entropy = std::log(sum) + weighted_gaps / sum;
        auto is_wrong = [&](const std::vector<double>& found, double value) {
            double error = std::fabs(element_at(reinterpret_cast<const char*>(found.data()), result, int64_t(p)) - value);
            return !(error <= most + 2.4e-7 * value);
        };
        wrong += is_wrong(loss, expected) || is_wrong(entropy, expected_entropy) || argmax[p] != largest ||
                 rank[p] != before;
    }
    return wrong;
}

}  // namespace
}  // namespace losswire

int main() {
    using losswire::Element;
    int wrong = 0;
    for (Element type : {Element::kHalf, Element::kBfloat16, Element::kFloat, Element::kDouble})
        for (int64_t classes : {2, 10, 64, 65, 100, 128, 1000, 4096, 4097, 12289})
            for (int64_t positions : {1, 3, 17, 70})
                if (classes * positions <= 100000) wrong += losswire::wrong_positions(type, classes, positions);
    std::printf("%d wrong positions\n", wrong);
    return wrong != 0;
}
