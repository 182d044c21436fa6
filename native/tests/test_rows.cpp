// Row kernels of every level this machine has, against double precision.
//
// Knows: the mathematics of each row operation. Does not know: how a level computes it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "../src/kernels.h"
#include "levels.h"

using namespace lg;

static int failures = 0;

static void expect(bool ok, const char* level, const char* what, int64_t n, double got, double want) {
  if (ok) return;
  if (++failures <= 20) std::printf("FAIL %s %s n=%lld: got %.9g, want %.9g\n", level, what, (long long)n, got, want);
}

static bool close(double got, double want, double absolute, double relative) {
  return std::fabs(got - want) <= absolute + relative * std::fabs(want);
}

static const int64_t kSizes[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 200, 576, 1000};

static void test_norms(const Kernels& k) {
  Random random(1);
  for (int64_t n : kSizes) {
    const std::vector<float> x = random.normal(n, 3.0f), w = random.normal(n, 1.0f), b = random.normal(n, 1.0f);
    std::vector<float> y(n), z(n), plain(n);
    double squares = 0, mean = 0, variance = 0;
    for (float v : x) squares += double(v) * v, mean += v;
    mean /= double(n);
    for (float v : x) variance += (v - mean) * (v - mean);
    const double r = 1 / std::sqrt(squares / double(n) + 1e-5), d = 1 / std::sqrt(variance / double(n) + 1e-5);
    k.rms_norm(x.data(), w.data(), n, 1e-5f, y.data());
    k.layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, z.data());
    k.layer_norm(x.data(), w.data(), nullptr, n, 1e-5f, plain.data());
    for (int64_t i = 0; i < n; ++i) {
      expect(close(y[i], x[i] * r * w[i], 1e-6, 1e-6), k.name, "rms_norm", n, y[i], x[i] * r * w[i]);
      const double want = (x[i] - mean) * d * w[i];
      expect(close(plain[i], want, 2e-4 * (n == 1), 3e-6) || close(plain[i], want, 3e-6, 3e-6), k.name, "layer_norm", n,
             plain[i], want);
      expect(close(z[i], want + b[i], 3e-6, 3e-6), k.name, "layer_norm with bias", n, z[i], want + b[i]);
    }
  }
}

static void test_rope(const Kernels& k) {
  Random random(2);
  for (int64_t half : {1, 4, 8, 16, 20, 24, 32, 40, 48, 64, 128}) {
    const std::vector<float> x = random.normal(2 * half + 3, 1.0f);
    std::vector<float> y = x, c(half), s(half);
    for (int64_t i = 0; i < half; ++i) c[i] = std::cos(0.1f * float(i) + 1), s[i] = std::sin(0.1f * float(i) + 1);
    k.rope(y.data(), half, c.data(), s.data());
    for (int64_t i = 0; i < half; ++i) {
      const double a = double(x[i]) * c[i] - double(x[half + i]) * s[i];
      const double b = double(x[half + i]) * c[i] + double(x[i]) * s[i];
      expect(close(y[i], a, 1e-6, 1e-6), k.name, "rope, first half", half, y[i], a);
      expect(close(y[half + i], b, 1e-6, 1e-6), k.name, "rope, second half", half, y[half + i], b);
    }
    for (int64_t i = 2 * half; i < 2 * half + 3; ++i)
      expect(y[i] == x[i], k.name, "rope leaves the rest alone", half, y[i], x[i]);
  }
}

static double activation(int32_t kind, double x) {
  if (kind == EP_SILU) return x / (1 + std::exp(-x));
  if (kind == EP_GELU) return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static void test_maps(const Kernels& k) {
  Random random(3);
  for (int64_t n : kSizes) {
    std::vector<float> x = random.normal(n, 4.0f);
    x[0] = 0.0f;
    if (n > 4) x[1] = 150.0f, x[2] = -150.0f, x[3] = 1e-4f;
    for (int32_t kind : {EP_SILU, EP_GELU_TANH, EP_GELU}) {
      std::vector<float> y = x;
      k.activate(y.data(), n, kind);
      for (int64_t i = 0; i < n; ++i) {
        const double want = activation(kind, x[i]);
        expect(close(y[i], want, 4e-7 * (1 + std::fabs(x[i])), 1e-6), k.name, "activate", n, y[i], want);
      }
      // A value does not depend on its place or on its neighbours.
      for (int64_t i = 0; i < n; i += 5) {
        float alone = x[i];
        k.activate(&alone, 1, kind);
        expect(std::memcmp(&alone, &y[i], 4) == 0, k.name, "activate alone", n, alone, y[i]);
      }
    }
    std::vector<float> y = x, z = x;
    k.softcap(y.data(), n, 30.0f);
    k.add(z.data(), y.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const double want = 30 * std::tanh(x[i] / 30.0);
      expect(close(y[i], want, 8e-6, 1e-6), k.name, "softcap", n, y[i], want);
      expect(z[i] == x[i] + y[i], k.name, "add", n, z[i], x[i] + y[i]);
    }
  }
}

static void test_nan_is_kept(const Kernels& k) {
  std::vector<float> x(20, 1.0f), w(20, 1.0f), y(20);
  x[17] = std::numeric_limits<float>::quiet_NaN();
  for (int32_t kind : {EP_SILU, EP_GELU_TANH, EP_GELU}) {
    y = x;
    k.activate(y.data(), 20, kind);
    expect(std::isnan(y[17]) && y[16] == y[0], k.name, "activate keeps NaN in its place", 20, y[17], y[0]);
  }
  y = x;
  k.softcap(y.data(), 20, 5.0f);
  expect(std::isnan(y[17]) && y[16] == y[0], k.name, "softcap keeps NaN in its place", 20, y[17], y[0]);
  k.rms_norm(x.data(), w.data(), 20, 1e-5f, y.data());
  expect(std::isnan(y[0]), k.name, "rms_norm of a NaN row", 20, y[0], 0);
}

static void test_argmax(const Kernels& k) {
  Random random(4);
  const float inf = std::numeric_limits<float>::infinity();
  for (int64_t n : {1, 2, 15, 16, 17, 64, 65, 1000, 1023, 1024, 1025, 1500, 2048, 5000, 49152, 49153}) {
    for (int trial = 0; trial < 8; ++trial) {
      std::vector<float> x = random.normal(n, 1.0f);
      if (trial >= 4)
        for (float& v : x) v = std::round(v * 2);  // many equals
      if (trial == 7) x.assign(n, -inf);
      int64_t want = 0;
      for (int64_t i = 1; i < n; ++i)
        if (x[i] > x[want]) want = i;
      float best = 0;
      const int64_t got = k.argmax(x.data(), n, &best);
      expect(got == want && best == x[want], k.name, "argmax", n, double(got), double(want));
      x[random.below(n)] = std::numeric_limits<float>::quiet_NaN();
      expect(k.argmax(x.data(), n, &best) == -1, k.name, "argmax with NaN", n, 0, -1);
    }
  }
}

int main() {
  for (const Level& level : levels()) {
    Kernels k{};
    k.name = level.name;
    level.fill_rows(&k);
    test_norms(k);
    test_rope(k);
    test_maps(k);
    test_nan_is_kept(k);
    test_argmax(k);
    std::printf("rows %s: %s\n", k.name, failures ? "FAILED" : "ok");
  }
  return failures != 0;
}
