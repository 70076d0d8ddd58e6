#pragma once
// What a call's kernels read of its batch: put on the device together, at places that follow from the sizes
// alone, so that a recorded pass finds the next one's where it found its own.
#include <map>
#include <vector>

#include "backend/backend.h"
#include "backend/gpu/gpu_weights.h"
#include "backend/gpu/kernels.h"

namespace greta::gpu {

class PassData {
 public:
  explicit PassData(Device& device) : device_(device) {}
  /// `picked`: rows that gather will be asked for; `layers`: whose page tables are needed; at most
  /// `tile_rows` rows in a tile of attention. True: the device's memory of it has moved.
  bool put(const BatchView& batch, std::span<const int32_t> picked, std::span<const KvLayer> layers,
           int64_t tile_rows);
  /// At most, for so many rows.
  static uint64_t bytes(int64_t rows, int64_t sequences, int64_t page_stride);

  /// Whether it is this batch's, and has this page table (null: none needed).
  bool has(const BatchView& batch, const int32_t* pages) const {
    return batch_ == &batch && (pages == nullptr || tables_.contains(pages));
  }
  DeviceBatch batch() const { return on_device_; }
  const int32_t* pages(const int32_t* host) const { return host == nullptr ? nullptr : tables_.at(host); }
  /// The picked rows, if these are they; else null.
  const int32_t* rows(std::span<const int32_t> picked) const {
    return picked.data() == picked_host_.data() && picked.size() == picked_host_.size() ? picked_ : nullptr;
  }
  const AttentionTile* tiles() const { return tiles_; }
  int64_t tile_count() const { return tile_count_; }
  int64_t tile_rows() const { return tile_rows_; }
  /// Whether every row is of a sequence of its own.
  bool alone() const { return alone_; }
  /// Of the longest row, rounded up to a power of two: few lengths make a recording of their own.
  int64_t splits() const { return splits_; }

 private:
  Device& device_;
  DeviceMemory memory_;
  std::vector<int32_t> words_;  ///< as it goes to the device
  const BatchView* batch_ = nullptr;
  DeviceBatch on_device_;
  std::span<const int32_t> picked_host_;
  const int32_t* picked_ = nullptr;
  std::map<const int32_t*, const int32_t*> tables_;  ///< host to device
  const AttentionTile* tiles_ = nullptr;
  int64_t tile_count_ = 0;
  int64_t tile_rows_ = 1;
  bool alone_ = false;
  int64_t splits_ = 1;
};

}  // namespace greta::gpu
