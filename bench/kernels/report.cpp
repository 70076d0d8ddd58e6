#include "kernels/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/build_info.h"

namespace greta::gpu::lab {
namespace {

std::string microseconds(double seconds) {
  return seconds > 0.0 ? fmt::format("{:.2f}", 1e6 * seconds) : "-";
}
std::string percent_more(double ours, double other) {
  return ours > 0.0 && other > 0.0 ? fmt::format("{:+.1f} %", 100.0 * (ours / other - 1.0)) : "-";
}
std::string verdict(const Check& check) {
  return fmt::format("{:>7} {:>10.3g} {}", check.values, check.worst, check.passed() ? "pass" : "FAIL");
}

/// JSON has no infinity.
nlohmann::json json_of(const Check& check) {
  nlohmann::json out = {{"values", check.values}, {"passed", check.passed()}};
  out["error_over_bound"] = std::isfinite(check.worst) ? nlohmann::json(check.worst) : nlohmann::json();
  return out;
}

}  // namespace

void Check::add(const Judged& judged, std::span<const double> got) {
  values += static_cast<int64_t>(got.size());
  worst = std::max(worst, worst_ratio(judged, got));
}

bool Report::passed() const {
  return std::ranges::all_of(rows, [](const Row& r) { return r.check.passed(); }) &&
         std::ranges::all_of(price, [](const PriceRow& r) { return r.check.passed(); });
}

Floor floor_of(const Work& work, const Rates& rates) {
  if (rates.read <= 0.0 || (work.multiply_adds > 0.0 && rates.matrix <= 0.0)) return {};
  const double reading = work.bytes / rates.read;
  const double multiplying = work.multiply_adds > 0.0 ? work.multiply_adds / rates.matrix : 0.0;
  return reading >= multiplying ? Floor{reading, "bytes"} : Floor{multiplying, "operations"};
}

double best_other(const PriceRow& row) {
  double best = 0.0;
  for (const double other : {row.free_order, row.library_f32, row.library_f16})
    if (other > 0.0 && (best == 0.0 || other < best)) best = other;
  return best;
}

std::string rates_text(const Report& report) {
  std::string text = fmt::format("{}: {}\n", report.device, report.description);
  const Rates& rates = report.rates;
  text += rates.read > 0.0 ? fmt::format("read rate {:.0f} GB/s: {}\n", rates.read / 1e9, rates.read_how)
                           : fmt::format("read rate not measured: {}\n", rates.read_how);
  text += rates.matrix > 0.0 ? fmt::format("matrix rate {:.1f} T multiply-adds/s: {}\n", rates.matrix / 1e12,
                                           rates.matrix_how)
                             : fmt::format("matrix rate not measured: {}\n", rates.matrix_how);
  return text;
}

std::string rows_header() {
  return fmt::format("{:<15} {:<41} {:>7} {:>10} {:<4} {:>10} {:>10} {:<10} {:>6}\n", "kernel", "shape",
                     "values", "err/bound", "", "us", "floor us", "bound by", "share");
}

std::string text_of(const Row& row, const Rates& rates) {
  const Floor floor = floor_of(row.work, rates);
  const double seconds = row.timing.seconds;
  return fmt::format(
      "{:<15} {:<41} {} {:>10} {:>10} {:<10} {:>6}\n", row.kernel, row.shape, verdict(row.check),
      microseconds(seconds), microseconds(floor.seconds), floor.bound_by,
      seconds > 0.0 && floor.seconds > 0.0 ? fmt::format("{:.2f}", floor.seconds / seconds) : "-");
}

std::string price_header() {
  return fmt::format("{:<9} {:>13} {:>6} {:>7} {:>10} {:<4} {:>10} {:>10} {:>12} {:>12} {:>9}\n", "matmul",
                     "shape", "tokens", "values", "err/bound", "", "ours us", "free us", "Lt f32 us",
                     "Lt f16 us", "price");
}

std::string text_of(const PriceRow& row) {
  return fmt::format("{:<9} {:>13} {:>6} {} {:>10} {:>10} {:>12} {:>12} {:>9}\n", row.matmul,
                     fmt::format("{} x {}", row.outputs, row.cols), row.tokens, verdict(row.check),
                     microseconds(row.ours), microseconds(row.free_order), microseconds(row.library_f32),
                     microseconds(row.library_f16), percent_more(row.ours, best_other(row)));
}

std::string layer_totals(std::span<const PriceRow> rows) {
  std::map<int64_t, std::pair<double, double>> totals;  // tokens to ours, the others' best
  for (const PriceRow& row : rows) {
    if (!row.in_layer || best_other(row) == 0.0) continue;
    totals[row.tokens].first += row.ours;
    totals[row.tokens].second += best_other(row);
  }
  std::string text;
  for (const auto& [tokens, total] : totals)
    text += fmt::format("a layer's products, {} tokens: ours {} us, the others' best {} us, price {}\n",
                        tokens, microseconds(total.first), microseconds(total.second),
                        percent_more(total.first, total.second));
  return text;
}

nlohmann::json json_of(const Report& report) {
  const Rates& rates = report.rates;
  nlohmann::json out = {{"device", report.device},         {"description", report.description},
                        {"commit", build_info().commit},   {"dirty", build_info().dirty},
                        {"passed", report.passed()},       {"read_bytes_per_second", rates.read},
                        {"read_how", rates.read_how},      {"multiply_adds_per_second", rates.matrix},
                        {"matrix_how", rates.matrix_how},  {"kernels", nlohmann::json::array()},
                        {"price", nlohmann::json::array()}};
  for (const Row& row : report.rows) {
    const Floor floor = floor_of(row.work, rates);
    out["kernels"].push_back({{"kernel", row.kernel},
                              {"shape", row.shape},
                              {"check", json_of(row.check)},
                              {"seconds", row.timing.seconds},
                              {"launches", row.timing.launches},
                              {"repeats", row.timing.repeats},
                              {"bytes", row.work.bytes},
                              {"multiply_adds", row.work.multiply_adds},
                              {"floor_seconds", floor.seconds},
                              {"bound_by", floor.bound_by}});
  }
  for (const PriceRow& row : report.price)
    out["price"].push_back({{"matmul", row.matmul},
                            {"outputs", row.outputs},
                            {"cols", row.cols},
                            {"tokens", row.tokens},
                            {"check", json_of(row.check)},
                            {"seconds", row.ours},
                            {"free_order_seconds", row.free_order},
                            {"library_f32_seconds", row.library_f32},
                            {"library_f16_seconds", row.library_f16}});
  return out;
}

}  // namespace greta::gpu::lab
