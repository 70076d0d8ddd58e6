#include "backend/gpu/sim/runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/half.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace greta::gpu::sim {
namespace {

namespace fc = boost::context::detail;

constexpr int kMaxWave = 64;
constexpr int kMaxThreads = 1024;  ///< of a block, on all targets
constexpr int kMaxWaves = kMaxThreads / 32;
constexpr int kPoison = 0xff;  ///< of each byte: a NaN in f16, bf16 and FP32

// ---- seeded order

uint64_t mix(uint64_t x) {  // SplitMix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed) | 1) {}
  uint32_t below(uint32_t n) {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    const uint64_t bits = (state_ * 0x2545f4914f6cdd1du) >> 32;
    return static_cast<uint32_t>((bits * n) >> 32);
  }

 private:
  uint64_t state_;
};

// ---- fibers

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // frames are several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
constexpr size_t kPage = 4096;

/// Something that can be switched to: a fiber, or who launched.
struct Context {
  fc::fcontext_t at = nullptr;  ///< null: to be made
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;  ///< AddressSanitizer's
  void* fiber = nullptr;       ///< ThreadSanitizer's
};

/// On arrival at `to`: who came keeps where it was.
void arrived(const fc::transfer_t& from, Context& to) {
  auto& came = *static_cast<Context*>(from.data);
  came.at = from.fctx;
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(to.fake_stack, &bottom, &size);
  came.bottom = bottom;
  came.size = size;
#else
  (void)to;
#endif
}

void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.fiber, 0);
#endif
  arrived(fc::jump_fcontext(to.at, &from), from);
}

/// Stacks for the threads of a block, each below a page that faults; kept for the host thread's life.
class Stacks {
 public:
  Stacks() {
    memory_ = static_cast<std::byte*>(mmap(nullptr, kStride * kMaxThreads, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory_ == MAP_FAILED) fail("sim: no room for the stacks of {} threads", kMaxThreads);
    for (int i = 0; i < kMaxThreads; ++i) mprotect(memory_ + kStride * i, kPage, PROT_NONE);
  }
  ~Stacks() { munmap(memory_, kStride * kMaxThreads); }
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  /// Its top. Tops are staggered, so that they do not all fall into the same cache sets.
  std::byte* give(int thread, Context& to) const {
    std::byte* bottom = memory_ + kStride * thread + kPage;
    to.bottom = bottom;
    to.size = kStackBytes - static_cast<size_t>(thread) * 320 % kPage;
    return bottom + to.size;
  }

 private:
  static constexpr size_t kStride = kStackBytes + kPage;
  std::byte* memory_;
};

// ---- a block

enum class Wait : uint8_t { barrier, block_any, wave_barrier, shuffle, multiply, multiply_bf16 };

const char* name_of(Wait wait) {
  switch (wait) {
    case Wait::barrier:
      return "barrier";
    case Wait::block_any:
      return "block_any";
    case Wait::wave_barrier:
      return "wave_barrier";
    case Wait::shuffle:
      return "shuffle";
    case Wait::multiply:
      return "multiply";
    case Wait::multiply_bf16:
      return "multiply_bf16";
  }
  return "";
}

/// A kind of collective at a place in the source.
struct Point {
  Wait wait = Wait::barrier;
  Where where;

  bool operator==(const Point& other) const {
    return wait == other.wait && where.line == other.where.line &&
           (where.file == other.where.file || std::string_view(where.file) == other.where.file);
  }
  std::string text() const {
    const std::string_view file = where.file;
    return fmt::format("{} ({}:{})", name_of(wait), file.substr(file.rfind('/') + 1), where.line);
  }
};

/// A copy that a thread has asked for and not waited for. `from` null: zeros.
struct PendingCopy {
  std::byte* to;
  const void* from;
  uint64_t group;
};

struct Fiber : Thread {
  Context context;
  bool ended = false;
  Point point;  ///< the last that it came to
  std::vector<PendingCopy> copies;
  uint64_t group = 0;  ///< copy groups committed so far
};

/// What a lane brings to a multiply; on its own stack, which stands still meanwhile.
struct Operands {
  float* c;
  const uint32_t* a;
  const uint32_t* b;
};

struct Wave {
  int first = 0;                        ///< thread
  std::array<uint8_t, kMaxWave> ready;  ///< lanes that can run
  int ready_count = 0;
  int position = 0;  ///< in Engine::runnable_ while ready_count > 0
  int arrived = 0;   ///< lanes at `point`
  Point point;
  /// A lane may come to the next collective before the others have taken what this one left: two in turn.
  int turn = 0;
  std::array<std::array<uint32_t, kMaxWave>, 2> values;
  std::array<Operands, kMaxWave> operands;
};

// ---- the matrix unit

/// c [16, N] += a [16, 16] b [16, N]: a fused multiply-add for each k, ascending. The product of two f16 is
/// exact in FP32; that of two bf16 in FP64, where it is added to c: if that sum is not exact, then the
/// smaller term is below 2^-5 of the larger's FP32 ulp and FP32's rounding is the same.
template <int N, class Wide>
void accumulate(float* c, const float* a, const float* b) {
  for (int m = 0; m < 16; ++m) {
    float sum[N];
    for (int n = 0; n < N; ++n) sum[n] = c[m * N + n];
    for (int k = 0; k < 16; ++k) {
      const Wide left = a[m * 16 + k];
      for (int n = 0; n < N; ++n)
        sum[n] = static_cast<float>(sum[n] + left * static_cast<Wide>(b[k * N + n]));
    }
    for (int n = 0; n < N; ++n) c[m * N + n] = sum[n];
  }
}

template <int N, class Wide, float (*Number)(uint16_t)>
void multiply_tile(const std::array<Operands, kMaxWave>& lanes, const MatrixUnit& unit) {
  float a[256], b[16 * N], c[16 * N];
  const auto gather = [](float* matrix, const uint32_t* words, const uint8_t* places, int count) {
    for (int e = 0; e < count; e += 2) {
      matrix[places[e]] = Number(static_cast<uint16_t>(words[e / 2]));
      matrix[places[e + 1]] = Number(static_cast<uint16_t>(words[e / 2] >> 16));
    }
  };
  for (int lane = 0; lane < unit.wave; ++lane) {
    const Operands& own = lanes[lane];
    gather(a, own.a, &unit.a[lane * unit.count_a], unit.count_a);
    gather(b, own.b, &unit.b[lane * unit.count_b], unit.count_b);
    for (int i = 0; i < unit.count_c; ++i) c[unit.c[lane * unit.count_c + i]] = own.c[i];
  }
  accumulate<N, Wide>(c, a, b);
  for (int lane = 0; lane < unit.wave; ++lane)
    for (int i = 0; i < unit.count_c; ++i) lanes[lane].c[i] = c[unit.c[lane * unit.count_c + i]];
}

void multiply_wave(const std::array<Operands, kMaxWave>& lanes, const MatrixUnit& unit, bool bf16) {
  if (unit.tile_n == 8) {
    bf16 ? multiply_tile<8, double, bf16_to_f32>(lanes, unit)
         : multiply_tile<8, float, f16_to_f32>(lanes, unit);
  } else {
    bf16 ? multiply_tile<16, double, bf16_to_f32>(lanes, unit)
         : multiply_tile<16, float, f16_to_f32>(lanes, unit);
  }
}

// ---- the scheduler

/// Runs blocks for one host thread. Threads run until they wait or end; who is next is drawn at random: in a
/// skewed phase (a phase ends at each barrier of the block) a wave runs on while any of its lanes can, in a
/// mixed one every draw is of another wave. Lanes always in random order.
class Engine {
 public:
  void run(const Traits& traits, const char* name, Stream& stream, Grid grid, int threads, int shared_bytes,
           void (*call)(const void*), const void* kernel);

  void wait_block(const Point& point);
  bool any(bool condition, const Point& point);
  void wait_wave(const Point& point);
  uint32_t shuffle(uint32_t value, int from, const Point& point);
  void multiply(const Operands& own, bool bf16, const MatrixUnit& unit, const Point& point);
  /// Throws, naming the running thread.
  [[noreturn]] void wrong(const std::string& what) const;

 private:
  static void enter(fc::transfer_t from);
  void run_block(uint64_t seed);
  void prepare(Fiber& fiber);
  void forget_fibers();
  Wave& wave_of(const Fiber& fiber) { return waves_[fiber.index / traits_.wave]; }
  void wake(Wave& wave);
  void wake_all();
  Fiber* draw();
  void suspend();
  std::string kernel_place() const;
  [[noreturn]] void stuck() const;

  Stacks stacks_;
  std::vector<Fiber> fibers_ = std::vector<Fiber>(kMaxThreads);
  std::array<Wave, kMaxWaves> waves_;
  std::array<Wave*, kMaxWaves> runnable_;
  int runnable_count_ = 0;
  Wave* current_ = nullptr;
  bool mixed_ = false;
  Random random_{0};
  Context launcher_;
  std::exception_ptr error_;

  Traits traits_;
  const char* name_ = "";
  void (*call_)(const void*) = nullptr;
  const void* kernel_ = nullptr;
  int ended_ = 0;
  int arrived_ = 0;  ///< threads at point_
  Point point_;
  int turn_ = 0;  ///< of any_, as Wave::turn
  std::array<bool, 2> any_ = {};
  std::unique_ptr<std::byte, decltype(&std::free)> shared_{nullptr, &std::free};
  size_t shared_room_ = 0;
};

thread_local constinit Engine* the_engine = nullptr;

/// This host thread's, from its first launch on.
Engine& engine() { return *the_engine; }

Fiber& self() { return *static_cast<Fiber*>(running); }

std::string Engine::kernel_place() const {
  return fmt::format("{}: kernel {}, block ({}, {}, {})", traits_.name, name_, place.block.x, place.block.y,
                     place.block.z);
}

void Engine::wrong(const std::string& what) const {
  fail("{}, thread {}: {}", kernel_place(), self().index, what);
}

void Engine::wake(Wave& wave) {
  for (int i = 0; i < traits_.wave; ++i) wave.ready[i] = static_cast<uint8_t>(i);
  wave.ready_count = traits_.wave;
  wave.position = runnable_count_;
  runnable_[runnable_count_++] = &wave;
}

void Engine::wake_all() {
  mixed_ = random_.below(2) != 0;
  current_ = nullptr;
  for (int w = 0; w < place.block_threads / traits_.wave; ++w) wake(waves_[w]);
}

/// The next to run; null: nobody can.
Fiber* Engine::draw() {
  if (runnable_count_ == 0) return nullptr;
  if (mixed_ || current_ == nullptr || current_->ready_count == 0)
    current_ = runnable_[random_.below(static_cast<uint32_t>(runnable_count_))];
  Wave& wave = *current_;
  const uint32_t drawn = random_.below(static_cast<uint32_t>(wave.ready_count));
  const int lane = wave.ready[drawn];
  wave.ready[drawn] = wave.ready[--wave.ready_count];
  if (wave.ready_count == 0) {
    Wave* last = runnable_[--runnable_count_];
    runnable_[wave.position] = last;
    last->position = wave.position;
  }
  return &fibers_[wave.first + lane];
}

/// Lets others run until this thread is drawn again.
void Engine::suspend() {
  Fiber& from = self();
  Fiber* to = draw();
  if (to == &from) return;
  running = to;
  switch_context(from.context, to == nullptr ? launcher_ : to->context);
}

void Engine::wait_block(const Point& point) {
  self().point = point;
  if (arrived_ == 0) point_ = point;
  if (point_ != point)
    wrong(fmt::format("at {} while others of its block wait at {}", point.text(), point_.text()));
  if (++arrived_ == place.block_threads) {
    arrived_ = 0;
    turn_ ^= 1;
    any_[turn_] = false;
    wake_all();
  }
  suspend();
}

bool Engine::any(bool condition, const Point& point) {
  bool& result = any_[turn_];
  if (condition) result = true;
  wait_block(point);
  return result;
}

void Engine::wait_wave(const Point& point) {
  Fiber& own = self();
  own.point = point;
  Wave& wave = wave_of(own);
  if (wave.arrived == 0) wave.point = point;
  if (wave.point != point)
    wrong(fmt::format("at {} while others of its wave wait at {}", point.text(), wave.point.text()));
  if (++wave.arrived == traits_.wave) {
    wave.arrived = 0;
    wave.turn ^= 1;
    wake(wave);
  }
  suspend();
}

uint32_t Engine::shuffle(uint32_t value, int from, const Point& point) {
  const Fiber& own = self();
  if (from < 0 || from >= traits_.wave)
    wrong(fmt::format("{} from lane {} of a wave of {}", point.text(), from, traits_.wave));
  Wave& wave = wave_of(own);
  auto& values = wave.values[wave.turn];
  values[own.index % traits_.wave] = value;
  wait_wave(point);
  return values[from];
}

void Engine::multiply(const Operands& operands, bool bf16, const MatrixUnit& unit, const Point& point) {
  const Fiber& own = self();
  Wave& wave = wave_of(own);
  wave.operands[own.index % traits_.wave] = operands;
  if (wave.arrived == traits_.wave - 1 && wave.point == point) multiply_wave(wave.operands, unit, bf16);
  wait_wave(point);
}

/// A fiber's life: a thread of one block after the other.
void Engine::enter(fc::transfer_t from) {
  arrived(from, self().context);
  Engine& one = engine();
  for (;;) {
    try {
      one.call_(one.kernel_);
    } catch (...) {
      one.error_ = std::current_exception();
    }
    if (one.error_ != nullptr) {
      Fiber& own = self();
      running = nullptr;
      switch_context(own.context, one.launcher_);  // for good
    }
    self().ended = true;
    ++one.ended_;
    one.suspend();
  }
}

void Engine::prepare(Fiber& fiber) {
  fiber.ended = false;
  fiber.copies.clear();
  fiber.group = 0;
  Context& context = fiber.context;
  if (context.at != nullptr) return;
  std::byte* top = stacks_.give(fiber.index, context);
  context.at = fc::make_fcontext(top, context.size, enter);
#if defined(__SANITIZE_THREAD__)
  context.fiber = __tsan_create_fiber(0);
#endif
}

/// After an error: stacks of threads that will never end.
void Engine::forget_fibers() {
  for (Fiber& fiber : fibers_) {
    Context& context = fiber.context;
    if (context.at == nullptr) continue;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(context.bottom, context.size);
#elif defined(__SANITIZE_THREAD__)
    __tsan_destroy_fiber(context.fiber);
#endif
    context = {};
  }
}

/// No thread can run, and not all have ended.
void Engine::stuck() const {
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int t = 0; t < place.block_threads; ++t) {
    const std::string what = fibers_[t].ended ? "ended" : "wait at " + fibers_[t].point.text();
    auto found = std::ranges::find(groups, what, &std::pair<std::string, std::vector<int>>::first);
    if (found == groups.end()) found = groups.insert(groups.end(), {what, {}});
    found->second.push_back(t);
  }
  std::string others;
  std::vector<std::string> details;
  for (const auto& [what, threads] : groups) {
    others += fmt::format("{}{} {}", others.empty() ? "" : ", ", threads.size(), what);
    std::string line = what + ": thread";
    for (size_t i = 0; i < std::min<size_t>(threads.size(), 16); ++i) line += fmt::format(" {}", threads[i]);
    details.push_back(line + (threads.size() > 16 ? " ..." : ""));
  }
  throw Error(
      fmt::format("{}: the threads of the block wait for what never comes: {}", kernel_place(), others),
      details);
}

void Engine::run_block(uint64_t seed) {
  random_ = Random(seed);
  ended_ = arrived_ = turn_ = runnable_count_ = 0;
  any_ = {};
  std::memset(place.shared, kPoison, static_cast<size_t>(place.shared_bytes));
  for (int t = 0; t < place.block_threads; ++t) prepare(fibers_[t]);
  for (int w = 0; w < place.block_threads / traits_.wave; ++w) {
    waves_[w].first = w * traits_.wave;
    waves_[w].arrived = waves_[w].turn = 0;
  }
  wake_all();
  Fiber* first = draw();
  running = first;
  switch_context(launcher_, first->context);
  if (error_ != nullptr) std::rethrow_exception(std::exchange(error_, nullptr));
  if (ended_ != place.block_threads) stuck();
}

void Engine::run(const Traits& traits, const char* name, Stream& stream, Grid grid, int threads,
                 int shared_bytes, void (*call)(const void*), const void* kernel) {
  const auto refuse = [&](const std::string& why) { fail("{}: kernel {}: {}", traits.name, name, why); };
  if (threads <= 0 || threads > kMaxThreads || threads % traits.wave != 0)
    refuse(
        fmt::format("{} threads a block, of at most {} in waves of {}", threads, kMaxThreads, traits.wave));
  if (shared_bytes < 0 || shared_bytes > traits.max_shared_bytes)
    refuse(fmt::format("{} bytes of shared memory, of at most {}", shared_bytes, traits.max_shared_bytes));
  if (grid.x > 0x7fffffffu || grid.y > 0xffffu || grid.z > 0xffffu)
    refuse(fmt::format("a grid of ({}, {}, {}) blocks, of at most (2^31 - 1, 65535, 65535)", grid.x, grid.y,
                       grid.z));

  if (shared_ == nullptr || shared_room_ < static_cast<size_t>(shared_bytes)) {
    shared_room_ = (static_cast<size_t>(shared_bytes) / 128 + 1) * 128;
    shared_.reset(static_cast<std::byte*>(std::aligned_alloc(128, shared_room_)));
    if (shared_ == nullptr) throw std::bad_alloc();
  }
  traits_ = traits;
  name_ = name;
  call_ = call;
  kernel_ = kernel;
  place = {threads, grid, {}, shared_.get(), shared_bytes};
#if defined(__SANITIZE_THREAD__)
  launcher_.fiber = __tsan_get_current_fiber();
#endif
  for (int t = 0; t < threads; ++t) fibers_[t].index = t;

  const uint64_t seed = mix(stream.seed + mix(stream.launches++));
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order(blocks);
  Random random(seed);
  for (uint64_t i = 0; i < blocks; ++i) {  // a random permutation
    const uint64_t j = random.below(static_cast<uint32_t>(i + 1));
    order[i] = order[j];
    order[j] = i;
  }
  try {
    for (const uint64_t b : order) {
      place.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                     static_cast<unsigned>(b / grid.x / grid.y)};
      run_block(mix(seed + b));
    }
  } catch (...) {
    running = nullptr;
    forget_fibers();
    throw;
  }
}

}  // namespace

void barrier(Where where) { engine().wait_block({Wait::barrier, where}); }
bool block_any(bool condition, Where where) { return engine().any(condition, {Wait::block_any, where}); }
void wave_barrier(Where where) { engine().wait_wave({Wait::wave_barrier, where}); }
uint32_t shuffle(uint32_t value, int from, Where where) {
  return engine().shuffle(value, from, {Wait::shuffle, where});
}
void multiply(float* c, const uint32_t* a, const uint32_t* b, bool bf16, const MatrixUnit& unit,
              Where where) {
  engine().multiply({c, a, b}, bf16, unit, {bf16 ? Wait::multiply_bf16 : Wait::multiply, where});
}

void copy_async16(std::byte* to, const void* from, bool valid) {
  if (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0) misaligned(from, 16);
  std::memset(to, kPoison, 16);
  Fiber& own = self();
  own.copies.push_back({to, valid ? from : nullptr, own.group});
}

void copy_commit() { ++self().group; }

void copy_wait(int left) {
  Fiber& own = self();
  const auto waits = [&](const PendingCopy& copy) {
    return copy.group + static_cast<uint64_t>(left) < own.group;
  };
  for (const PendingCopy& copy : own.copies) {
    if (!waits(copy)) continue;
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, 16);
    } else {
      std::memcpy(copy.to, copy.from, 16);
    }
  }
  std::erase_if(own.copies, waits);
}

std::byte* shared_array(int64_t at, int64_t bytes) {
  if (bytes < 0 || at + bytes > place.shared_bytes)
    engine().wrong(fmt::format("{} bytes of shared memory from byte {} on; the launch gave the block {}",
                               bytes, at, place.shared_bytes));
  return place.shared + at;
}

void out_of_bounds(int64_t index, int64_t elements, int64_t count) {
  engine().wrong(elements > 1 ? fmt::format("elements {} .. {} of shared memory, of {} in the array", index,
                                            index + elements - 1, count)
                              : fmt::format("element {} of shared memory, of {} in the array", index, count));
}

void misaligned(const void* at, int bytes) {
  engine().wrong(fmt::format("a {}-byte access at {}, which is not aligned to it", bytes, at));
}

void run_grid(const Traits& traits, const char* name, void* stream, Grid grid, int threads, int shared_bytes,
              void (*call)(const void* kernel), const void* kernel) {
  thread_local const auto own = std::make_unique<Engine>();
  the_engine = own.get();
  Stream unseeded;
  own->run(traits, name, stream == nullptr ? unseeded : *static_cast<Stream*>(stream), grid, threads,
           shared_bytes, call, kernel);
}

}  // namespace greta::gpu::sim
