// Choosing a token, on every level, against a sort of everything.
//
// Knows: what choose.h promises. Does not know: runs, selection.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "../src/choose.h"
#include "levels.h"

using namespace lg;

static int failures = 0;

// Kept weights by id (0: not kept), from the level's own exponentials.
static std::vector<double> keep(const std::vector<float>& w, const lg_choice& c) {
  std::vector<int64_t> order(w.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return w[a] > w[b]; });
  std::vector<double> kept(w.size(), 0.0);
  double total = 0, reached = 0;
  int64_t count = 0;
  for (int64_t i : order) {
    if (w[i] < c.min_p || (c.top_k > 0 && count == c.top_k)) break;
    kept[i] = w[i];
    total += w[i];
    ++count;
  }
  for (int64_t i : order) {
    if (c.top_p < 1 && reached >= double(c.top_p) * total) kept[i] = 0;
    reached += kept[i];
  }
  return kept;
}

static void world(const Kernels& k, Random& random, int64_t vocab) {
  std::vector<float> logits = random.normal(vocab, random.uniform() < 0.5 ? 4.0f : 0.1f);
  if (random.uniform() < 0.3)
    for (float& x : logits) x = std::round(x);
  lg_choice c = {logits.data(), vocab, random.uniform(), 0.5f + float(random.uniform()), 1.0f, 0.0f, 0};
  if (random.uniform() < 0.6) c.top_p = float(random.uniform());
  if (random.uniform() < 0.4) c.min_p = float(random.uniform());
  if (random.uniform() < 0.5) c.top_k = int32_t(random.below(vocab + 2));
  ChoiceScratch scratch;
  const int32_t token = choose(k, c, scratch);
  const std::vector<double> kept = keep(scratch.weights, c);
  const double total = std::accumulate(kept.begin(), kept.end(), 0.0);
  const double below = std::accumulate(kept.begin(), kept.begin() + token, 0.0);
  // The draw falls into the token's share, but for the rounding of sums.
  const bool good = token >= 0 && kept[size_t(token)] > 0 && below <= c.draw * total * (1 + 1e-6) + 1e-9 &&
                    below + kept[size_t(token)] >= c.draw * total * (1 - 1e-6) - 1e-9;
  if (!good && ++failures < 10)
    std::printf("FAIL %s vocab %lld: token %d of draw %g, top_p %g min_p %g top_k %d: share %g..%g of %g\n", k.name,
                (long long)vocab, token, c.draw, c.top_p, c.min_p, c.top_k, below, below + kept[size_t(token)], total);
}

int main() {
  for (const Level& level : levels()) {
    Kernels k{};
    k.name = level.name;
    level.fill_rows(&k);
    Random random(7);
    for (int64_t vocab : {1, 3, 16, 63, 64, 65, 200, 3000})
      for (int i = 0; i < 60; ++i) world(k, random, vocab);
    std::printf("choose %s: done\n", level.name);
  }
  std::printf("choose: %s\n", failures ? "FAILED" : "passed");
  return failures ? 1 : 0;
}
