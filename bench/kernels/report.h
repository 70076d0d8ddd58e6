#pragma once
// What the lab finds: rows of two tables, as text and as JSON.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "backend/gpu/timing.h"
#include "bisect/bounds.h"

namespace greta::gpu::lab {

/// Values held against FP64.
struct Check {
  int64_t values = 0;
  double worst = 0.0;  ///< the largest error over its bound; infinity where a NaN is on one side
  bool passed() const { return values > 0 && worst <= 1.0; }
  void add(const Judged& judged, std::span<const double> got);
};

/// What a launch must do at least.
struct Work {
  double bytes = 0.0;  ///< read and written, each once
  double multiply_adds = 0.0;
};

/// Measured in this run; 0: not.
struct Rates {
  double read = 0.0;    ///< bytes a second
  double matrix = 0.0;  ///< 16-bit multiply-adds a second
  std::string read_how, matrix_how;
};

struct Row {
  std::string kernel;
  std::string shape;
  Check check;
  Timing timing;
  Work work;
};

/// A product in the one order beside others of the same F16 matrix; seconds, 0: there is none.
struct PriceRow {
  std::string matmul;
  int64_t outputs = 0;
  int64_t cols = 0;
  int64_t tokens = 0;
  bool in_layer = true;  ///< every layer has it, the head does not count
  Check check;           ///< of ours, and of the free order where there is one
  double ours = 0.0;
  double free_order = 0.0;
  double library_f32 = 0.0;  ///< leaves FP32, as ours
  double library_f16 = 0.0;
};

struct Report {
  std::string device;
  std::string description;
  Rates rates;
  std::vector<Row> rows;
  std::vector<PriceRow> price;
  bool passed() const;
};

/// The least time that the work takes at these rates, and which of the two it is bound by.
struct Floor {
  double seconds = 0.0;  ///< 0: a rate that it needs was not measured
  const char* bound_by = "-";
};
Floor floor_of(const Work& work, const Rates& rates);

/// The fastest of those it is held against; 0: none.
double best_other(const PriceRow& row);

std::string rates_text(const Report& report);
std::string rows_header();
std::string text_of(const Row& row, const Rates& rates);
std::string price_header();
std::string text_of(const PriceRow& row);
/// The products of a layer together, a line for each number of tokens; empty where nothing was timed.
std::string layer_totals(std::span<const PriceRow> rows);
nlohmann::json json_of(const Report& report);

}  // namespace greta::gpu::lab
