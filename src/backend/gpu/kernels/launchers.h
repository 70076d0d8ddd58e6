#pragma once
// The functions behind a target's table, declared: each stands in one of the .inl files beside this.
// Included after the target's target.h.
#include "backend/gpu/kernels.h"

namespace greta::gpu::GRETA_GPU_TARGET {

const Kernels& kernel_table();

// weights.inl
uint64_t packed_matrix_bytes(quant::Type kernel_type, int64_t rows, int64_t cols);
void run_pack(const Launch& how, const PackCall& call);
void run_unpack(const Launch& how, const UnpackCall& call);
void run_dequantize(const Launch& how, const DequantizeCall& call);
void run_embed(const Launch& how, const EmbedCall& call);
// matmul.inl
void run_round(const Launch& how, const RoundCall& call);
bool wants_tiles(const Launch& how, int64_t rows);
bool fuses_glu(const MatmulCall& call);
void run_matmul(const Launch& how, const MatmulCall& call);
// matmul_own.inl
bool rounds_itself(const Launch& how, int64_t rows, int64_t cols, bool norm, int64_t outputs);
// attention.inl
int64_t attention_scratch_floats(int64_t rows, int heads, int head_dim, int64_t splits);
int64_t attention_tile_rows(int heads, int kv_heads, int head_dim, int64_t rows);
bool fuses_rope(int heads, int kv_heads, int dims);
void run_attention(const Launch& how, const AttentionCall& call);
/// attention_warpgroup.inl, where the target and the device have warpgroups: f16 caches of head_dim 64 or
/// 128.
void run_attention_warpgroup(const Launch& how, const AttentionCall& call, int64_t tile_pairs);
// limits.inl
void run_read(const Launch& how, const ReadCall& call);
// rows.inl
bool rounds_with_norm(int64_t width);
void run_rmsnorm(const Launch& how, const RmsnormCall& call);
void run_rope(const Launch& how, const RopeCall& call);
void run_add(const Launch& how, const AddCall& call);
void run_glu(const Launch& how, const GluCall& call);
void run_choose_experts(const Launch& how, const ChooseExpertsCall& call);
void run_combine(const Launch& how, const CombineCall& call);
void run_softcap(const Launch& how, const SoftcapCall& call);
void run_gather(const Launch& how, const GatherCall& call);

}  // namespace greta::gpu::GRETA_GPU_TARGET
