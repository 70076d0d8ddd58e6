#include "backend/gpu/pass_data.h"

#include <algorithm>
#include <bit>
#include <set>

#include "base/checked.h"

namespace greta::gpu {
namespace {

constexpr size_t kTileWords = sizeof(AttentionTile) / sizeof(int32_t);

/// Consecutive rows of one sequence at consecutive positions, cut at most_rows.
std::vector<AttentionTile> tiles_of(const BatchView& batch, int64_t most_rows) {
  std::vector<AttentionTile> tiles;
  for (int64_t r = 0; r < batch.rows; ++r) {
    const int32_t sequence = batch.sequences[r], position = batch.positions[r];
    if (!tiles.empty()) {
      AttentionTile& last = tiles.back();
      if (last.sequence == sequence && last.first_position + last.count == position &&
          last.count < most_rows) {
        ++last.count;
        continue;
      }
    }
    tiles.push_back({static_cast<int32_t>(r), 1, sequence, position});
  }
  return tiles;
}

}  // namespace

uint64_t PassData::bytes(int64_t rows, int64_t sequences, int64_t page_stride) {
  // Two page tables: of layers with a window and of those without.
  const int64_t words = rows * (4 + static_cast<int64_t>(kTileWords)) + 2 * sequences * page_stride + 64;
  return static_cast<uint64_t>(words) * sizeof(int32_t);
}

bool PassData::put(const BatchView& batch, std::span<const int32_t> picked, std::span<const KvLayer> layers,
                   int64_t tile_rows) {
  batch_ = nullptr;
  words_.clear();
  // Every piece begins on 16 bytes.
  const auto append = [&](const int32_t* from, int64_t count) {
    words_.resize((words_.size() + 3) / 4 * 4);
    const size_t at = words_.size();
    words_.insert(words_.end(), from, from + count);
    return at;
  };
  const size_t tokens = append(batch.tokens, batch.rows);
  const size_t positions = append(batch.positions, batch.rows);
  const size_t sequences = append(batch.sequences, batch.rows);
  const std::vector<AttentionTile> tiles = tiles_of(batch, tile_rows);
  const size_t tiles_at =
      append(reinterpret_cast<const int32_t*>(tiles.data()), static_cast<int64_t>(tiles.size() * kTileWords));
  const size_t picked_at = append(picked.data(), static_cast<int64_t>(picked.size()));
  std::map<const int32_t*, size_t> tables;
  for (const KvLayer& layer : layers)
    if (!tables.contains(layer.pages))
      tables[layer.pages] = append(layer.pages, batch.sequence_count * layer.page_stride);

  const size_t needed = words_.size() * sizeof(int32_t);
  const bool moves = needed > memory_.bytes();
  if (moves) memory_ = DeviceMemory(device_, std::bit_ceil(needed));
  device_.upload(memory_.data(), words_.data(), needed);
  const auto at = [&](size_t word) { return memory_.data<int32_t>() + word; };
  on_device_ = {batch.rows, at(tokens), at(positions), at(sequences)};
  tiles_ = reinterpret_cast<const AttentionTile*>(at(tiles_at));
  tile_count_ = static_cast<int64_t>(tiles.size());
  tile_rows_ = tile_rows;
  alone_ = std::set<int32_t>(batch.sequences, batch.sequences + batch.rows).size() ==
           static_cast<size_t>(batch.rows);
  picked_host_ = picked;
  picked_ = at(picked_at);
  tables_.clear();
  for (const auto& [host, word] : tables) tables_[host] = at(word);
  int64_t last = 0;
  for (int64_t r = 0; r < batch.rows; ++r) last = std::max<int64_t>(last, batch.positions[r]);
  splits_ = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(last / kKvPage + 1)));
  batch_ = &batch;
  return moves;
}

}  // namespace greta::gpu
