#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "base/checked.h"
#include "base/error.h"
#include "base/half.h"
#include "base/mapped_file.h"
#include "base/system.h"
#include "base/text.h"
#include "base/thread_pool.h"
#include "support.h"
#include "temporary_folder.h"

namespace greta {
namespace {

TEST(Half, EveryF16IsReadExactlyAndWrittenBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    const float f = f16_to_f32(h);
    const int exponent = (h >> 10) & 31;
    const int mantissa = h & 1023;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(f), mantissa != 0);
      if (mantissa == 0) EXPECT_TRUE(std::isinf(f));
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      ASSERT_EQ(double{f}, (h & 0x8000) != 0 ? -magnitude : magnitude) << bits;
    }
    if (!std::isnan(f)) ASSERT_EQ(f32_to_f16(f), h) << bits;
  }
}

/// The nearest of all f16 by distance in double, ties to the even mantissa.
TEST(Half, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits + 1 < 0x7c00; ++bits) {
    const double low = f16_to_f32(static_cast<uint16_t>(bits));
    const double high = f16_to_f32(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(f32_to_f16(middle), (bits & 1) == 0 ? bits : bits + 1) << bits;
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, 1e6f)), bits + 1);
  }
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-INFINITY), 0xfc00);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(NAN))));
}

TEST(Half, Bf16RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie, to even
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x7f7fffffu)), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Checked, OverflowIsAnAnswer) {
  EXPECT_EQ(checked_add(UINT64_MAX, 1), std::nullopt);
  EXPECT_EQ(checked_mul(1ull << 33, 1ull << 31), std::nullopt);
  EXPECT_EQ(checked_mul(1ull << 32, 1ull << 31), 1ull << 63);
  EXPECT_EQ(checked_align(33, 32), 64u);
  EXPECT_EQ(checked_align(UINT64_MAX - 3, 32), std::nullopt);
}

class Pool : public testing::TestWithParam<int> {};

TEST_P(Pool, CoversEveryItemOnce) {
  ThreadPool pool(GetParam());
  for (int64_t count : {0, 1, 2, 7, 1000}) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
    pool.parallel_for(count, 3, [&](int64_t begin, int64_t end, int worker) {
      ASSERT_LE(end - begin, 3);
      ASSERT_TRUE(worker >= 0 && worker < pool.size());
      for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
    });
    for (const auto& times : seen) ASSERT_EQ(times.load(), 1);
  }
}

TEST_P(Pool, AWalkCoversEveryItemOnce) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 300; ++round) {
    for (const int64_t count : {0, 1, 2, 7, 200}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      pool.parallel_walk(count, 1 + round % 3, [&](int64_t begin, int64_t end, int worker) {
        ASSERT_TRUE(worker >= 0 && worker < pool.size());
        for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
      });
      for (const auto& times : seen) ASSERT_EQ(times.load(), 1);
    }
  }
}

/// Owners and thieves at one stretch at the same time: many short walks, as a decode step makes them.
TEST_P(Pool, ManyShortWalksLoseAndRepeatNothing) {
  ThreadPool pool(GetParam());
  constexpr int64_t kItems = 512;
  std::vector<std::atomic<int>> seen(kItems);
  for (int round = 1; round <= 4'000; ++round) {
    pool.parallel_walk(kItems, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        seen[static_cast<size_t>(i)].fetch_add(1, std::memory_order_relaxed);
    });
    for (const auto& times : seen) ASSERT_EQ(times.load(std::memory_order_relaxed), round);
  }
}

/// Memory can only be asked for ahead by the thread that will read it: each begins at its own part, and those
/// that are asleep are waited for by nobody but this test.
TEST_P(Pool, AWalkBeginsWithEachWorkersOwnPart) {
  ThreadPool pool(GetParam());
  const int64_t count = 100 * pool.size();
  const std::vector<std::byte> memory(5'000);
  const std::vector<ThreadPool::Memory> ahead(static_cast<size_t>(pool.size()), memory);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::atomic<int64_t>> first(static_cast<size_t>(pool.size()));
    std::atomic<int> began{0};
    for (auto& item : first) item = -1;
    pool.parallel_walk(
        count, 1,
        [&](int64_t begin, int64_t, int worker) {
          int64_t none = -1;
          if (!first[static_cast<size_t>(worker)].compare_exchange_strong(none, begin)) return;
          ++began;
          while (began.load() < pool.size()) std::this_thread::yield();
        },
        ahead);
    for (int i = 0; i < pool.size(); ++i) ASSERT_EQ(first[static_cast<size_t>(i)].load() / 100, i);
  }
}

/// The last items wait for one another's threads: a thread that is held up does not hold its stretch.
TEST_P(Pool, AWalkTakesWhatASlowThreadHasLeft) {
  ThreadPool pool(GetParam());
  if (pool.size() == 1) return;
  std::atomic<int> others{0};
  pool.parallel_walk(100, 1, [&](int64_t begin, int64_t end, int) {
    others += static_cast<int>(end - begin);
    if (begin > 0) return;
    ASSERT_LE(end, 100 / pool.size() / 3 + 1);
    while (others.load() < 100) std::this_thread::yield();  // for ever, were the rest of its stretch its own
  });
  EXPECT_EQ(others.load(), 100);
}

/// Loops that come when the workers have lain down, and end long after the caller has: every one is woken. A
/// pool beside it has sleepers of its own.
TEST_P(Pool, WhoSleepsIsWoken) {
  using namespace std::chrono_literals;
  ThreadPool pool(GetParam()), other(3);
  for (int round = 0; round < 60; ++round) {
    if (round % 4 == 0) other.parallel_for(3, 1, [](int64_t, int64_t, int) {});
    std::this_thread::sleep_for(round % 3 * 300us);
    std::vector<std::atomic<bool>> came(static_cast<size_t>(pool.size()));
    std::atomic<int> awake{0};
    const auto deadline = std::chrono::steady_clock::now() + 20s;
    pool.parallel_walk(pool.size(), 1, [&](int64_t, int64_t, int worker) {
      if (!came[static_cast<size_t>(worker)].exchange(true)) ++awake;
      while (awake.load() < pool.size() && std::chrono::steady_clock::now() < deadline)
        std::this_thread::yield();
      if (worker != 0) std::this_thread::sleep_for(400us);
    });
    ASSERT_EQ(awake.load(), pool.size()) << "round " << round << ": somebody slept through it";
  }
}

TEST_P(Pool, ManyShortLoopsSeeEachOthersWrites) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> values(64, 0);
  for (int round = 0; round < 2'000; ++round)
    pool.parallel_for(64, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] += i;
    });
  for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(values[static_cast<size_t>(i)], i * 2'000);
}

TEST_P(Pool, ABodysExceptionReachesTheCallerAndThePoolGoesOn) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 100; ++round)
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [](int64_t begin, int64_t, int) {
                                     if (begin == 57) throw std::runtime_error("57");
                                   }),
                 std::runtime_error);
  std::atomic<int> done{0};
  pool.parallel_for(100, 1, [&](int64_t, int64_t, int) { ++done; });
  EXPECT_EQ(done, 100);
}

INSTANTIATE_TEST_SUITE_P(Threads, Pool, testing::Values(1, 2, 3, 8));

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
TEST(PoolDeathTest, ThreadsThatTheSystemRefusesAreAnError) {
  const auto start = [] {
    const rlimit room{1u << 30, 1u << 30};  // a stack takes megabytes of it
    ::setrlimit(RLIMIT_AS, &room);
    try {
      const ThreadPool pool(4096);
    } catch (const Error& error) {
      std::fputs(error.what(), stderr);
      std::_Exit(3);
    }
  };
  EXPECT_EXIT(start(), testing::ExitedWithCode(3),
              "--threads 4096: expected 4096 threads, got [0-9]+, then the system refused \\(.+\\); ask for "
              "fewer");
}
#endif

TEST(Text, FindsTheFirstByteThatIsNoUtf8) {
  EXPECT_EQ(find_invalid_utf8("a\u00e9\u20ac\U0001f600 and more than eight bytes"), std::nullopt);
  const struct {
    const char* text;
    size_t at;
  } cases[] = {{"abcdefghij\xff", 10}, {"a\x80", 1},        {"\xc0\x80", 0},
               {"\xe0\x80\x80", 0},    {"\xed\xa0\x80", 0}, {"\xf4\x90\x80\x80", 0},
               {"x\xe2\x82", 1},       {"x\xe2\x82y", 1},   {"\xc3\xa9\xf0\x80\x80\x80", 2}};
  for (const auto& c : cases) EXPECT_EQ(find_invalid_utf8(c.text), c.at) << c.text;
}

TEST(Text, PrintableIsFitForATerminal) {
  EXPECT_EQ(printable("a\u00e9 \x1b[31m\n\x7f"), "a\u00e9 \\x1b[31m\\x0a\\x7f");
  EXPECT_EQ(printable("\xff\xfe"
                      "b\xe2\x82"),
            "\\xff\\xfe"
            "b\\xe2\\x82");
  EXPECT_EQ(printable("\xc2\x9b[31m \xc2\xa0"), "\\xc2\\x9b[31m \xc2\xa0") << "a terminal obeys U+009B";
  EXPECT_EQ(printable(""), "");
  EXPECT_EQ(printable("abcd", 4), "abcd");
  EXPECT_EQ(printable("abcde", 4), "abcd...");
  EXPECT_EQ(printable("abc\u20ac", 3), "abc...");
  EXPECT_EQ(printable("abc\u20ac", 5), "abc...") << "not in the middle of a character";
  EXPECT_EQ(printable("abc\u20ac", 6), "abc\u20ac");
  EXPECT_EQ(printable(std::string(9, '\x80'), 6), "\\x80\\x80\\x80...") << "no character to end before";
}

TEST(MappedFile, NamesWhatIsWrong) {
  const test::TemporaryFolder folder;
  const auto message = [](const std::string& path) {
    try {
      const MappedFile file(path);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message(folder / "absent").find("No such file"), std::string::npos);
  EXPECT_NE(message(folder / ".").find("it is a directory"), std::string::npos);
  std::filesystem::create_symlink("nowhere", folder / "link");
  EXPECT_NE(message(folder / "link").find("link -> nowhere"), std::string::npos);
  EXPECT_NE(message("/dev/null").find("not a regular file"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_NE(message(folder / "pipe").find("not a regular file"), std::string::npos) << "and nobody waits";
}

/// As a shell's <(command) names one, and as a parent with an event loop leaves one.
TEST(WholeFile, IsReadFromAPipe) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  std::thread writer([&] {
    for (const char* part : {"GRE", "TA"}) {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));  // the reader has nothing until then
      EXPECT_EQ(::write(ends[1], part, std::strlen(part)), static_cast<ssize_t>(std::strlen(part)));
    }
    ::close(ends[1]);
  });
  const int kept = ::dup(STDIN_FILENO);
  ::dup2(ends[0], STDIN_FILENO);  // opened anew, as /dev/fd/N, it would block
  EXPECT_EQ(read_whole_file("-"), "GRETA");
  ::dup2(kept, STDIN_FILENO);
  ::close(kept);
  writer.join();
  ::close(ends[0]);
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  EXPECT_EQ(::write(ends[1], "GRETA", 5), 5);
  ::close(ends[1]);
  EXPECT_EQ(read_whole_file("/dev/fd/" + std::to_string(ends[0])), "GRETA");
  ::close(ends[0]);
}

/// Cut off, the mapping is a fault to touch: read() says so instead.
TEST(MappedFile, ReadsPastTheMapping) {
  const test::TemporaryFolder folder;
  std::vector<std::byte> bytes(50'000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 256);
  write_whole_file(folder / "file", bytes);
  auto opened = std::make_unique<MappedFile>(folder / "file");
  const MappedFile file = std::move(*opened);
  opened.reset();
  const auto read = [&](size_t first, size_t count) {
    std::vector<std::byte> to(count);
    file.read(file.bytes().subspan(first, count), to.data());
    return to;
  };
  EXPECT_TRUE(std::ranges::equal(read(4'097, 30'000), std::span(bytes).subspan(4'097, 30'000)));
  EXPECT_TRUE(read(50'000, 0).empty());
  std::filesystem::resize_file(folder / "file", 8'192);
  EXPECT_TRUE(std::ranges::equal(read(1, 8'191), std::span(bytes).subspan(1, 8'191)));
  try {
    read(8'000, 20'000);
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("it had 50000 bytes when it was opened and ends at byte 8192 now"),
              std::string::npos)
        << e.what();
  }
}

TEST(MappedFile, WholeOrAbsent) {
  const test::TemporaryFolder folder;
  const std::string text = "GRETA";
  write_whole_file(folder / "out", std::as_bytes(std::span(text)));
  EXPECT_EQ(read_whole_file(folder / "out"), text);
  EXPECT_EQ(sha256_hex(MappedFile(folder / "out").bytes()),
            "4ac51b6a3da168c4d3976e21300ba4a0e928dc4f3cf2a316477b2f75684b664d");
  EXPECT_THROW(write_whole_file(folder / "absent/out", std::as_bytes(std::span(text))), Error);
  EXPECT_THROW(write_whole_file("/dev/null", std::as_bytes(std::span(text))), Error);
  EXPECT_FALSE(std::filesystem::is_regular_file("/dev/null"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder / ""), {}), 1);
}

TEST(System, CachedFilesOfACgroupAreAvailable) {
  const test::TemporaryFolder folder;
  const std::string root = folder.path().string();
  std::filesystem::create_directories(root + "/proc");
  std::filesystem::create_directories(root + "/sys/fs/cgroup");
  const auto put = [&](const std::string& path, const std::string& text) {
    std::ofstream(root + path) << text;
  };
  EXPECT_EQ(available_memory(root), UINT64_MAX);
  put("/proc/meminfo", "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    9000 kB\n");
  EXPECT_EQ(available_memory(root), 9000u * 1024);
  put("/sys/fs/cgroup/memory.max", "max\n");
  put("/sys/fs/cgroup/memory.current", "5000000\n");
  EXPECT_EQ(available_memory(root), 9000u * 1024);
  put("/sys/fs/cgroup/memory.max", "6000000\n");
  EXPECT_EQ(available_memory(root), 1000000u);
  // A model that an earlier run has mapped, most of it: as good as free.
  put("/sys/fs/cgroup/memory.stat",
      "anon 500000\nfile 4400000\ninactive_anon 500000\ninactive_file 4000000\nactive_file 300000\n");
  EXPECT_EQ(available_memory(root), 5300000u);
  put("/sys/fs/cgroup/memory.current", "100\n");  // read a moment later
  EXPECT_EQ(available_memory(root), 6000000u);
  put("/sys/fs/cgroup/memory.stat", "");
  put("/sys/fs/cgroup/memory.current", "7000000\n");
  EXPECT_EQ(available_memory(root), 0u);
}

TEST(System, SaysSomethingPlausible) {
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_GT(available_memory(), 1u << 20);
  EXPECT_GT(resident_memory(), 1u << 16);
}

}  // namespace
}  // namespace greta
