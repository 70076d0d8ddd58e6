#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/stages.h"

namespace greta {

/// A stage's rows, there to be read while the tap is called and not after.
struct StageRows {
  const Backend* backend = nullptr;
  const BatchView* batch = nullptr;
  const int32_t* batch_rows = nullptr;  ///< stage row i is batch row batch_rows[i]; null: row i
  int64_t rows = 0;
  int64_t width = 0;
  View view;  ///< null data: the rows are the cache's own
  const KvLayer* cache = nullptr;
  KvPart part = KvPart::k;

  int64_t batch_row(int64_t i) const { return batch_rows == nullptr ? i : batch_rows[i]; }
  /// Row i, exactly as stored: [width].
  void read(int64_t i, double* out) const {
    if (cache != nullptr) return backend->read_kv(*cache, part, *batch, batch_row(i), out);
    backend->read(view, i, 1, out);
  }
};

/// Sees every stage as it is left. A tap reads; it cannot change a bit of the run.
class Tap {
 public:
  virtual ~Tap() = default;
  virtual void on_stage(int layer, Stage stage, const StageRows& rows) = 0;
};

}  // namespace greta
