#pragma once
// Counter-based random numbers: element i of stream s is a function of (s, i) alone, so that any thread may
// make any part of a tensor.
#include <cstdint>
#include <string_view>

namespace greta::synth {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;

/// SplitMix64's finaliser (Steele, Lea and Flood, 2014).
inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// The stream of a tensor: by its name, so that a matrix does not change when another option adds a tensor
/// before it.
inline uint64_t stream_of(uint64_t seed, std::string_view name) {
  uint64_t h = mix(seed + kGolden);
  for (const char c : name) h = mix(h ^ static_cast<unsigned char>(c)) + kGolden;
  return h;
}

inline uint64_t bits_at(uint64_t stream, uint64_t i) { return mix(stream + (i + 1) * kGolden); }

/// Nearly normal, mean 0, variance 1, |x| < 3.47: the sum of the four 16-bit numbers in 64 random bits.
inline float normal_of(uint64_t bits) {
  constexpr uint64_t kLanes = 0x0000ffff0000ffffu;
  const uint64_t pairs = (bits & kLanes) + ((bits >> 16) & kLanes);
  const auto sum = static_cast<int32_t>((pairs & 0xffffffffu) + (pairs >> 32));
  return static_cast<float>(sum - 2 * 65535) * (1.0F / 37837.2F);  // sqrt(4 (2^32 - 1) / 12) = 37837.2
}

/// Uniform in [0, 1): the top 24 bits.
inline float uniform_of(uint64_t bits) { return static_cast<float>(bits >> 40) * 0x1p-24F; }

}  // namespace greta::synth
