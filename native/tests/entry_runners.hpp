// How the ops on chosen entries of streams are run on the arguments of a case.

#pragma once

#include <vector>

#include "runners.hpp"

namespace firstlight::tests {

const std::vector<Runner>& entry_runners();

}  // namespace firstlight::tests
