// libFuzzer target for the GGUF reader. Not part of any build; with clang, from the repository's root:
//
//   clang++ -std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc
//     fuzz/gguf_fuzz.cpp src/gguf/*.cpp src/quant/*.cpp src/base/mapped_file.cpp -lfmt -lcrypto -o gguf_fuzz
//   ./gguf_fuzz -max_len=65536 -timeout=1 corpus tests/golden/gguf
//
// A crash, a sanitizer report, a timeout or any exception but greta::Error is a finding.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "gguf/gguf.h"

namespace {

volatile uint64_t g_sink = 0;  // keeps the reads below

uint64_t touch(std::span<const std::byte> bytes) {
  uint64_t sum = 0;
  for (const std::byte b : bytes) sum += std::to_integer<uint64_t>(b);
  return sum;
}

uint64_t touch(const greta::gguf::Array& array) {
  uint64_t sum = touch(array.raw);
  for (const std::string_view text : array.strings) sum += touch(std::as_bytes(std::span(text)));
  for (const auto& inner : array.arrays) sum += touch(inner);
  return sum;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto file = greta::gguf::File::from_bytes(std::as_bytes(std::span(data, size)), "fuzz");
    uint64_t sum = 0;
    for (const auto& [key, value] : file.metadata()) {
      if (const auto* array = std::get_if<greta::gguf::Array>(&value.data)) sum += touch(*array);
      if (const auto* text = std::get_if<std::string_view>(&value.data))
        sum += touch(std::as_bytes(std::span(*text)));
    }
    for (const auto& tensor : file.tensors()) sum += touch(tensor.bytes);
    g_sink = g_sink + sum;
  } catch (const greta::Error&) {
    // refused: what it should do with most inputs
  }
  return 0;
}
