#pragma once
// Rotary frequencies from a file's settings, in float64.
#include <span>

#include "backend/backend.h"

namespace greta {

enum class RopeScaling { none, linear, yarn };

struct RopeSettings {
  int dims = 0;  ///< rotated elements of a head, even
  double base = 10000.0;
  RopeScaling scaling = RopeScaling::none;
  double factor = 1.0;            ///< linear and YaRN: how much longer the context became
  double original_context = 0.0;  ///< YaRN: positions of the training before it
  double attn_factor = 1.0;       ///< YaRN: multiplies the magnitude
  double ext_factor = 1.0;        ///< YaRN: share of the ramp; 0 leaves plain interpolation
  double beta_fast = 32.0;  ///< YaRN: pairs that turn more often in the original context keep their frequency
  double beta_slow = 1.0;   ///< YaRN: pairs that turn less often are interpolated
  std::span<const float> factors;  ///< empty, or [dims / 2]: each frequency is divided by its own (Llama 3)
};

/// inv_freq [dims / 2] and magnitude. Definitions: those of Hugging Face transformers (modeling_rope_utils),
/// which for YaRN are the paper's (Peng et al., arXiv 2309.00071) with the correction range widened to whole
/// pairs. The powers and logarithms are rounded correctly but for about one in 2^40, by additions,
/// multiplications and divisions alone: the same bits on every machine, whatever its C library.
RopeSpec make_rope(RopeStyle style, const RopeSettings& settings);

/// base^exponent for base > 0 as make_rope computes it.
double exact_pow(double base, double exponent);
/// The natural logarithm for x > 0, likewise.
double exact_log(double x);

}  // namespace greta
