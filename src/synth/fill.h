#pragma once
// The bytes of random tensors, made piece by piece on all threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "synth/random.h"

namespace greta::synth {

/// Fills a tensor with random numbers in pieces of kPiece elements, each made and stored by one thread into
/// its place.
class Filler {
 public:
  Filler(uint64_t seed, int threads)
      : seed_(seed), pool_(threads), buffers_(static_cast<size_t>(pool_.size())) {}

  /// Elements up to `end` (from where the part before ended) have the standard deviation `spread`.
  struct Part {
    uint64_t end;
    double spread;
  };
  /// A weight matrix; several parts where one tensor holds the rows of several. As in real models the spread
  /// is not the same everywhere: each run of 16 elements has its own and a mean of its own, so that the
  /// blocks' scales and minima take all their values. (A run over the end of a part belongs to the first.)
  gguf::Writer::Fill matrix(const std::string& name, std::vector<Part> parts, quant::Type type) {
    const uint64_t stream = stream_of(seed_, name);
    return [this, stream, type, parts = std::move(parts)](const gguf::Writer::Sink& sink) {
      pieces(parts.back().end, type, sink, [&](uint64_t first, uint64_t count, float* out) {
        fill_matrix(stream, first, count, parts, out);
      });
    };
  }

  /// A vector, F32: `centre` plus uniform numbers in +-`reach`.
  gguf::Writer::Fill vector(const std::string& name, uint64_t elements, float centre, float reach) {
    const uint64_t stream = stream_of(seed_, name);
    return [this, stream, elements, centre, reach](const gguf::Writer::Sink& sink) {
      pieces(elements, quant::Type::F32, sink, [=](uint64_t first, uint64_t count, float* out) {
        for (uint64_t i = 0; i < count; ++i)
          out[i] = centre + reach * (2.0F * uniform_of(bits_at(stream, first + i)) - 1.0F);
      });
    };
  }

 private:
  static constexpr uint64_t kPiece = 1 << 15;  // a multiple of every block
  static constexpr uint64_t kPieces = 64;      // made before they are written: 2 M elements, 8 MB at most
  static constexpr uint64_t kGroup = 16;

  static void fill_matrix(uint64_t stream, uint64_t first, uint64_t count, const std::vector<Part>& parts,
                          float* out) {
    const uint64_t groups = mix(stream ^ 0x67726f757073u);      // a stream of its own for the runs of 16
    for (uint64_t begin = 0; begin < count; begin += kGroup) {  // first is a multiple of kGroup
      const auto part =
          std::find_if(parts.begin(), parts.end(), [&](const Part& p) { return first + begin < p.end; });
      // Spreads are uniform in [0.1, 1.6] (mean square 0.91), means in +-0.3 (mean square 0.03): 0.94 in all.
      const auto scale = static_cast<float>(part->spread / std::sqrt(0.94));
      const uint64_t bits = bits_at(groups, (first + begin) / kGroup);
      const float spread = scale * (0.1F + 1.5F * uniform_of(bits));
      const float mean = scale * 0.3F * (2.0F * uniform_of(bits << 24) - 1.0F);
      const uint64_t end = std::min(begin + kGroup, count);
      for (uint64_t i = begin; i < end; ++i) out[i] = mean + spread * normal_of(bits_at(stream, first + i));
    }
  }

  template <class Make>
  void pieces(uint64_t elements, quant::Type type, const gguf::Writer::Sink& sink, const Make& make) {
    const uint64_t piece_bytes = *quant::bytes_for(type, kPiece);
    for (uint64_t start = 0; start < elements; start += kPiece * kPieces) {
      const uint64_t here = std::min(elements - start, kPiece * kPieces);
      stored_.resize(*quant::bytes_for(type, here));
      pool_.parallel_for(ceil_div(static_cast<int64_t>(here), kPiece), 1,
                         [&](int64_t begin, int64_t end, int worker) {
                           std::vector<float>& values = buffers_[static_cast<size_t>(worker)];
                           values.resize(kPiece);
                           for (int64_t p = begin; p < end; ++p) {
                             const uint64_t offset = static_cast<uint64_t>(p) * kPiece;
                             const uint64_t count = std::min(here - offset, kPiece);
                             make(start + offset, count, values.data());
                             quant::quantize(type, values.data(), static_cast<int64_t>(count),
                                             stored_.data() + static_cast<uint64_t>(p) * piece_bytes);
                           }
                         });
      sink(stored_);
    }
  }

  uint64_t seed_;
  ThreadPool pool_;
  std::vector<std::vector<float>> buffers_;  ///< one a worker
  std::vector<std::byte> stored_;
};

}  // namespace greta::synth
