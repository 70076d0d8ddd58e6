// AVX2 with AVX-VNNI: what products_vnni.inl needs, behind simd_avx2.inl.
inline constexpr int kTileGroups = 1, kTileTokens = 6;  // register tile of the integer matmul
inline constexpr const char* kIsaName = "avxvnni";

inline VI dot_bytes(VI sum, VB codes, __m256i x) {
  return {_mm256_dpbusd_avx_epi32(sum.a, codes.a, x), _mm256_dpbusd_avx_epi32(sum.b, codes.b, x)};
}
inline VI dot_words(VI sum, VB codes, __m256i x) {
  return {_mm256_dpwssd_avx_epi32(sum.a, codes.a, x), _mm256_dpwssd_avx_epi32(sum.b, codes.b, x)};
}
// sum + the products of the codes and four bytes of x.
inline VI dot_four(VI sum, VB codes, const uint8_t* x) { return dot_bytes(sum, codes, broadcast_word(x)); }
// Even and odd bytes of a row as int16 pairs, so that a 32-bit lane stays with its row.
inline VB even_bytes(VB codes) { return andi(codes, set1i(0x00ff00ff)); }
inline VB odd_bytes(VB codes) { return {_mm256_srli_epi16(codes.a, 8), _mm256_srli_epi16(codes.b, 8)}; }
// 16 integers that fit a word, in their order.
inline __m256i words_of(VI q) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(q.a, q.b), 0xd8); }
