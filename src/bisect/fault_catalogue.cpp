// Every fault that bisect must find. Most of them cost somebody days.
#include <algorithm>

#include "bisect/fault_base.h"

namespace greta {
namespace {

using Stages = std::vector<Stage>;

/// Where a model's products end. Which of these a model has, and which are products there (q_pre_rope is none
/// where q has a norm), is its wiring's to say.
const Stages kQ = {Stage::q_proj, Stage::q_pre_rope};
const Stages kK = {Stage::k_proj, Stage::k_pre_rope};
const Stages kHead = {Stage::logits_pre_cap, Stage::logits};
const Stages kLayerMatmuls = {Stage::q_proj,      Stage::k_proj,    Stage::q_pre_rope,    Stage::k_pre_rope,
                              Stage::v,           Stage::attn_proj, Stage::ffn_gate,      Stage::ffn_up,
                              Stage::expert_gate, Stage::expert_up, Stage::router_logits, Stage::expert_out,
                              Stage::mlp_out};
const Stages kMatmuls = [] {
  Stages all = kLayerMatmuls;
  all.insert(all.end(), kHead.begin(), kHead.end());
  return all;
}();
/// All that an operator makes by arithmetic: not residual_pre_attn, nor the choice of experts.
const Stages kAny = [] {
  Stages all;
  for (int i = 0; i < kStages; ++i) {
    const auto stage = static_cast<Stage>(i);
    if (stage != Stage::residual_pre_attn && stage != Stage::experts) all.push_back(stage);
  }
  return all;
}();

/// What a launch of a recorded pass leaves in a buffer: not the keys in the cache, and nothing of experts,
/// whose passes are not recorded.
const Stages kRecorded = [] {
  Stages all;
  for (const Stage stage : kAny)
    if (stage != Stage::k_post_rope && (stage < Stage::router_logits || stage > Stage::expert_out))
      all.push_back(stage);
  return all;
}();

constexpr auto kKernel = Planted::kernel;
constexpr auto kCall = Planted::call;
constexpr auto kOperator = FaultKind::operator_;
constexpr auto kWire = FaultKind::wire;
constexpr auto kInput = FaultKind::input;
constexpr bool kOneToken = true;

const FaultNeeds kNothing = {};
const FaultNeeds kDecode = {.decode = true, .tokens = 2};
const FaultNeeds kPrefill = {.prefill = true, .tokens = 2};
const FaultNeeds kTwoTokens = {.tokens = 2};
const FaultNeeds kQuantised = {.quantised = true};
const FaultNeeds kGrouped = {.tokens = 2, .grouped = true};

/// How each is made: by the operators that it stands in.
struct Entry {
  FaultInfo info;
  FaultMaker make = nullptr;
};

/// Faults in one operator's kernel.
std::vector<Entry> kernel_faults() {
  return {
      {{"embed-transposed", "embedding read column-major", kKernel, kOperator, {Stage::embed_out}, kNothing},
       make_weight_fault},
      {{"embed-scale", "the embedding's scale is left out", kKernel, kOperator, {Stage::embed_out}, kNothing},
       make_argument_fault},
      {{"norm-eps", "eps 1e-2", kKernel, kOperator, {Stage::attn_norm}, kNothing}, make_argument_fault},
      {{"norm-weight-offset",
        "norm weights taken one element off",
        kKernel,
        kOperator,
        {Stage::attn_norm, Stage::ffn_norm, Stage::final_norm},
        kNothing},
       make_weight_fault},
      {{"gqa-stride",
        "K and V strided by heads instead of kv_heads",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kGrouped},
       make_attention_fault},
      {{"gqa-group",
        "query head h reads kv head h % kv_heads",
        kKernel,
        kOperator,
        {Stage::attn_out},
        {.tokens = 1, .grouped = true}},
       make_attention_fault},
      {{"v-head-swap",
        "values of the first two kv heads exchanged",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kNothing},
       make_attention_fault},
      {{"rope-half",
        "half-split rotation on adjacent-pair weights (or the other way round)",
        kKernel,
        kOperator,
        {Stage::q_post_rope},
        kTwoTokens},
       make_argument_fault},
      {{"rope-base", "ten times the frequency base", kKernel, kOperator, {Stage::q_post_rope}, kTwoTokens},
       make_argument_fault},
      {{"rope-scaling-dropped",
        "rotary frequencies without the model's scaling",
        kKernel,
        kOperator,
        {Stage::q_post_rope},
        kTwoTokens},
       make_argument_fault},
      {{"rope-k-skip",
        "keys are cached without rotation",
        kKernel,
        kOperator,
        {Stage::k_post_rope},
        kTwoTokens},
       make_argument_fault},
      {{"seq-len",
        "attention sees pos instead of pos + 1 keys",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kDecode},
       make_attention_fault},
      {{"mask",
        "causal mask off by one: the next position's key is seen",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kPrefill},
       make_attention_fault},
      {{"softmax-scale",
        "1/sqrt(dim) instead of 1/sqrt(head_dim)",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kTwoTokens},
       make_attention_fault},
      {{"residual-drop",
        "one row's sum is the branch without the residual",
        kKernel,
        kOperator,
        {Stage::residual_post_attn},
        kNothing,
        kOneToken},
       make_argument_fault},
      {{"act-kind",
        "gelu for silu (or the other way round)",
        kKernel,
        kOperator,
        {Stage::ffn_act, Stage::expert_act},
        kNothing},
       make_argument_fault},
  };
}

/// Faults in a product's kernel, or in any.
std::vector<Entry> product_faults() {
  return {
      {{"wq-transposed", "wq read as if stored [in][out], in prefill", kKernel, kOperator, kQ, kPrefill},
       make_weight_fault},
      {{"wk-transposed", "wk read as if stored [in][out], in prefill", kKernel, kOperator, kK, kPrefill},
       make_weight_fault},
      {{"wv-transposed",
        "wv read as if stored [in][out], in prefill",
        kKernel,
        kOperator,
        {Stage::v},
        kPrefill},
       make_weight_fault},
      {{"wo-transposed",
        "wo read as if stored [in][out], in prefill",
        kKernel,
        kOperator,
        {Stage::attn_proj},
        kPrefill},
       make_weight_fault},
      {{"lmhead-layout", "output head read as if stored [in][out]", kKernel, kOperator, kHead, kNothing},
       make_weight_fault},
      {{"tile-swap",
        "rows and columns swapped inside each 16x16 tile of a call of more than 32 rows",
        kKernel,
        kOperator,
        kLayerMatmuls,
        {.prefill = true, .tokens = 33}},
       make_edit_fault},
      {{"batch-row", "a call's last row is given its neighbour's product", kKernel, kOperator, kLayerMatmuls,
        kPrefill},
       make_edit_fault},
      {{"quant-nibble", "low and high nibbles exchanged in the unpacking", kKernel, kOperator, kMatmuls,
        kQuantised},
       make_weight_fault},
      {{"quant-scale", "one block's scale doubled in the unpacking", kKernel, kOperator, kMatmuls,
        kQuantised},
       make_weight_fault},
      {{"int8-undivided", "the int8 scale is applied twice", kKernel, kOperator, kMatmuls, {.int8 = true}},
       make_weight_fault},
      {{"bias-dropped",
        "a product's bias is not added",
        kKernel,
        kOperator,
        {Stage::q_proj, Stage::k_proj, Stage::q_pre_rope, Stage::k_pre_rope, Stage::v},
        {.bias = true}},
       make_weight_fault},
      {{"row-gain", "one output row x 1.01", kKernel, kOperator, kMatmuls, kNothing}, make_edit_fault},
      {{"one-element", "one element of one token off by 2^-6 of its value", kKernel, kOperator, kAny,
        kNothing, kOneToken},
       make_edit_fault},
      {{"f16-overflow",
        "one token's accumulator saturates at f16's largest, its largest value past twice that",
        kKernel,
        kOperator,
        {Stage::ffn_act, Stage::mlp_out},
        kNothing,
        kOneToken},
       make_edit_fault},
      {{"nan", "one NaN", kKernel, kOperator, kAny, kNothing, kOneToken}, make_edit_fault},
      {{"logits-index", "output index of at most 16 bits (fewer in a small vocabulary) wraps", kKernel,
        kOperator, kHead, kNothing},
       make_edit_fault},
  };
}

/// Faults of the engine around the operators. kv-stale is one: a lost write leaves the kernel's result right
/// where it was computed, so that a repeated call has other bits than the run, each time the same.
std::vector<Entry> call_faults() {
  return {
      {{"norm-input",
        "norm is given the row of another token",
        kCall,
        kWire,
        {Stage::attn_norm},
        kTwoTokens,
        kOneToken},
       make_call_fault},
      {{"rope-pos",
        "q and k rotated for position + 1, stored where they belong",
        kCall,
        kWire,
        {Stage::q_post_rope},
        kDecode},
       make_call_fault},
      {{"kv-stale",
        "one token's row of the cache is never written: zeros",
        kCall,
        kWire,
        {Stage::k_post_rope, Stage::v},
        kNothing,
        kOneToken},
       make_call_fault},
      {{"kv-layer-base",
        "attention is given layer 0's cache",
        kCall,
        kWire,
        {Stage::attn_out},
        {.layers = 2}},
       make_call_fault},
      {{"kv-page",
        "one page of the cache is another sequence's (another of its own where it is alone)",
        kCall,
        kWire,
        {Stage::attn_out},
        {.tokens = kKvPage + 1}},
       make_call_fault},
      {{"kv-chunk",
        "chunked prefill hands over no keys of earlier chunks",
        kCall,
        kWire,
        {Stage::attn_out},
        {.prefill = true, .tokens = 3, .chunks = 2}},
       make_call_fault},
      {{"residual-stale",
        "add is given last step's residual",
        kCall,
        kWire,
        {Stage::residual_post_mlp},
        kDecode},
       make_call_fault},
      {{"gate-up-swap", "gate and up exchanged", kCall, kWire, {Stage::ffn_act, Stage::expert_act}, kNothing},
       make_call_fault},
      {{"weight-layer",
        "a product is given the weight of the layer before",
        kCall,
        kWire,
        kLayerMatmuls,
        {.layers = 2}},
       make_call_fault},
      {{"final-norm-skip", "the head is given the residual before the final norm", kCall, kWire, kHead,
        kNothing},
       make_call_fault},
      {{"race", "a buffer is overwritten between write and read, sometimes", kCall, FaultKind::race, kAny,
        kNothing, kOneToken},
       make_race_fault},
      {{"lost-copy", "a device copy is silently dropped", kCall, kWire, kAny, {.gpu = true}, kOneToken},
       make_gpu_fault},
      {{"graph-frozen",
        "a captured launch keeps an old pointer",
        kCall,
        kWire,
        kRecorded,
        {.decode = true, .tokens = 3, .gpu = true, .recorded = true}},
       make_gpu_fault},
  };
}

/// Faults of what architectures add: windows, norms, soft caps, experts.
std::vector<Entry> architecture_faults() {
  return {
      {{"window-short",
        "the first key of a window is not seen",
        kKernel,
        kOperator,
        {Stage::attn_out},
        kTwoTokens},
       make_architecture_fault},
      {{"softcap-dropped",
        "scores or logits are not capped",
        kKernel,
        kOperator,
        {Stage::attn_out, Stage::logits},
        kTwoTokens},
       make_architecture_fault},
      {{"router-precision",
        "the router reads its rows rounded to bf16",
        kKernel,
        kOperator,
        {Stage::router_logits},
        kNothing},
       make_architecture_fault},
      {{"expert-extra",
        "one expert too many is chosen, and the last falls off",
        kKernel,
        kOperator,
        {Stage::experts},
        kNothing},
       make_architecture_fault},
      {{"expert-unnormalised",
        "weights are shares of all experts (of the chosen, where all are meant)",
        kKernel,
        kOperator,
        {Stage::expert_weights},
        kNothing},
       make_architecture_fault},
      {{"rope-exchange",
        "local layers turn as the global ones do, and the other way round",
        kCall,
        kWire,
        {Stage::q_post_rope},
        kTwoTokens},
       make_architecture_fault},
      {{"head-norm-late",
        "q is normed after its rotation instead of before",
        kCall,
        kWire,
        {Stage::q_pre_rope},
        kNothing},
       make_architecture_fault},
      {{"post-norm-skip",
        "the norm after attention or MLP is left out",
        kCall,
        kWire,
        {Stage::attn_post_norm, Stage::mlp_post_norm},
        kNothing},
       make_architecture_fault},
      {{"experts-exchanged",
        "two experts of a token exchanged",
        kCall,
        kWire,
        {Stage::expert_gate, Stage::expert_up, Stage::expert_out},
        kNothing},
       make_architecture_fault},
  };
}

/// Faults in what a run begins with.
std::vector<Entry> input_faults() {
  return {
      {{"wrong-token",
        "another token id enters at one position",
        Planted::input,
        kInput,
        {Stage::embed_out},
        kNothing,
        kOneToken}},
      {{"quant-nibble-data", "low and high nibbles exchanged in one resident tensor", Planted::data, kInput,
        kMatmuls, kQuantised},
       make_weight_fault},
      {{"quant-scale-data", "one block's scale doubled in one resident tensor", Planted::data, kInput,
        kMatmuls, kQuantised},
       make_weight_fault},
      {{"file-rows", "two rows of one tensor exchanged in the file", Planted::file, kInput, kMatmuls,
        kNothing}},
      {{"file-tensors",
        "two layers' tensors exchanged in the file",
        Planted::file,
        kInput,
        kLayerMatmuls,
        {.layers = 2}}},
      {{"file-block", "one block of one tensor changed in the file", Planted::file, kInput, kMatmuls,
        kNothing}},
      {{"file-metadata",
        "one number of the file's metadata changed",
        Planted::file,
        kInput,
        {Stage::attn_norm, Stage::q_post_rope},
        kTwoTokens}},
  };
}

bool is_product(Stage stage) { return std::find(kMatmuls.begin(), kMatmuls.end(), stage) != kMatmuls.end(); }

struct Table {
  std::vector<FaultInfo> infos;
  std::vector<FaultMaker> makers;
  Table() {
    for (const auto& part :
         {kernel_faults(), product_faults(), call_faults(), architecture_faults(), input_faults()}) {
      for (const Entry& entry : part) {
        infos.push_back(entry.info);
        infos.back().product = std::all_of(entry.info.stages.begin(), entry.info.stages.end(), is_product);
        makers.push_back(entry.make);
      }
    }
  }
};

const Table& table() {
  static const Table made;
  return made;
}

}  // namespace

std::span<const FaultInfo> fault_catalogue() { return table().infos; }

FaultMaker maker_of(const FaultInfo& info) {
  return table().makers[static_cast<size_t>(&info - table().infos.data())];
}

}  // namespace greta
