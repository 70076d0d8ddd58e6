// Fills the table of this instruction set.

#define GRETA_INTEGER_KERNELS(name, ...)                                                                    \
  {                                                                                                         \
    name<kQ4_0 __VA_ARGS__>, name<kQ4_1 __VA_ARGS__>, name<kQ5_0 __VA_ARGS__>, name<kQ5_1 __VA_ARGS__>,     \
        name<kQ8_0 __VA_ARGS__>, name<kQ2_K __VA_ARGS__>, name<kQ3_K __VA_ARGS__>, name<kQ4_K __VA_ARGS__>, \
        name<kQ5_K __VA_ARGS__>, name<kQ6_K __VA_ARGS__>                                                    \
  }
#define GRETA_COMMA ,

constexpr KernelTable kTable = {
    .name = kIsaName,
    .x_bytes = {kXBytesOfOne<false>, kXBytesOfOne<true>},
    .tile_groups = kTileGroups,
    .tile_tokens = kTileTokens,
    .rmsnorm = rmsnorm,
    .add = add_rows,
    .scale = scale_row,
    .silu_mul = silu_mul,
    .gelu_mul = gelu_mul,
    .exp = exp_row,
    .softcap = softcap_row,
    .combine = combine_row,
    .sincos = sincos_row,
    .rope_table = rope_table,
    .rotate_adjacent = rotate_adjacent,
    .rotate_half = rotate_half,
    .round_to = {round_f32, round_f16, round_bf16},
    .float_rows = kFloatRows,
    .float_tokens = kFloatTokens,
    .float_together = kTogetherRows,
    .float_matmul = {float_matmul<kF32>, float_matmul<kF16>, float_matmul<kBF16>},
    .pack_group = GRETA_INTEGER_KERNELS(pack_group, ),
    .round_tile = {round_tile<false>, round_tile<true>},
    .x_extra = GRETA_INTEGER_KERNELS(x_extra, ),
    .integer_one = {GRETA_INTEGER_KERNELS(integer_one, GRETA_COMMA false),
                    GRETA_INTEGER_KERNELS(integer_one, GRETA_COMMA true)},
    .integer_tile = {GRETA_INTEGER_KERNELS(integer_tile, GRETA_COMMA false),
                     GRETA_INTEGER_KERNELS(integer_tile, GRETA_COMMA true)},
    .attention = {attention<kF32>, attention<kF16>, attention<kBF16>},
};

#undef GRETA_INTEGER_KERNELS
#undef GRETA_COMMA
