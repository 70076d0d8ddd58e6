#pragma once
// Faults planted in a copy of a model file: what a converter or a damaged download leaves. The copy is a
// single file, whole or absent; the original is only read.
#include <cstdint>
#include <string>

#include "bisect/faults.h"

namespace greta {

// Each writes `out` and returns one sentence: what was changed, with tensor, row and block (or key). Errors
// (greta::Error): no such tensor or key (what there is), a row or block past the end, a change that would
// change nothing, unlike shapes or types, a value that the key's type cannot hold, an unreadable or
// unwritable path, `out` being `in`.

/// Rows (of ne[0] elements) i and j exchanged.
std::string swap_rows_in_file(const std::string& in, const std::string& out, const std::string& tensor,
                              int64_t i, int64_t j);
/// The bytes of two tensors of one shape and type exchanged.
std::string swap_tensors_in_file(const std::string& in, const std::string& out, const std::string& a,
                                 const std::string& b);
/// One block: its scale doubled; in F32, F16 and BF16 one element, its sign and (for a zero) value.
std::string change_block_in_file(const std::string& in, const std::string& out, const std::string& tensor,
                                 int64_t block);
/// A number, truth value or string of the metadata, its type kept.
std::string set_metadata_in_file(const std::string& in, const std::string& out, const std::string& key,
                                 const std::string& value);

/// A file fault of the catalogue, its place the plant's and the rest drawn from its seed.
std::string plant_in_file(const Plant& plant, const HParams& hp, const std::string& in,
                          const std::string& out);

}  // namespace greta
