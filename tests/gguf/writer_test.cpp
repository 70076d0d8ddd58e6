#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "base/error.h"
#include "base/partial_file.h"
#include "gguf/gguf.h"
#include "temporary_folder.h"

namespace greta::gguf {
namespace {

class WriterTest : public testing::Test {
 protected:
  template <class Action>
  std::string error_of(const Action& action) {
    try {
      action();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }

  const test::TemporaryFolder folder_;
  const std::string path_ = folder_ / "model.gguf";
};

std::string golden(const char* name) {
  return fmt::format("{}/tests/golden/gguf/{}", GRETA_SOURCE_DIR, name);
}

Writer::Fill copy_of(std::span<const std::byte> bytes, size_t piece) {
  return [bytes, piece](const Writer::Sink& sink) {
    for (size_t i = 0; i < bytes.size(); i += piece)
      sink(bytes.subspan(i, std::min(piece, bytes.size() - i)));
  };
}

TEST_F(WriterTest, WhatThePythonPackageWrites) {
  // Read its file, write every value and tensor again: the same bytes.
  for (const char* name : {"all_types.gguf", "vocab.gguf"}) {
    const File file = File::open(golden(name));
    Writer writer;
    for (const auto& [key, value] : file.metadata()) writer.add_value(key, value);
    for (const Tensor& t : file.tensors()) writer.add_tensor(t.name, t.shape, t.type, copy_of(t.bytes, 7));
    writer.write(path_);
    EXPECT_EQ(read_whole_file(path_), read_whole_file(golden(name))) << name;
  }
  EXPECT_EQ(folder_.entries(), 1u);
}

TEST_F(WriterTest, EveryAddIsReadBack) {
  Writer writer(64);
  writer.add_u32("u32", 4000000000u);
  writer.add_u64("u64", ~0ull);
  writer.add_i32("i32", -7);
  writer.add_f32("f32", 0.1F);
  writer.add_bool("bool", true);
  writer.add_string("string", std::string("a\0b", 3));
  writer.add_strings("strings", {"", "x", "\xe2\x96\x81"});
  writer.add_strings("none", {});
  writer.add_f32s("f32s", {1.5F, -2.0F});
  writer.add_i32s("i32s", {1, -1, 6});
  std::vector<std::byte> big(3 << 20);  // larger than the writer's buffer
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<std::byte>(i * 31 >> 3);
  writer.add_tensor("small", {3}, quant::Type::F32, copy_of(std::span(big).first(12), 5));
  writer.add_tensor("big", {1024, 768}, quant::Type::F32, copy_of(big, 1500000));
  writer.write(path_);
  const File file = File::open(path_);
  EXPECT_EQ(file.alignment(), 64u);
  EXPECT_EQ(file.metadata().size(), 11u);
  EXPECT_EQ(std::get<uint64_t>(file.find("u32")->data), 4000000000u);
  EXPECT_EQ(std::get<uint64_t>(file.find("u64")->data), ~0ull);
  EXPECT_EQ(std::get<int64_t>(file.find("i32")->data), -7);
  EXPECT_EQ(std::get<double>(file.find("f32")->data), double{0.1F});
  EXPECT_EQ(std::get<bool>(file.find("bool")->data), true);
  EXPECT_EQ(std::get<std::string_view>(file.find("string")->data), std::string_view("a\0b", 3));
  EXPECT_EQ(std::get<Array>(file.find("strings")->data).strings.at(2), "\xe2\x96\x81");
  EXPECT_EQ(std::get<Array>(file.find("none")->data).count, 0u);
  EXPECT_EQ(array_number(std::get<Array>(file.find("f32s")->data), 1), -2.0);
  EXPECT_EQ(array_integer(std::get<Array>(file.find("i32s")->data), 2), 6);
  const Tensor* tensor = file.find_tensor("big");
  ASSERT_NE(tensor, nullptr);
  EXPECT_TRUE(std::equal(big.begin(), big.end(), tensor->bytes.begin(), tensor->bytes.end()));
  EXPECT_EQ(tensor->offset % 64, 0u);
  EXPECT_EQ(file.file_bytes() % 64, 0u);
}

TEST_F(WriterTest, NothingIsLeftOfAFailedFile) {
  const std::vector<std::byte> bytes(64);
  const auto failing = [&](size_t given) {
    return error_of([&] {
      Writer writer;
      writer.add_tensor("t", {16}, quant::Type::F32, copy_of(std::span(bytes).first(given), 64));
      writer.write(path_);
    });
  };
  EXPECT_NE(failing(60).find("takes 64 bytes, 60 were given"), std::string::npos) << failing(60);
  EXPECT_EQ(folder_.entries(), 0u);
  const std::string more = error_of([&] {
    Writer writer;
    writer.add_tensor("t", {15}, quant::Type::F32, copy_of(bytes, 32));
    writer.write(path_);
  });
  EXPECT_NE(more.find("takes 60 bytes, more were given"), std::string::npos) << more;
  EXPECT_EQ(folder_.entries(), 0u);
  Writer throwing;
  throwing.add_tensor("t", {16}, quant::Type::F32,
                      [](const Writer::Sink&) { throw std::runtime_error("mid-way"); });
  EXPECT_THROW(throwing.write(path_), std::runtime_error);
  EXPECT_EQ(folder_.entries(), 0u);
  EXPECT_EQ(failing(64), "no error");
  EXPECT_EQ(folder_.entries(), 1u);
  // An older file of that name stays as it was when the new one fails.
  const std::string before = read_whole_file(path_);
  EXPECT_NE(failing(1), "no error");
  EXPECT_EQ(folder_.entries(), 1u);
  EXPECT_EQ(read_whole_file(path_), before);
}

/// The size is known before the first byte of a tensor is made.
TEST_F(WriterTest, AFileThatTheDiskCannotHoldIsRefusedFirst) {
  Writer writer;
  writer.add_tensor("t", {1ull << 30, 1ull << 28}, quant::Type::F32,
                    [](const Writer::Sink&) { throw std::runtime_error("it was begun"); });
  const std::string why = error_of([&] { writer.write(path_); });
  EXPECT_NE(why.find(path_ + ": 1152921504606847"), std::string::npos) << why;
  EXPECT_NE(why.find(" bytes are needed, "), std::string::npos) << why;
  EXPECT_EQ(folder_.entries(), 0u);
}

TEST_F(WriterTest, RoomIsReservedAndWhatIsNotUsedIsGivenBack) {
  const std::vector<std::byte> bytes(3);
  constexpr off_t kRoom = 1 << 20;
  PartialFile probe(folder_ / "probe");
  const int fd =
      ::open(fmt::format("{}/probe.partial-{}", folder_.path().string(), ::getpid()).c_str(), O_WRONLY);
  const bool can_reserve = ::fallocate(fd, 0, 0, kRoom) == 0;
  ::close(fd);
  PartialFile file(path_);
  file.reserve(kRoom);
  struct stat there {};
  ASSERT_EQ(::stat(fmt::format("{}.partial-{}", path_, ::getpid()).c_str(), &there), 0);
  EXPECT_EQ(there.st_blocks * 512 >= kRoom, can_reserve);
  file.write(bytes);
  file.finish();
  EXPECT_EQ(std::filesystem::file_size(path_), 3u);
}

TEST_F(WriterTest, TheLimitOfAFilesSizeIsAskedFirst) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string fits = error_of([&] { PartialFile(path_).reserve(4096); });
  const std::string why = error_of([&] { PartialFile(path_).reserve(4097); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(fits, "no error");
  EXPECT_NE(why.find("4097 bytes are needed, and this process may write files of at most 4096"),
            std::string::npos)
      << why;
  EXPECT_EQ(folder_.entries(), 0u);
}

TEST_F(WriterTest, SaysWhatItCannotWrite) {
  const auto none = [](const Writer::Sink&) {};
  Writer writer;
  const auto add = [&](std::vector<uint64_t> shape, quant::Type type) {
    return error_of([&] { writer.add_tensor("t", std::move(shape), type, none); });
  };
  EXPECT_NE(add({}, quant::Type::F32).find("1 to 4 dimensions"), std::string::npos);
  EXPECT_NE(add({1, 1, 1, 1, 1}, quant::Type::F32).find("got 5"), std::string::npos);
  EXPECT_NE(add({4, 0}, quant::Type::F32).find("dimension 0"), std::string::npos);
  EXPECT_NE(add({1ull << 40, 1ull << 40}, quant::Type::F32).find("too large"), std::string::npos);
  EXPECT_NE(add({100, 2}, quant::Type::Q4_K).find("multiple of 256"), std::string::npos);
  EXPECT_NE(error_of([] { Writer odd(24); }).find("power of two"), std::string::npos);
  EXPECT_NE(error_of([] { Writer zero(0); }).find("power of two"), std::string::npos);
  EXPECT_NE(error_of([&] { writer.add_u32("general.alignment", 64); }).find("constructor"),
            std::string::npos);
  writer.add_u32("twice", 1);
  writer.add_u32("twice", 2);
  EXPECT_NE(error_of([&] { writer.write(path_); }).find("'twice' was added twice"), std::string::npos);
  EXPECT_NE(error_of([&] { Writer().write(folder_ / "no/folder.gguf"); }).find("No such file"),
            std::string::npos);
  EXPECT_EQ(folder_.entries(), 0u);
}

}  // namespace
}  // namespace greta::gguf
