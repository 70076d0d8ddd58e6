#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/model.h"

namespace greta {

/// Keys and values of all layers for up to `sequences` sequences of up to `context` positions, in pages that
/// are handed out as sequences grow. A page number is the same in every layer.
class KvCache {
 public:
  KvCache(Backend& backend, const HParams& hp, int64_t sequences, int64_t context);

  KvLayer layer(size_t index) const { return layers_[index]; }
  int64_t sequences() const { return static_cast<int64_t>(lengths_.size()); }
  int64_t context() const { return context_; }
  int64_t length(int64_t sequence) const { return lengths_[static_cast<size_t>(sequence)]; }

  /// Makes room for positions [length, length + count) and counts them as present. Errors: past the context.
  void grow(int64_t sequence, int64_t count);
  /// Forgets a sequence; its pages are free.
  void clear(int64_t sequence);
  /// Forgets all positions from `length` on.
  void truncate(int64_t sequence, int64_t length);

  const int32_t* page_table() const { return pages_.data(); }
  int64_t page_stride() const { return page_stride_; }

 private:
  int64_t context_;
  int64_t page_stride_;
  std::vector<int64_t> lengths_;
  std::vector<int32_t> pages_;  ///< [sequences, page_stride]
  std::vector<int32_t> free_;   ///< the page to hand out next is at the back
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<KvLayer> layers_;
};

}  // namespace greta
