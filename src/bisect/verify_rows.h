#pragma once
// Between verify.cpp and the files that hold its rows.
#include <string>
#include <vector>

#include "bisect/verify.h"

namespace greta {

/// A row ran otherwise than it was meant to: its verdict is `error`.
struct NotAsMeant {
  std::string why;
};

/// What a row works with.
struct Audit {
  const ModelFile& model;
  const VerifyOptions& options;
  HParams hp;
  VerifyRow& row;

  /// The mode under test with room for what a row needs; logits of every row.
  EngineOptions engine(int64_t room, int64_t sequences = 1) const;
  /// `wanted` positions, or as many as the model has.
  size_t length(size_t wanted) const;
  std::vector<TokenId> prompt(size_t tokens) const;
  FedTokens fed() const;
  void note(std::string name, const HashedRun& run) const;
};

/// No matmul kernel ran on both sides: they really took different ways. Throws NotAsMeant.
void require_other_kernels(const HashedRun& a, const HashedRun& b);
/// Verdict, counts and first place of a row from its comparison; `what` was held against what.
void conclude(VerifyRow& row, const BitComparison& comparison, const std::string& what);

void verify_phase(Audit& audit);
void verify_chunk(Audit& audit);
void verify_batch(Audit& audit);
void verify_threads(Audit& audit);
void verify_repeats(Audit& audit);
void verify_isa(Audit& audit);
void verify_taps(Audit& audit);
void verify_context(Audit& audit);
void verify_weights(Audit& audit);

}  // namespace greta
