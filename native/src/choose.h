// From a row of logits and a number in [0, 1) to a token: temperature, min_p, top_k, top_p, one draw.
//
// Knows: one row. Does not know: requests, penalties, where draws come from.
//
// With weights w = exp((logit - largest) / temperature), likelier before less likely and lower ids first among equals:
//   min_p  keeps w >= min_p;  top_k keeps the first k;  top_p keeps the fewest of those whose sum reaches p times
//   the sum of what min_p and top_k kept (of everything when neither is set)
// The token is the first, in order of ids, at which the running sum of kept weights passes draw * their sum.
#pragma once
#include <cstdint>
#include <vector>

#include "../legato.h"
#include "kernels.h"

namespace lg {

struct Weighted {
  float weight;
  int32_t id;
};

// What a choice computes in; grows to the vocabulary once.
struct ChoiceScratch {
  std::vector<float> weights, run_sums, run_tops, tops;
  std::vector<Weighted> kept, sorted;
};

// -1 where the row's largest logit is not a finite number, or a logit is a NaN.
int32_t choose(const Kernels& kernels, const lg_choice& choice, ChoiceScratch& scratch);

}  // namespace lg
