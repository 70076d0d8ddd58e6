#pragma once
// Small GGUF files with every part replaceable, for tests of what does not fit.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "temporary_folder.h"

namespace greta::testing_model {

/// llama: 2 layers, dim 32, 4 heads over 2 of 8, ffn_dim 64, vocabulary 48, context 1024; Q8_0 matrices, F32
/// vectors, an own output head.
class SmallFile {
 public:
  explicit SmallFile(int64_t layers = 2, int64_t stated_layers = -1) {
    set("general.architecture", "llama");
    set("general.name", "small");
    u32("llama.block_count", static_cast<uint32_t>(stated_layers < 0 ? layers : stated_layers));
    u32("llama.context_length", 1024);
    u32("llama.embedding_length", 32);
    u32("llama.feed_forward_length", 64);
    u32("llama.attention.head_count", 4);
    u32("llama.attention.head_count_kv", 2);
    f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    u32("llama.vocab_size", 48);
    tensor("token_embd.weight", {32, 48});
    tensor("output_norm.weight", {32}, quant::Type::F32);
    tensor("output.weight", {32, 48});
    for (int64_t layer = 0; layer < layers; ++layer) {
      const auto name = [&](const char* part) { return fmt::format("blk.{}.{}.weight", layer, part); };
      tensor(name("attn_norm"), {32}, quant::Type::F32);
      tensor(name("attn_q"), {32, 32});
      tensor(name("attn_k"), {32, 16});
      tensor(name("attn_v"), {32, 16});
      tensor(name("attn_output"), {32, 32});
      tensor(name("ffn_norm"), {32}, quant::Type::F32);
      tensor(name("ffn_gate"), {32, 64});
      tensor(name("ffn_up"), {32, 64});
      tensor(name("ffn_down"), {64, 32});
    }
  }

  using Put = std::function<void(gguf::Writer& writer, const std::string& key)>;
  SmallFile& put(const std::string& key, Put value) {
    erase(key);
    keys_.emplace_back(key, std::move(value));
    return *this;
  }
  SmallFile& u32(const std::string& key, uint32_t value) {
    return put(key, [value](auto& writer, const auto& k) { writer.add_u32(k, value); });
  }
  SmallFile& f32(const std::string& key, float value) {
    return put(key, [value](auto& writer, const auto& k) { writer.add_f32(k, value); });
  }
  SmallFile& boolean(const std::string& key, bool value) {
    return put(key, [value](auto& writer, const auto& k) { writer.add_bool(k, value); });
  }
  SmallFile& set(const std::string& key, const std::string& value) {
    return put(key, [value](auto& writer, const auto& k) { writer.add_string(k, value); });
  }
  SmallFile& i32s(const std::string& key, std::vector<int32_t> values) {
    return put(key, [values](auto& writer, const auto& k) { writer.add_i32s(k, values); });
  }
  SmallFile& erase(const std::string& key) {
    std::erase_if(keys_, [&](const auto& pair) { return pair.first == key; });
    return *this;
  }

  /// Adds or replaces; zeros, or these F32 numbers.
  SmallFile& tensor(const std::string& name, std::vector<uint64_t> shape,
                    quant::Type type = quant::Type::Q8_0, std::vector<float> values = {}) {
    const auto old =
        std::find_if(tensors_.begin(), tensors_.end(), [&](const auto& t) { return t.name == name; });
    if (old != tensors_.end()) {
      *old = {name, std::move(shape), type, std::move(values)};
    } else {
      tensors_.push_back({name, std::move(shape), type, std::move(values)});
    }
    return *this;
  }
  SmallFile& erase_tensor(const std::string& name) {
    std::erase_if(tensors_, [&](const auto& t) { return t.name == name; });
    return *this;
  }
  SmallFile& erase_tensors() {
    tensors_.clear();
    return *this;
  }

  gguf::File open() const {
    const auto path = *folder_ / "small.gguf";
    gguf::Writer writer;
    for (const auto& [key, value] : keys_) value(writer, key);
    for (const auto& t : tensors_) {
      uint64_t elements = 1;
      for (const auto n : t.shape) elements *= n;
      std::vector<std::byte> bytes(quant::bytes_for(t.type, elements).value());
      if (!t.values.empty())
        std::memcpy(bytes.data(), t.values.data(), std::min(bytes.size(), t.values.size() * 4));
      writer.add_tensor(t.name, t.shape, t.type, [bytes](const auto& sink) { sink(bytes); });
    }
    writer.write(path);
    return gguf::File::open(path);
  }

 private:
  struct T {
    std::string name;
    std::vector<uint64_t> shape;
    quant::Type type;
    std::vector<float> values;
  };
  std::shared_ptr<test::TemporaryFolder> folder_ = std::make_shared<test::TemporaryFolder>();
  std::vector<std::pair<std::string, Put>> keys_;
  std::vector<T> tensors_;
};

}  // namespace greta::testing_model
