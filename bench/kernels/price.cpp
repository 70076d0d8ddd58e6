// What the one order of addition costs: each product of Llama-2-7B on an F16 matrix in the one order, in a
// free order of our own, and by the vendor's library at its best.
#include "backend/gpu/kernels/lab.h"
#include "base/checked.h"
#include "kernels/product.h"

namespace greta::gpu::lab {
namespace {

struct Matmul {
  const char* name;
  int64_t outputs, cols;
  bool in_layer;
};

/// A sum over all of K in any order: a rounding for each product, and one for each k16 step.
int free_roundings(int64_t cols) { return static_cast<int>(cols + ceil_div(cols, int64_t{16})) + 2; }

double library_seconds(const Lab& lab, const PriceRow& row, bool f16_out) {
  if (!lab.timed()) return 0.0;
  return lab.device().product_seconds({row.outputs, row.tokens, row.cols, f16_out});
}

PriceRow price_of(Lab& lab, const Matmul& matmul, int64_t tokens, const PackedCopies& weight,
                  const Activations& x) {
  PriceRow row;
  row.matmul = matmul.name;
  row.outputs = matmul.outputs;
  row.cols = matmul.cols;
  row.tokens = tokens;
  row.in_layer = matmul.in_layer;
  const Product product(lab, weight, x, tokens);
  const auto one_order = [&](int64_t launch) { lab.kernels().matmul(lab, product.call(launch)); };
  one_order(0);
  product.check(lab, product.roundings(lab), row.check);
  row.ours = lab.time(weight.copies(), one_order).seconds;
  // Few tokens have no free order yet (kernels/lab.inl).
  if (matmul_free(lab, product.call(0))) {
    product.check(lab, free_roundings(matmul.cols), row.check);
    row.free_order =
        lab.time(weight.copies(), [&](int64_t launch) { matmul_free(lab, product.call(launch)); }).seconds;
  }
  row.library_f32 = library_seconds(lab, row, false);
  row.library_f16 = library_seconds(lab, row, true);
  return row;
}

}  // namespace

void run_price(Lab& lab) {
  const std::vector<Matmul> matmuls = lab.quick() ? std::vector<Matmul>{{"tiny", 40, 512, true}}
                                                  : std::vector<Matmul>{{"qkv", 12288, 4096, true},
                                                                        {"o", 4096, 4096, true},
                                                                        {"gate, up", 22016, 4096, true},
                                                                        {"down", 4096, 11008, true},
                                                                        {"head", 32000, 4096, false}};
  const std::vector<int64_t> token_counts =
      lab.quick() ? std::vector<int64_t>{1, 70} : std::vector<int64_t>{1, 16, 512, 2048};
  lab.print("\nprice of bit-identity, F16 weights: ours against the fastest of the others\n" +
            price_header());
  for (const Matmul& matmul : matmuls) {
    const Activations x(lab, token_counts.back(), matmul.cols);
    const PackedCopies weight(lab, quant::Type::F16, matmul.outputs, matmul.cols);
    for (const int64_t tokens : token_counts) {
      lab.report().price.push_back(price_of(lab, matmul, tokens, weight, x));
      lab.print(text_of(lab.report().price.back()));
    }
  }
  lab.print(layer_totals(lab.report().price));
}

}  // namespace greta::gpu::lab
