#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "raw_file.h"
#include "temporary_folder.h"

namespace greta::gguf {
namespace {

namespace fs = std::filesystem;

std::string golden(const char* name) {
  return fmt::format("{}/tests/golden/gguf/{}", GRETA_SOURCE_DIR, name);
}

std::string error_of(const std::vector<std::byte>& bytes) {
  try {
    File::from_bytes(bytes, "model");
  } catch (const Error& error) {
    std::string text = error.what();
    for (const std::string& line : error.details()) text += "\n" + line;
    return text;
  }
  return "no error";
}

std::string open_error(const std::string& path) {
  try {
    File::open(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_all(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' is not in: " << text;
}

std::string at(const RawFile& file, std::string_view field) {
  return fmt::format("at offset {}", file.offset_of(field));
}

template <class T>
T get(const File& file, std::string_view key, ValueType type) {
  const Value* value = file.find(key);
  if (value == nullptr) fail("no key {}", key);
  EXPECT_EQ(value->type, type) << key;
  return std::get<T>(value->data);
}

void expect_all_metadata(const File& file) {
  EXPECT_EQ(file.metadata().size(), 18u);
  EXPECT_EQ(file.metadata()[0].first, "general.architecture");
  EXPECT_EQ(get<uint64_t>(file, "test.u8", ValueType::U8), 200u);
  EXPECT_EQ(get<int64_t>(file, "test.i8", ValueType::I8), -100);
  EXPECT_EQ(get<uint64_t>(file, "test.u16", ValueType::U16), 60000u);
  EXPECT_EQ(get<int64_t>(file, "test.i16", ValueType::I16), -30000);
  EXPECT_EQ(get<uint64_t>(file, "test.u32", ValueType::U32), 4000000000u);
  EXPECT_EQ(get<int64_t>(file, "test.i32", ValueType::I32), -2000000000);
  EXPECT_EQ(get<double>(file, "test.f32", ValueType::F32), double{0.1F});
  EXPECT_EQ(get<uint64_t>(file, "test.u64", ValueType::U64), (uint64_t{1} << 63) + 5);
  EXPECT_EQ(get<int64_t>(file, "test.i64", ValueType::I64), -(int64_t{1} << 62) - 3);
  EXPECT_EQ(get<double>(file, "test.f64", ValueType::F64), 0.1);
  EXPECT_EQ(get<bool>(file, "test.yes", ValueType::Bool), true);
  EXPECT_EQ(get<bool>(file, "test.no", ValueType::Bool), false);
  EXPECT_EQ(get<std::string_view>(file, "test.string", ValueType::String), "na\xc3\xafve \xe2\x96\x81 text");
  const auto strings = get<Array>(file, "test.strings", ValueType::Array);
  EXPECT_EQ(strings.element, ValueType::String);
  EXPECT_EQ(strings.strings, (std::vector<std::string_view>{"<unk>", "", "\xe2\x96\x81the"}));
  const auto floats = get<Array>(file, "test.f32s", ValueType::Array);
  ASSERT_EQ(floats.count, 3u);
  EXPECT_EQ(array_number(floats, 1), -1.25);
  EXPECT_EQ(array_number(floats, 2), double{1e30F});
  EXPECT_THROW(array_integer(floats, 0), Error);
  const auto integers = get<Array>(file, "test.i32s", ValueType::Array);
  EXPECT_EQ(array_integer(integers, 1), -2);
  EXPECT_EQ(array_number(integers, 2), 3.0);
  const auto nested = get<Array>(file, "test.nested", ValueType::Array);
  ASSERT_EQ(nested.arrays.size(), 3u);
  EXPECT_EQ(nested.arrays[2].count, 3u);
  EXPECT_EQ(array_integer(nested.arrays[2], 0), 4);
  EXPECT_EQ(array_integer(nested.arrays[1], 0), 3);
  EXPECT_EQ(file.find("test.none"), nullptr);
}

TEST(Values, ElementsAsText) {
  const uint64_t wide[] = {~uint64_t{0}, uint64_t{1} << 63};
  const bool flags[] = {true, false};
  const int8_t small[] = {-100};
  const float singles[] = {0.1F};
  const double doubles[] = {0.1};
  const auto text = [](ValueType type, const auto& values, uint64_t i) {
    return element_text({type, std::size(values), std::as_bytes(std::span(values)), {}, {}}, i);
  };
  EXPECT_EQ(text(ValueType::U64, wide, 0), "18446744073709551615");
  EXPECT_EQ(text(ValueType::U64, wide, 1), "9223372036854775808");
  EXPECT_EQ(text(ValueType::Bool, flags, 0), "true");
  EXPECT_EQ(text(ValueType::Bool, flags, 1), "false");
  EXPECT_EQ(text(ValueType::I8, small, 0), "-100");
  EXPECT_EQ(text(ValueType::F32, singles, 0), "0.1");
  EXPECT_EQ(text(ValueType::F64, doubles, 0), "0.1");
  EXPECT_THROW(element_text({ValueType::String, 1, {}, {"x"}, {}}, 0), Error);
}

void expect_all_tensors(const File& file) {
  ASSERT_EQ(file.tensors().size(), 5u);
  const Tensor* plain = file.find_tensor("plain.f32");
  ASSERT_NE(plain, nullptr);
  EXPECT_EQ(plain->shape, (std::vector<uint64_t>{4, 3, 2}));  // the fastest first
  EXPECT_EQ(plain->shape_text(), "[4, 3, 2]");
  EXPECT_EQ(plain->elements(), 24u);
  float last = 0;
  std::memcpy(&last, plain->bytes.data() + 92, 4);
  EXPECT_EQ(last, 23.0F);
  const Tensor* k = file.find_tensor("raw.q4_k");
  ASSERT_NE(k, nullptr);
  EXPECT_EQ(k->type, quant::Type::Q4_K);
  EXPECT_EQ(k->shape, (std::vector<uint64_t>{256, 3}));
  ASSERT_EQ(k->bytes.size(), 3u * 144);
  for (size_t i = 0; i < k->bytes.size(); ++i) ASSERT_EQ(std::to_integer<size_t>(k->bytes[i]), i * 7 % 251);
  EXPECT_EQ(file.find_tensor("none"), nullptr);
}

TEST(Reader, FileOfThePythonPackage) {
  const File file = File::open(golden("all_types.gguf"));
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.alignment(), 32u);
  expect_all_metadata(file);
  expect_all_tensors(file);
  EXPECT_EQ(file.file_bytes(), fs::file_size(golden("all_types.gguf")));
  EXPECT_EQ(file.sha256(), sha256_hex(MappedFile(golden("all_types.gguf")).bytes()));
  for (const Tensor& t : file.tensors()) file.drop(t, t.bytes);
  expect_all_tensors(file);  // dropped pages come back
  for (const Tensor& t : file.tensors()) {
    std::vector<std::byte> read(t.bytes.size());
    file.read(t, t.bytes, read.data());
    EXPECT_TRUE(std::ranges::equal(read, t.bytes)) << t.name;
  }
}

TEST(Reader, OtherAlignments) {
  const File file = File::open(golden("aligned_256.gguf"));
  EXPECT_EQ(file.alignment(), 256u);
  expect_all_tensors(file);
  for (const Tensor& t : file.tensors()) EXPECT_EQ(t.offset % 256, 0u);
  RawFile odd;  // 24: not a power of two, and permitted
  odd.header(3, 2, 1).key("general.alignment", 4).number32("alignment", 24);
  odd.tensor("a", {3}, 0, 0).tensor("b", {6}, 0, 24).pad(24).fill(48);
  const File by_24 = File::from_bytes(odd.data(), "model");
  EXPECT_EQ(by_24.alignment(), 24u);
  EXPECT_EQ(by_24.tensors()[1].offset, by_24.tensors()[0].offset + 24);
  EXPECT_EQ(by_24.tensors()[1].bytes.size(), 24u);
}

TEST(Reader, VocabularyAlone) {
  const File file = File::open(golden("vocab.gguf"));
  EXPECT_TRUE(file.tensors().empty());
  expect_all_metadata(file);
  RawFile empty;
  empty.header(3, 0, 0);
  EXPECT_TRUE(File::from_bytes(empty.data(), "model").metadata().empty());
}

TEST(Reader, Version2IsVersion3WithAnotherNumber) {
  const RawFile raw = small_file(2);
  const File file = File::from_bytes(raw.data(), "model");
  EXPECT_EQ(file.version(), 2u);
  EXPECT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(get<int64_t>(file, "a.i64", ValueType::I64), -5);
  const auto nested = get<Array>(file, "a.nested", ValueType::Array);
  EXPECT_EQ(nested.arrays.at(1).strings.at(0), "x");
}

TEST(Reader, SplitFilesByAnyPart) {
  for (int part = 1; part <= 3; ++part) {
    const File file = File::open(golden(fmt::format("split-{:05}-of-00003.gguf", part).c_str()));
    ASSERT_EQ(file.tensors().size(), 7u);
    ASSERT_EQ(file.part_paths().size(), 3u);
    EXPECT_EQ(file.path(), file.part_paths()[0]);
    EXPECT_EQ(get<std::string_view>(file, "test.string", ValueType::String), "of the first part");
    for (int i = 0; i < 7; ++i) {
      const Tensor* t = file.find_tensor(fmt::format("tensor.{}", i));
      ASSERT_NE(t, nullptr) << i;
      EXPECT_EQ(t->part, i / 3);
      float value = -1;
      std::memcpy(&value, t->bytes.data(), 4);
      EXPECT_EQ(value, static_cast<float>(i));
    }
    std::string all;
    for (int i = 1; i <= 3; ++i)
      all += read_whole_file(golden(fmt::format("split-{:05}-of-00003.gguf", i).c_str()));
    EXPECT_EQ(file.sha256(), sha256_hex(std::as_bytes(std::span(all))));
    EXPECT_EQ(file.file_bytes(), all.size());
  }
}

TEST(Reader, SplitFilesBehindLinks) {
  const test::TemporaryFolder folder;
  for (int i = 1; i <= 3; ++i) {  // as a download cache keeps them: names that are links to nameless files
    fs::copy_file(golden(fmt::format("split-{:05}-of-00003.gguf", i).c_str()),
                  folder / fmt::format("blob{}", i));
    fs::create_symlink(fmt::format("blob{}", i), folder / fmt::format("m-{:05}-of-00003.gguf", i));
  }
  EXPECT_EQ(File::open(folder / "m-00002-of-00003.gguf").tensors().size(), 7u);
  fs::create_symlink(golden("split-00001-of-00003.gguf"), folder / "plain.gguf");
  EXPECT_EQ(File::open(folder / "plain.gguf").tensors().size(), 7u);
}

TEST(Reader, SplitFilesThatDoNotFit) {
  const test::TemporaryFolder folder;
  const auto part = [&](int i) { return folder / fmt::format("m-{:05}-of-00003.gguf", i); };
  const auto source = [&](int i) { return golden(fmt::format("split-{:05}-of-00003.gguf", i).c_str()); };
  fs::copy_file(source(1), part(1));
  fs::copy_file(source(3), part(3));
  expect_all(open_error(part(1)), {"part 2 of 3", "missing", "m-00002-of-00003.gguf", "No such file"});
  fs::copy_file(source(3), part(2));  // another part under this name
  expect_all(open_error(part(1)), {"m-00002-of-00003.gguf", "'split.no'", "expected 1", "got 2"});
  fs::remove(part(2));
  fs::copy_file(golden("all_types.gguf"), part(2));  // another model
  expect_all(open_error(part(1)), {"m-00002-of-00003.gguf", "'split.count'", "no such key"});
  fs::copy_file(source(1), folder / "renamed.gguf");
  expect_all(open_error(folder / "renamed.gguf"), {"'split.count'", "3 parts", "-00001-of-00003.gguf"});
  fs::copy_file(source(1), folder / "m-00001-of-00002.gguf");
  expect_all(open_error(folder / "m-00001-of-00002.gguf"), {"'split.count'", "expected 2", "got 3"});
  const std::string text = read_whole_file(source(1));
  try {
    File::from_bytes(std::as_bytes(std::span(text)), "memory");
    ADD_FAILURE();
  } catch (const Error& error) {
    expect_all(error.what(), {"memory", "'split.count'", "got 3"});
  }
}

TEST(Reader, NotAGguf) {
  const auto text = [](std::string_view s) {
    return std::vector<std::byte>(reinterpret_cast<const std::byte*>(s.data()),
                                  reinterpret_cast<const std::byte*>(s.data()) + s.size());
  };
  expect_all(error_of({}), {"magic at offset 0", "expected 4 bytes", "got 0"});
  expect_all(error_of(text("PK\x03\x04 and so on")), {"magic at offset 0", "'GGUF'", "zip"});
  expect_all(error_of(text("version https://git-lfs")), {"magic", "Git LFS"});
  expect_all(error_of(text("lmgg....")), {"magic", "before GGUF"});
  const RawFile raw = small_file();
  expect_all(error_of(raw.with("version", 1)),
             {"version at offset 4", "expected 2 or 3", "got 1", "no longer supported"});
  expect_all(error_of(raw.with("version", 4)), {"version at offset 4", "expected 2 or 3", "got 4"});
  expect_all(error_of(raw.with("version", 0)), {"version at offset 4", "expected 2 or 3", "got 0"});
  expect_all(error_of(raw.with("version", 0x03000000)),
             {"version at offset 4", "little-endian", "3 in big-endian"});
}

TEST(Reader, PathsThatCannotBeRead) {
  const test::TemporaryFolder folder;
  expect_all(open_error(folder / "none.gguf"), {folder / "none.gguf", "No such file"});
  expect_all(open_error(folder.path().string()), {"directory"});
  fs::create_symlink("nowhere.gguf", folder / "link.gguf");
  expect_all(open_error(folder / "link.gguf"), {"link.gguf -> nowhere.gguf", "No such file"});
}

TEST(Reader, EachFieldIsNamedWithItsOffset) {
  const RawFile raw = small_file();
  constexpr uint64_t kHuge = ~uint64_t{0};
  const struct {
    const char* field;
    uint64_t value;
    std::vector<std::string> parts;
  } cases[] = {
      {"tensor_count", kHuge, {"tensor_count", "expected at most", "got 18446744073709551615"}},
      {"tensor_count", 100, {"tensor_count", "got 100"}},
      {"metadata_kv_count", kHuge / 13, {"metadata_kv_count", "expected at most"}},
      {"key length", kHuge, {"metadata 0: length of the key", "got 18446744073709551615"}},
      {"general.architecture type",
       13,
       {"metadata 'general.architecture': type", "expected 0 to 12", "got 13"}},
      {"arch value length", kHuge - 3, {"metadata 'general.architecture': length of the string"}},
      {"bool value", 2, {"metadata 'a.bool': value", "0 or 1", "got 2"}},
      {"bools", 0x010201, {"metadata 'a.bools': element of the array", "0 or 1", "got 2"}},
      {"strings count", kHuge / 8, {"metadata 'a.strings': array's count", "expected at most"}},
      {"strings element", 99, {"metadata 'a.strings': type of the array's elements", "got 99"}},
      {"string 1 length",
       1u << 30,
       {"metadata 'a.strings': length of a string of the array", "got 1073741824"}},
      {"inner 0 count", kHuge / 4 + 2, {"metadata 'a.nested': array's count"}},
      {"alignment", 0, {"metadata 'general.alignment': value", "multiple of 8", "got 0"}},
      {"alignment", 12, {"metadata 'general.alignment': value", "multiple of 8", "got 12"}},
      {"tensor name length", kHuge, {"tensor 0: length of the name"}},
      {"first n_dims", 0, {"tensor 'first': number of dimensions", "expected 1 to 4", "got 0"}},
      {"first n_dims", 5, {"tensor 'first': number of dimensions", "expected 1 to 4", "got 5"}},
      {"first dim", 0, {"tensor 'first': dimension", "expected 1 or more", "got 0"}},
      {"first dim", kHuge, {"tensor 'first': shape", "overflows"}},
      {"first dim", uint64_t{1} << 62, {"tensor 'first'", "overflows"}},
      {"second dim", 33, {"tensor 'second': row length", "multiple of 32", "Q8_0", "got 33"}},
      {"second offset", 65, {"tensor 'second': offset", "multiple of the alignment 32", "got 65"}},
      {"second offset", 32, {"tensor 'second': data", "overlap of 32 bytes", "'first'"}},
      {"third offset", 256, {"tensor 'third': data", "up to offset", "a file of"}},
      {"third offset", kHuge - 31, {"tensor 'third': offset", "below 2^64"}},
  };
  for (const auto& c : cases) {
    const std::string text = error_of(raw.with(c.field, c.value));
    expect_all(text, c.parts);
    if (std::string(c.parts[0]).find(": data") == std::string::npos && std::string(c.field) != "bools" &&
        std::string(c.parts.back()) != "overflows")
      expect_all(text, {at(raw, c.field)});
  }
  expect_all(error_of(raw.with("second type", 16)),
             {"1 of 3 tensors", "supported are F32", "tensor 'second': type " + at(raw, "second type"),
              "IQ2_XXS (number 16)"});
  expect_all(error_of(raw.with("second type", 4711)), {"type 4711"});
  expect_all(error_of(raw.with("general.alignment type", 5)),
             {"metadata 'general.alignment'", "expected a u32", "i32"});
}

TEST(Reader, NamesOccurOnce) {
  RawFile keys;
  keys.header(3, 0, 2).key("same", 0).bytes("v", "\x01", 1).key("same", 0).bytes("v", "\x02", 1);
  expect_all(error_of(keys.data()), {"metadata 'same': key at offset 41", "second occurrence"});
  RawFile tensors;
  tensors.header(3, 2, 0).tensor("same", {8}, 0, 0).tensor("same", {8}, 0, 32).pad(32).fill(64);
  expect_all(error_of(tensors.data()), {"tensor 'same': name at offset 60", "second occurrence"});
}

TEST(Reader, TensorsMayStandInAnyOrderWithGaps) {
  RawFile f;
  f.header(3, 2, 0).tensor("late", {8}, 0, 128).tensor("early", {8}, 0, 0).pad(32).fill(160);
  const File file = File::from_bytes(f.data(), "model");
  EXPECT_EQ(file.tensors()[0].offset, file.tensors()[1].offset + 128);
}

TEST(Reader, NestingIsBounded) {
  const auto nested = [](int depth) {
    RawFile f;
    f.header(3, 0, 1).key("deep", 9);
    for (int i = 1; i < depth; ++i) f.number32("e", 9).number64("c", 1);
    f.number32("e", 0).number64("c", 1).bytes("v", "\x05", 1);
    return f.data();
  };
  const std::vector<std::byte> eight = nested(8);
  EXPECT_EQ(File::from_bytes(eight, "model").metadata().size(), 1u);
  expect_all(error_of(nested(9)), {"metadata 'deep': nesting of arrays", "at most 8"});
  expect_all(error_of(nested(100000)), {"metadata 'deep': nesting of arrays"});
}

TEST(Reader, NamesInMessagesArePrintable) {
  RawFile f;
  f.header(3, 0, 1).key("bad\n\x1b[31m\xff", 77);
  expect_all(error_of(f.data()), {"'bad\\x0a\\x1b[31m\\xff'", "got 77"});
}

TEST(Reader, TruncatedAtEveryByte) {
  const RawFile raw = small_file();
  const std::vector<std::byte>& whole = raw.data();
  EXPECT_EQ(error_of(whole), "no error");
  for (size_t n = 0; n < whole.size(); ++n) {
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(n));
    const std::string text = error_of(cut);
    ASSERT_NE(text, "no error") << n << " of " << whole.size() << " bytes";
    ASSERT_NE(text.find("at offset "), std::string::npos) << text;
    ASSERT_NE(text.find("expected"), std::string::npos) << text;
    ASSERT_NE(text.find("got"), std::string::npos) << text;
  }
}

TEST(Reader, ALargeVocabularyTakesMilliseconds) {
  constexpr uint64_t kTokens = 262144;
  RawFile f;
  f.header(3, 0, 3);
  std::vector<std::byte> block;
  for (uint64_t i = 0; i < kTokens; ++i) {
    const std::string token = fmt::format("token{}", i * 7919 % kTokens);
    const uint64_t length = token.size();
    const auto* l = reinterpret_cast<const std::byte*>(&length);
    const auto* t = reinterpret_cast<const std::byte*>(token.data());
    block.insert(block.end(), l, l + 8);
    block.insert(block.end(), t, t + token.size());
  }
  const std::vector<float> scores(kTokens, -1.0F);
  f.key("tokenizer.ggml.tokens", 9)
      .number32("e", 8)
      .number64("c", kTokens)
      .bytes("tokens", block.data(), block.size());
  f.key("tokenizer.ggml.scores", 9)
      .number32("e", 6)
      .number64("c", kTokens)
      .bytes("scores", scores.data(), kTokens * 4);
  f.key("tokenizer.ggml.token_type", 9)
      .number32("e", 5)
      .number64("c", kTokens)
      .bytes("types", scores.data(), kTokens * 4);
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const File file = File::from_bytes(f.data(), "model");
    best = std::min(
        best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    EXPECT_EQ(
        get<Array>(file, "tokenizer.ggml.tokens", ValueType::Array).strings.at(kTokens - 1).substr(0, 5),
        "token");
  }
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(best, 50.0) << "milliseconds";
#else
  EXPECT_LT(best, 1000.0) << "milliseconds";
#endif
}

}  // namespace
}  // namespace greta::gguf
