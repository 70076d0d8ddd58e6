// Writes a copy of a GGUF file with one fault in it, to try a loader or `greta bisect` on:
//   gguf_edit IN OUT swap-rows TENSOR I J
//   gguf_edit IN OUT swap-tensors A B
//   gguf_edit IN OUT change-block TENSOR N
//   gguf_edit IN OUT set KEY VALUE
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <string>

#include "base/error.h"
#include "bisect/file_faults.h"

namespace {

int edit(int argc, char** argv) {
  CLI::App app{"Writes a copy of a GGUF file with one fault in it"};
  std::string in, out, first, second;
  int64_t i = 0;
  int64_t j = 0;
  app.add_option("IN", in, "the GGUF file")->required();
  app.add_option("OUT", out, "the copy")->required();
  app.require_subcommand(1);
  auto* rows = app.add_subcommand("swap-rows", "exchange two rows of a tensor");
  rows->add_option("TENSOR", first)->required();
  rows->add_option("I", i)->required();
  rows->add_option("J", j)->required();
  auto* tensors = app.add_subcommand("swap-tensors", "exchange two tensors of one shape and type");
  tensors->add_option("A", first)->required();
  tensors->add_option("B", second)->required();
  auto* block = app.add_subcommand("change-block", "change one block of a tensor");
  block->add_option("TENSOR", first)->required();
  block->add_option("N", i)->required();
  auto* set = app.add_subcommand("set", "change a number, truth value or string of the metadata");
  set->add_option("KEY", first)->required();
  set->add_option("VALUE", second)->required();
  CLI11_PARSE(app, argc, argv);
  std::error_code unknown;
  if (std::filesystem::equivalent(in, out, unknown))
    greta::fail("{}: expected the name of a copy, got the input itself; name another file", out);
  std::string what;
  if (rows->parsed()) what = greta::swap_rows_in_file(in, out, first, i, j);
  if (tensors->parsed()) what = greta::swap_tensors_in_file(in, out, first, second);
  if (block->parsed()) what = greta::change_block_in_file(in, out, first, i);
  if (set->parsed()) what = greta::set_metadata_in_file(in, out, first, second);
  std::printf("%s\n", what.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return edit(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gguf_edit: %s\n", error.what());
    return 2;
  }
}
