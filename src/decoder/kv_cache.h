#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace greta {

/// Keys and values of all layers for up to `sequences` sequences of up to `context` positions, in pages that
/// are handed out as sequences grow. Layers with the same window share their page numbers; those with a
/// window keep what the rows of a next call of up to `chunk` tokens can see, and give back the rest.
class KvCache {
 public:
  KvCache(Backend& backend, const HParams& hp, int64_t sequences, int64_t context, int64_t chunk);
  /// Pages of a sequence in a layer with this window (0: none): window - 1 + chunk rows, wherever they begin.
  static int64_t pages_of(int64_t window, int64_t context, int64_t chunk);

  KvLayer layer(size_t index) const { return layers_[index]; }
  int64_t sequences() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t context() const { return context_; }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }

  /// Makes room for positions [length, length + count), count at most chunk, and counts them as present.
  /// Errors: past the context.
  void grow(int64_t sequence, int64_t count);
  /// Forgets a sequence; its pages are free.
  void clear(int64_t sequence);
  /// Forgets all positions from `length` on, and returns how many are left: `length`, or 0 where a window has
  /// given back what a row at `length` would see (then all are forgotten, and must be fed again).
  int64_t truncate(int64_t sequence, int64_t length);

 private:
  /// The pages of all layers with one window.
  struct Pool {
    int64_t window = 0;
    int64_t count = 0;            ///< pages
    std::vector<int32_t> table;   ///< [sequences, page_stride_]
    std::vector<int32_t> free;    ///< the page to hand out next is at the back
    std::vector<int64_t> oldest;  ///< [sequences]: pages before it were given back
  };
  void release(Pool& pool, int64_t sequence, int64_t first, int64_t last);
  /// The first page that a row at `position` sees.
  static int64_t first_page(const Pool& pool, int64_t position);

  int64_t context_;
  int64_t page_stride_;
  std::vector<int64_t> lengths_;
  std::vector<std::unique_ptr<Pool>> pools_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<KvLayer> layers_;
};

}  // namespace greta
