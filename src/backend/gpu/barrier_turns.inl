// What HIP and sim do with no more than plain barriers and shuffles. Included by their target.h behind
// Shared.

namespace greta::gpu::GRETA_GPU_TARGET {

/// The largest of the wave's numbers, none of which is negative or a NaN.
GRETA_DEVICE float wave_largest(float value) {
  GRETA_UNROLL
  for (int mask = kWave / 2; mask > 0; mask /= 2) value = larger(value, shuffle_xor(value, mask));
  return value;
}

/// Where some of a block's threads meet. Not kApart: all of the block must come.
class Meeting {
 public:
  static constexpr bool kApart = false;
  static constexpr int kBytes = 0;
  GRETA_DEVICE Meeting(Shared& /*shared*/, int /*threads*/) {}
  GRETA_DEVICE void meet() { barrier(); }
};

/// Two buffers that waves fill and others empty, turn about: turn t is of buffer t % 2. Waves that fill call
/// wait_free and filled, those that empty wait_filled and freed, each once a turn. Here all meet in a barrier
/// when a turn's buffer is full: who fills the next but one has met those who emptied it.
class Turns {
 public:
  static constexpr int kBytes = 0;
  GRETA_DEVICE Turns(Shared& /*shared*/, int /*filling*/, int /*emptying*/) {}
  GRETA_DEVICE void wait_free(int /*turn*/) const {}
  GRETA_DEVICE void filled(int /*turn*/) const { meet(); }
  GRETA_DEVICE void wait_filled(int /*turn*/) const { meet(); }
  GRETA_DEVICE void freed(int /*turn*/) const {}

 private:
  GRETA_DEVICE static void meet() { barrier(); }
};

}  // namespace greta::gpu::GRETA_GPU_TARGET
