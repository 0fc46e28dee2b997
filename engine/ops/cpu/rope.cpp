#include "engine/ops/rope.h"

#include <cmath>
#include <numbers>

#include "engine/ops/cpu/cpu.h"

namespace headrace {
namespace {

// x reduced to [-pi/4, pi/4] and its quadrant. pi/2 in three parts of at most 33 bits, so that
// quadrant * part is exact for quadrants below 2^20.
double reduce(double x, int& quadrant) {
  constexpr double kPart1 = 0x1.921fb544p+0;
  constexpr double kPart2 = 0x1.0b4611a6p-34;
  constexpr double kPart3 = 0x1.3198a2e037073p-69;
  const double n = std::nearbyint(x * (2.0 / std::numbers::pi));
  quadrant = static_cast<int>(static_cast<int64_t>(n) & 3);
  return ((x - n * kPart1) - n * kPart2) - n * kPart3;
}

// Taylor series; the next term is below 2^-60 on [-pi/4, pi/4].
double sin_series(double r) {
  const double z = r * r;
  double p = 1.0;
  for (int i = 18; i >= 2; i -= 2) p = 1.0 - z / (i * (i + 1)) * p;
  return r * p;
}

double cos_series(double r) {
  const double z = r * r;
  double p = 1.0;
  for (int i = 17; i >= 1; i -= 2) p = 1.0 - z / (i * (i + 1)) * p;
  return p;
}

}  // namespace

double canonical_sin(double x) {
  int quadrant;
  const double r = reduce(x, quadrant);
  const double v = quadrant & 1 ? cos_series(r) : sin_series(r);
  return quadrant & 2 ? -v : v;
}

double canonical_cos(double x) {
  int quadrant;
  const double r = reduce(x, quadrant);
  const double v = quadrant & 1 ? sin_series(r) : cos_series(r);
  return quadrant == 1 || quadrant == 2 ? -v : v;
}

std::vector<float> rope_frequencies(const Rope& rope, int head_dim) {
  std::vector<float> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    // Roundings as in transformers, which has the exponent in float: that moves the result by up to
    // 5 steps where head_dim is no power of two. powl: extended precision is the same code on every
    // x86 machine, and far more exact than float.
    const float exponent = 2.0f * static_cast<float>(i) / static_cast<float>(head_dim);
    const float base = static_cast<float>(powl(static_cast<long double>(rope.theta), exponent));
    float frequency = 1.0f / base;
    if (!rope.frequency_divisors.empty()) frequency /= rope.frequency_divisors[i];
    if (rope.scaling == Rope::Scaling::kLinear) frequency /= static_cast<float>(rope.factor);
    if (rope.scaling == Rope::Scaling::kLlama3) {
      // Every step in float32, as transformers does.
      const auto original = static_cast<float>(rope.original_max_positions);
      const auto low = static_cast<float>(rope.low_freq_factor);
      const auto high = static_cast<float>(rope.high_freq_factor);
      const auto factor = static_cast<float>(rope.factor);
      const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / frequency;
      if (wavelength > original / low) {
        frequency = frequency / factor;
      } else if (wavelength >= original / high) {
        const float smooth = (original / wavelength - low) / (high - low);
        frequency = (1.0f - smooth) * frequency / factor + smooth * frequency;
      }
    }
    frequencies[i] = frequency;
  }
  return frequencies;
}

void RopeTable::compute(const Cpu& cpu, std::span<const float> frequencies,
                        std::span<const int64_t> positions) {
  half_ = static_cast<int>(frequencies.size());
  cos_.resize(positions.size() * frequencies.size());
  sin_.resize(cos_.size());
  cpu.threads.parallel_for(static_cast<int64_t>(positions.size()), [&](int64_t row) {
    const auto position = static_cast<float>(positions[row]);
    for (int i = 0; i < half_; ++i) {
      const double angle = position * frequencies[i];
      cos_[row * half_ + i] = static_cast<float>(canonical_cos(angle));
      sin_[row * half_ + i] = static_cast<float>(canonical_sin(angle));
    }
  });
}

void apply_rope(const Cpu& cpu, const RopeTable& table, int64_t first_row, float* x, int64_t rows,
                int heads, int head_dim) {
  const auto rotate_row = [&](int64_t i) {
    for (int h = 0; h < heads; ++h) {
      cpu.kernels.rotate(x + (i * heads + h) * head_dim, table.cos(first_row + i),
                         table.sin(first_row + i), head_dim / 2);
    }
  };
  if (rows < 8) {
    for (int64_t i = 0; i < rows; ++i) rotate_row(i);
  } else {
    cpu.threads.parallel_for(rows, rotate_row);
  }
}

}  // namespace headrace
