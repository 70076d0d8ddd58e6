#pragma once
// What a hyperparameter may be: the reader of files (hparams.cpp) and the maker of models (src/synth) hold to
// the same. Wide enough for any model that one could mean, narrow enough that no product of two of them and
// an element size overflows 64 bits, and that positions and token ids fit 32.
#include <cstdint>

namespace greta {

struct IntRange {
  int64_t least;
  int64_t most;
};
/// above < x <= most, and 0 itself where that is a value.
struct RealRange {
  double above;
  double most;
  bool zero = false;

  bool has(double x) const { return (x > above && x <= most) || (zero && x == 0.0); }  // false for a NaN
};

inline constexpr IntRange kLayers{1, 4096};
inline constexpr IntRange kDim{1, 1 << 20};
inline constexpr IntRange kHeads{1, 1 << 14};
inline constexpr IntRange kHeadDim{2, 1 << 13};
inline constexpr IntRange kFfnDim{1, 1 << 24};
inline constexpr IntRange kVocab{1, 1 << 24};
inline constexpr IntRange kContext{1, 1 << 30};
inline constexpr RealRange kEps{0.0, 1.0};
inline constexpr RealRange kRopeBase{1.0, 1e15};
inline constexpr RealRange kFactor{0.0, 65536.0};  ///< of a rotary scaling
inline constexpr RealRange kScale{0.0, 1e6};
inline constexpr IntRange kExperts{0, 1 << 12};
inline constexpr IntRange kWindow{0, 1 << 30};
inline constexpr RealRange kSoftcap{0.0, 1e6, true};

}  // namespace greta
