#pragma once
// Typed reads of one architecture's metadata keys. A read never throws: what is wrong becomes a Problem and
// the next key is read, so that a report holds everything.
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"
#include "model/plan.h"
#include "model/ranges.h"

namespace greta {

/// What a key gave: a value, nothing because the file has no such key, or nothing because it is broken
/// (reported).
template <class T>
struct Field {
  std::optional<T> value;
  bool absent = false;

  /// The value; `otherwise` where the key is absent; nothing where it is broken.
  std::optional<T> or_else(std::optional<T> otherwise) const { return absent ? otherwise : value; }
};

class MetadataReader {
 public:
  /// Keys are `prefix` + the name given to a read.
  MetadataReader(const gguf::File& file, std::string prefix, std::vector<Problem>& problems);

  /// Any integer type of the format. With `layers`, an array with one number a layer too, if all are equal.
  Field<int64_t> integer(std::string_view name, IntRange range, bool required,
                         std::optional<int64_t> layers = {});
  /// F32, as the format's specification has every real hyperparameter.
  Field<double> real(std::string_view name, RealRange range, bool required);
  Field<std::string> string(std::string_view name, bool required);
  Field<bool> flag(std::string_view name);
  /// One bool a layer: an array of them, or a period as in every_but_nth().
  Field<std::vector<bool>> pattern(std::string_view name, int64_t layers);

  /// A key that this engine does not compute with: absent, or a number or bool equal to `neutral`.
  void neutral(std::string_view name, double neutral, std::string_view meaning);
  /// A key that changes nothing.
  void ignore(std::string_view name);

  /// Keys under the prefix that nothing asked for, without the prefix.
  std::vector<std::string> unread() const;
  std::string key(std::string_view name) const { return prefix_ + std::string(name); }
  void report(std::string_view name, std::string expected, std::string got, std::string remedy = {});
  /// "u32 7" or "no such key".
  std::string shown(std::string_view name) const;

 private:
  const gguf::Value* take(std::string_view name);
  std::optional<int64_t> same_in_all_layers(std::string_view name, const gguf::Array& array,
                                            const std::string& expected, std::optional<int64_t> layers);

  const gguf::File& file_;
  std::string prefix_;
  std::vector<Problem>& problems_;
  std::set<std::string, std::less<>> read_;
};

/// True but for each layer l with (l + 1) % period == 0; all true where period is 0.
std::vector<bool> every_but_nth(int64_t layers, int64_t period);
/// A value with its type, short and printable: `u32 7`, `string "abc"`, `array of 3 i32`.
std::string show(const gguf::Value& value);
/// Text from a file in quotes, fit for a terminal (base/text.h), cut after 60 bytes.
std::string quoted(std::string_view text);

}  // namespace greta
