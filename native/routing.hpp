// Which experts a token goes to: the op `route`, in double as its definition.

#pragma once

#include <cstdint>
#include <vector>

namespace firstlight {

enum class Score : int { softmax, sigmoid, sqrt_softplus };

struct Routing {
    int64_t top_k;
    Score score;
    int64_t groups, groups_kept;
    int64_t counted;  // scores of a group that its own is the sum of
    bool renormalised;
    double scale;
};

// What one row's routing needs beside the row, kept between rows.
struct RoutingScratch {
    std::vector<double> scores, preference, groups;
    std::vector<int64_t> chosen;
};

// weights [experts] from logits [experts]; correction [experts] or null; chosen [top_k] or null:
// experts that were chosen by other means.
void route_row(const Routing& routing, const float* logits, int64_t experts,
               const float* correction, const int32_t* chosen, RoutingScratch& scratch,
               float* weights);

}  // namespace firstlight
