// The target's table (kernels.h). Included after the target's target.h, once for each target.
#include "backend/gpu/kernels/launchers.h"

namespace greta::gpu::GRETA_GPU_TARGET {

const Kernels& kernel_table() {
  static const Kernels table = [] {
    Kernels k;
    k.wave = kWave;
    k.matrix_unit = kTileN == 8 ? "mma.m16n8k16" : "mfma.16x16x16";
    k.packed_bytes = packed_matrix_bytes;
    k.attention_scratch_floats = attention_scratch_floats;
    k.attention_tile_rows = attention_tile_rows;
    k.fuses_rope = fuses_rope;
    k.rounds_with_norm = rounds_with_norm;
    k.wants_tiles = wants_tiles;
    k.rounds_itself = rounds_itself;
    k.fuses_glu = fuses_glu;
    k.embed = run_embed;
    k.rmsnorm = run_rmsnorm;
    k.round = run_round;
    k.matmul = run_matmul;
    k.rope = run_rope;
    k.attention = run_attention;
    k.add = run_add;
    k.glu = run_glu;
    k.choose_experts = run_choose_experts;
    k.combine = run_combine;
    k.softcap = run_softcap;
    k.gather = run_gather;
    k.pack = run_pack;
    k.unpack = run_unpack;
    k.dequantize = run_dequantize;
    k.read = run_read;
    return k;
  }();
  return table;
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
