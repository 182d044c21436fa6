// What the operations of a program share: one step's arrays, the buffers, each worker's scratch, the clock.
//
// Knows: where things lie during a step. Does not know: which operations there are.
#pragma once
#include <cstdint>
#include <vector>

#include "../legato.h"
#include "kernels.h"
#include "pool.h"

namespace lg {

// Up to this many rows every worker prepares all rows for itself: cheaper than meeting at one more barrier.
constexpr int32_t kFewRows = 4;

// Rows of floats, one a token of the step.
struct Buffer {
  float* data = nullptr;
  int64_t stride = 0;  // floats
  int32_t width = 0;

  float* row(int64_t r) const { return data + r * stride; }
};

// Rows made ready for a linear: quantised records, or floats, or both.
struct PreparedRows {
  uint8_t* quantized;
  int64_t quantized_stride;  // bytes
  uint8_t* floats;
  int64_t floats_stride;     // bytes
};

// Memory of one worker alone.
struct Scratch {
  uint8_t* kernel;    // for linear and attend
  PreparedRows few;   // kFewRows rows
  float* row;         // one row of the widest buffer
  float* merge;       // a row's queries while their partial records come together
};

// One rope's angles of the step's rows: `half` cosines, then `half` sines a row.
struct RopeTable {
  std::vector<double> inv_freq;
  double scale;
  float* data;

  int64_t half() const { return static_cast<int64_t>(inv_freq.size()); }
  float* cos(int64_t row) const { return data + row * 2 * half(); }
  float* sin(int64_t row) const { return cos(row) + half(); }
};

struct Step {
  const Kernels* kernels = nullptr;
  lg_batch batch{};
  std::vector<Scratch> scratch;       // one a worker
  PreparedRows rows{};                // shared, for more than kFewRows
  std::vector<RopeTable> ropes;
  uint8_t* queries = nullptr;         // prepared queries of one layer
  float* partials = nullptr;
  float* logits = nullptr;
  int64_t logits_stride = 0;
  int32_t* argmax = nullptr;          // a row of logits
  std::vector<int64_t> laps;          // nanoseconds of worker 0; the last one waits
  int64_t lap_began = 0;
  int32_t lap = 0;                    // the one running

  // Ends a phase; all workers call it alike.
  void barrier(Worker& worker);
  void start_clock();
  void end_lap();
};

// One operation; `run` is called by every worker, and ends before the barrier that its last phase needs.
class Op {
 public:
  virtual ~Op() = default;
  virtual void run(Step& step, Worker& worker) const = 0;
  int32_t lap = 0;
};

struct Norm {
  int32_t kind = LG_NO_NORM;
  float eps = 0;
  const float* weight = nullptr;
  const float* bias = nullptr;  // of layer norms that have one

  explicit operator bool() const { return kind != LG_NO_NORM; }
  void apply(const Kernels& kernels, const float* x, int64_t n, float* y) const {
    kind == LG_RMS_NORM ? kernels.rms_norm(x, weight, n, eps, y) : kernels.layer_norm(x, weight, bias, n, eps, y);
  }
};

}  // namespace lg
