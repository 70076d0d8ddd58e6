// A SentencePiece model file (protobuf) -> VocabData. The fields are those of sentencepiece_model.proto.
#include <cstring>

#include "base/error.h"
#include "base/mapped_file.h"
#include "tokenizer/vocab.h"

namespace greta {
namespace {

/// One message's fields, in order. Every length is checked against the bytes there.
class Message {
 public:
  Message(std::string_view bytes, const std::string& source, size_t offset)
      : bytes_(bytes), source_(source), offset_(offset) {}

  /// Moves to the next field; false at the end.
  bool next() {
    if (at_ == bytes_.size()) return false;
    begin_ = at_;
    const uint64_t key = varint();
    if (key >> 3 == 0 || key >> 3 > 0x1FFFFFFF) damaged("a field number from 1", key >> 3);
    number_ = static_cast<uint32_t>(key >> 3);
    wire_ = static_cast<uint32_t>(key & 7);
    switch (wire_) {
      case 0:
        value_ = varint();
        break;
      case 1:
        payload_ = take(8);
        break;
      case 2:
        payload_ = take(varint());
        break;
      case 5:
        payload_ = take(4);
        break;
      default:
        damaged("a wire type of 0, 1, 2 or 5", wire_);
    }
    return true;
  }

  uint32_t number() const { return number_; }
  std::string_view text() const { return expect(2), payload_; }
  Message message() const { return expect(2), Message(payload_, source_, offset_ + at_ - payload_.size()); }
  bool flag() const { return expect(0), value_ != 0; }
  int64_t integer() const { return expect(0), static_cast<int64_t>(value_); }
  float real() const {
    expect(5);
    float value = 0;
    std::memcpy(&value, payload_.data(), 4);
    return value;
  }

 private:
  [[noreturn]] void damaged(std::string_view expected, uint64_t got) const {
    fail("{}: not a SentencePiece model, or damaged: at byte {} expected {}, got {}", source_,
         offset_ + begin_, expected, got);
  }
  void expect(uint32_t wire) const {
    if (wire_ != wire) damaged(fmt::format("wire type {} for field {}", wire, number_), wire_);
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    damaged("a number of at most 10 bytes", value);
  }
  std::string_view take(uint64_t size) {
    if (bytes_.size() - at_ < size) damaged(fmt::format("at most {} more bytes", bytes_.size() - at_), size);
    const std::string_view part = bytes_.substr(at_, size);
    at_ += size;
    return part;
  }

  std::string_view bytes_, payload_;
  const std::string& source_;
  size_t offset_;  ///< of bytes_ in the file
  size_t at_ = 0, begin_ = 0;
  uint32_t number_ = 0, wire_ = 0;
  uint64_t value_ = 0;
};

struct Settings {
  int64_t model_type = 1;  ///< unigram, as the format's own default says
  bool space_is_suffix = false;
  bool add_prefix = true, remove_extra_spaces = true, escape_spaces = true;
  std::string_view bos = "<s>", eos = "</s>";
};

void read_piece(Message piece, VocabData& data) {
  std::string_view text;
  float score = 0;
  int32_t type = 1;
  while (piece.next()) {
    if (piece.number() == 1) text = piece.text();
    if (piece.number() == 2) score = piece.real();
    if (piece.number() == 3) type = static_cast<int32_t>(piece.integer());
  }
  data.pieces.push_back(text);
  data.scores.push_back(score);
  data.types.push_back(type);
}

void read_trainer(Message spec, Settings& settings) {
  while (spec.next()) {
    if (spec.number() == 3) settings.model_type = spec.integer();
    if (spec.number() == 24) settings.space_is_suffix = spec.flag();
    if (spec.number() == 46) settings.bos = spec.text();
    if (spec.number() == 47) settings.eos = spec.text();
  }
}

void read_normalizer(Message spec, Settings& settings, const std::string& source, bool on_the_way_back) {
  while (spec.next()) {
    if (spec.number() == 2 && !spec.text().empty()) {
      fail(
          "{}: expected a model that leaves the text as it is (identity normalisation), got normalisation "
          "rules of {} "
          "bytes (precompiled_charsmap{}), which are not supported",
          source, spec.text().size(), on_the_way_back ? " of the denormalizer" : "");
    }
    if (on_the_way_back) continue;
    if (spec.number() == 3) settings.add_prefix = spec.flag();
    if (spec.number() == 4) settings.remove_extra_spaces = spec.flag();
    if (spec.number() == 5) settings.escape_spaces = spec.flag();
  }
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::from_sentencepiece(const std::string& path) {
  const MappedFile file(path);
  VocabData data;
  data.source = file.real_path();
  data.model = "llama";
  Settings settings;
  Message model({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, data.source, 0);
  while (model.next()) {
    if (model.number() == 1) read_piece(model.message(), data);
    if (model.number() == 2) read_trainer(model.message(), settings);
    if (model.number() == 3) read_normalizer(model.message(), settings, data.source, false);
    if (model.number() == 5) read_normalizer(model.message(), settings, data.source, true);
  }
  if (data.pieces.empty()) fail("{}: not a SentencePiece model: expected pieces, got none", data.source);
  if (settings.model_type != 2) {
    constexpr std::string_view kNames[] = {"unigram", "bpe", "word", "char"};
    const bool known = settings.model_type >= 1 && settings.model_type <= 4;
    fail("{}: model_type: expected 2 (bpe), got {} ({}), which is not supported", data.source,
         settings.model_type, known ? kNames[settings.model_type - 1] : "unknown");
  }
  if (settings.space_is_suffix || !settings.escape_spaces) {
    fail("{}: expected spaces spelled U+2581 in front of words, got {}, which is not supported", data.source,
         settings.space_is_suffix ? "treat_whitespace_as_suffix" : "escape_whitespaces = false");
  }
  data.add_space_prefix = settings.add_prefix;
  data.remove_extra_whitespaces = settings.remove_extra_spaces;
  for (size_t i = 0; i < data.pieces.size(); ++i) {
    if (data.types[i] == 2 && !data.unknown) data.unknown = static_cast<int64_t>(i);
    if (data.types[i] != 3) continue;
    if (data.pieces[i] == settings.bos) data.bos = static_cast<int64_t>(i);
    if (data.pieces[i] == settings.eos) data.eos = static_cast<int64_t>(i);
  }
  return make_tokenizer(data);
}

}  // namespace greta
