// Choosing a token: see choose.h.
//
// Knows: runs of weights with their sums and maxima, selection. Does not know: exponentials (rows_impl.h).
//
// Nothing here sorts a vocabulary. A bound below everything that can be kept is found from the runs' maxima; only runs
// that reach it are looked at, and what is found is cut by selection.
#include "choose.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace lg {
namespace {

bool before(const Weighted& a, const Weighted& b) { return a.weight != b.weight ? a.weight > b.weight : a.id < b.id; }

// No weight under it can be kept.
float least_weight(const lg_choice& c, double total, ChoiceScratch& s) {
  float least = c.min_p;
  const size_t runs = s.run_tops.size(), k = static_cast<size_t>(c.top_k);
  if (c.top_k > 0 && k <= runs) {  // k runs reach the k-th largest of their maxima, so the k-th weight does
    s.tops = s.run_tops;
    std::nth_element(s.tops.begin(), s.tops.begin() + static_cast<int64_t>(k) - 1, s.tops.end(), std::greater<float>());
    least = std::max(least, s.tops[k - 1]);
  }
  if (c.top_k <= 0 && c.min_p <= 0) {  // all that are smaller than this do not sum up to 1 - p
    const double spare = (1.0 - static_cast<double>(c.top_p)) * total / static_cast<double>(c.vocab);
    least = std::max(least, static_cast<float>(0.999 * spare));
  }
  return least;
}

void gather(const lg_choice& c, float least, ChoiceScratch& s) {
  s.kept.clear();
  for (size_t run = 0; run < s.run_tops.size(); ++run) {
    if (!(s.run_tops[run] >= least)) continue;
    const int64_t begin = static_cast<int64_t>(run) * kRun, end = std::min<int64_t>(c.vocab, begin + kRun);
    for (int64_t i = begin; i < end; ++i) {
      const float w = s.weights[static_cast<size_t>(i)];
      if (w >= least) s.kept.push_back({w, static_cast<int32_t>(i)});
    }
  }
}

double sum_of(const std::vector<Weighted>& all) {
  double sum = 0;
  for (const Weighted& w : all) sum += static_cast<double>(w.weight);
  return sum;
}

void drop_after(std::vector<Weighted>& kept, const Weighted& last) {
  kept.erase(std::remove_if(kept.begin(), kept.end(), [&](const Weighted& w) { return before(last, w); }), kept.end());
}

void cut_to_count(size_t k, ChoiceScratch& s) {
  if (s.kept.size() <= k) return;
  s.sorted = s.kept;
  const auto last = s.sorted.begin() + static_cast<int64_t>(k) - 1;
  std::nth_element(s.sorted.begin(), last, s.sorted.end(), before);
  drop_after(s.kept, *last);
}

// The fewest of the likeliest whose sum reaches `target`: selection by halves, each looking at one half only.
void cut_to_sum(double target, ChoiceScratch& s) {
  s.sorted = s.kept;
  auto begin = s.sorted.begin(), end = s.sorted.end();
  double taken = 0;
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double half = 0;
    for (auto i = begin; i < middle; ++i) half += static_cast<double>(i->weight);
    if (taken + half >= target) {
      end = middle;
    } else {
      taken += half;
      begin = middle;
    }
  }
  drop_after(s.kept, *begin);
}

int32_t pick_kept(double draw, const ChoiceScratch& s) {
  const double target = draw * sum_of(s.kept);
  double sum = 0;
  int32_t last = -1;  // of a weight above 0: a draw next to 1 may be rounded up to the whole sum
  for (const Weighted& w : s.kept) {
    if (w.weight > 0) last = w.id;
    sum += static_cast<double>(w.weight);
    if (sum > target) break;
  }
  return last;
}

int32_t pick_any(const lg_choice& c, double total, const ChoiceScratch& s) {
  const double target = c.draw * total;
  double sum = 0;
  int32_t last = 0;
  for (size_t run = 0; run < s.run_sums.size(); ++run) {
    const double next = sum + static_cast<double>(s.run_sums[run]);
    if (s.run_sums[run] > 0) last = static_cast<int32_t>(run);
    if (next > target) break;
    sum = next;
  }
  const int64_t begin = int64_t{last} * kRun, end = std::min<int64_t>(c.vocab, begin + kRun);
  int64_t at = begin;
  for (int64_t i = begin; i < end; ++i) {
    const float w = s.weights[static_cast<size_t>(i)];
    if (w > 0) at = i;
    sum += static_cast<double>(w);
    if (sum > target) break;
  }
  return static_cast<int32_t>(at);
}

}  // namespace

int32_t choose(const Kernels& kernels, const lg_choice& c, ChoiceScratch& s) {
  float top = 0;
  if (kernels.argmax(c.logits, c.vocab, &top) < 0 || !std::isfinite(top)) return -1;
  const size_t vocab = static_cast<size_t>(c.vocab), runs = (vocab + kRun - 1) / kRun;
  s.weights.resize(vocab);
  s.run_sums.resize(runs);
  s.run_tops.resize(runs);
  const float inverse = std::min(1.0f / c.temperature, 1e30f);  // finite: the largest logit's weight is e^0
  kernels.weigh(c.logits, c.vocab, top, inverse, s.weights.data(), s.run_sums.data(), s.run_tops.data());
  double total = 0;
  for (float sum : s.run_sums) total += static_cast<double>(sum);
  const bool cut_by_sum = c.top_p < 1, cut_by_count = c.top_k > 0 && c.top_k < c.vocab;
  if (!cut_by_sum && !cut_by_count && c.min_p <= 0) return pick_any(c, total, s);
  gather(c, least_weight(c, total, s), s);
  if (cut_by_count) cut_to_count(static_cast<size_t>(c.top_k), s);
  if (cut_by_sum)
    cut_to_sum(static_cast<double>(c.top_p) * (cut_by_count || c.min_p > 0 ? sum_of(s.kept) : total), s);
  return pick_kept(c.draw, s);
}

}  // namespace lg
