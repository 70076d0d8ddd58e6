// Memory on a chip, CUDA's and HIP's alike: a block's shared memory (sim has arrays that check each access),
// and what blocks leave for each other. Included by their target.h.

namespace greta::gpu::GRETA_GPU_TARGET {

struct alignas(16) Words4 {
  uint32_t x, y, z, w;
};
struct alignas(8) Words2 {
  uint32_t x, y;
};

/// The block's dynamic shared memory, handed out from its start. Arrays are 16-byte aligned. An array of
/// shared memory is indexed and sliced, never turned into a pointer: sim checks each access.
template <class T>
class SharedArray {
 public:
  GRETA_DEVICE explicit SharedArray(T* data) : data_(data) {}
  GRETA_DEVICE T& operator[](int i) const { return data_[i]; }
  /// From element `first` on.
  GRETA_DEVICE SharedArray from(int first) const { return SharedArray(data_ + first); }
  /// The same memory, as elements of another type.
  template <class U>
  GRETA_DEVICE SharedArray<U> as() const {
    return SharedArray<U>(reinterpret_cast<U*>(data_));
  }
  /// Elements i .. as one 16-byte or 4-byte word; aligned to it.
  GRETA_DEVICE Words4 words4(int i) const { return *reinterpret_cast<const Words4*>(data_ + i); }
  GRETA_DEVICE uint32_t word(int i) const { return *reinterpret_cast<const uint32_t*>(data_ + i); }
  GRETA_DEVICE void put_word(int i, uint32_t v) const { *reinterpret_cast<uint32_t*>(data_ + i) = v; }
  GRETA_DEVICE void put_words2(int i, const Words2& v) const { *reinterpret_cast<Words2*>(data_ + i) = v; }
  GRETA_DEVICE void put_words4(int i, const Words4& v) const { *reinterpret_cast<Words4*>(data_ + i) = v; }

 private:
  T* data_;
};
class Shared {
 public:
  template <class T>
  GRETA_DEVICE SharedArray<T> array(int count) {
    extern __shared__ __align__(128) unsigned char memory[];
    T* at = reinterpret_cast<T*>(memory + used_);
    used_ += (count * static_cast<int>(sizeof(T)) + 15) & ~15;
    return SharedArray<T>(at);
  }

 private:
  int used_ = 0;
};

/// Of `of` blocks that call this with one `count`, zero before: whether this block is the last, and then what
/// the others wrote before they called is there to be read, and the count zero again. All threads call it.
GRETA_DEVICE bool last_to_arrive(uint32_t* count, uint32_t of) {
  __threadfence();
  barrier();
  bool last = false;
  if (thread_index() == 0) {
    last = atomicAdd(count, 1u) == of - 1;
    if (last) *count = 0;
  }
  last = block_any(last);
  __threadfence();
  return last;
}

}  // namespace greta::gpu::GRETA_GPU_TARGET
