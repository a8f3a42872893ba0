#include "routing.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace firstlight {
namespace {

constexpr double kLeastSum = 1e-20;
constexpr double kNever = -std::numeric_limits<double>::infinity();

void softmax(const float* logits, int64_t count, double* scores) {
    double most = kNever, sum = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        // The first comparison lets what is not a number through, as NumPy's maximum does.
        if (!(logits[i] <= most)) most = logits[i];
    }
    for (int64_t i = 0; i < count; ++i) sum += scores[i] = std::exp(logits[i] - most);
    for (int64_t i = 0; i < count; ++i) scores[i] /= sum;
}

double score_of(Score score, double logit) {
    if (score == Score::sigmoid) return 0.5 * (1.0 + std::tanh(0.5 * logit));
    return std::sqrt(std::max(logit, 0.0) + std::log1p(std::exp(-std::fabs(logit))));
}

// Whether a comes before b among the largest; what is not a number comes last.
bool before(double a, double b) { return a > b || (std::isnan(b) && !std::isnan(a)); }

// The index of the largest of values that are not taken, the lower where they are equal.
int64_t largest(const double* values, int64_t count, const std::vector<int64_t>& taken) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i) {
        if (best >= 0 && !before(values[i], values[best])) continue;
        if (std::find(taken.begin(), taken.end(), i) == taken.end()) best = i;
    }
    return best;
}

void choose(const double* values, int64_t count, int64_t wanted, std::vector<int64_t>& chosen) {
    chosen.clear();
    for (int64_t i = 0; i < wanted; ++i) chosen.push_back(largest(values, count, chosen));
}

// Leaves the preferences of the best groups alone.
void keep_groups(const Routing& routing, int64_t experts, RoutingScratch& scratch) {
    const int64_t members = experts / routing.groups;
    std::vector<double>& preference = scratch.preference;
    scratch.groups.assign(static_cast<size_t>(routing.groups), 0.0);
    for (int64_t group = 0; group < routing.groups; ++group) {
        choose(preference.data() + group * members, members, routing.counted, scratch.chosen);
        for (const int64_t member : scratch.chosen) {
            scratch.groups[static_cast<size_t>(group)] +=
                preference[static_cast<size_t>(group * members + member)];
        }
    }
    choose(scratch.groups.data(), routing.groups, routing.groups_kept, scratch.chosen);
    for (int64_t group = 0; group < routing.groups; ++group) {
        const auto& kept = scratch.chosen;
        if (std::find(kept.begin(), kept.end(), group) != kept.end()) continue;
        std::fill_n(preference.begin() + group * members, members, kNever);
    }
}

}  // namespace

void route_row(const Routing& routing, const float* logits, int64_t experts,
               const float* correction, const int32_t* chosen, RoutingScratch& scratch,
               float* weights) {
    std::vector<double>& scores = scratch.scores;
    scores.resize(static_cast<size_t>(experts));
    if (routing.score == Score::softmax) {
        softmax(logits, experts, scores.data());
    } else {
        for (int64_t i = 0; i < experts; ++i) {
            scores[static_cast<size_t>(i)] = score_of(routing.score, logits[i]);
        }
    }
    if (chosen) {
        scratch.chosen.assign(chosen, chosen + routing.top_k);
    } else {
        scratch.preference = scores;
        for (int64_t i = 0; correction && i < experts; ++i) {
            scratch.preference[static_cast<size_t>(i)] += correction[i];
        }
        if (routing.groups_kept < routing.groups) keep_groups(routing, experts, scratch);
        choose(scratch.preference.data(), experts, routing.top_k, scratch.chosen);
    }
    double sum = 0.0;
    for (const int64_t expert : scratch.chosen) sum += scores[static_cast<size_t>(expert)];
    const double divisor = routing.renormalised ? sum + kLeastSum : 1.0;
    // Summed in double first, for an expert may be chosen twice.
    scratch.preference.assign(static_cast<size_t>(experts), 0.0);
    for (const int64_t expert : scratch.chosen) {
        const auto place = static_cast<size_t>(expert);
        scratch.preference[place] += routing.scale * (scores[place] / divisor);
    }
    for (int64_t i = 0; i < experts; ++i) {
        weights[i] = static_cast<float>(scratch.preference[static_cast<size_t>(i)]);
    }
}

}  // namespace firstlight
