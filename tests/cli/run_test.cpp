// greta run: text, seeds, stop strings, statistics, signals and broken outputs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <regex>
#include <thread>

#include "cli/run_binary.h"

namespace greta::test {
namespace {

using Json = nlohmann::json;

class Run : public CliTest {
 protected:
  std::string model = make_model("m.gguf", {"--context", "1M"});

  Outcome generate(const std::vector<std::string>& extra, const RunOptions& options = {}) const {
    std::vector<std::string> arguments = {"run", model};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    return greta_run(arguments, options);
  }
  Json json(std::vector<std::string> extra) const {
    extra.emplace_back("--json");
    const Outcome outcome = generate(extra);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return Json::parse(outcome.out);
  }
};

TEST_F(Run, SameSeedSameTextAnotherSeedAnother) {
  const std::vector<std::string> base = {"--prompt", "Hello", "--max-tokens", "40", "--ignore-eos"};
  const auto with = [&](std::vector<std::string> extra) {
    extra.insert(extra.begin(), base.begin(), base.end());
    return generate(extra);
  };
  const Outcome first = with({"--seed", "7"});
  EXPECT_EQ(first.status, 0) << first.err;
  const Outcome second = with({"--seed", "7", "--threads", "1", "--chunk", "2"});
  EXPECT_EQ(first.out, second.out);
  EXPECT_EQ(hash_in(first.err), hash_in(second.err));
  EXPECT_EQ(hash_in(first.err).size(), 16u);
  EXPECT_NE(with({"--seed", "8"}).out, first.out);

  const Outcome drawn = with({});  // the seed that it prints gives the text again
  const size_t at = drawn.err.find("--seed ");
  ASSERT_NE(at, std::string::npos) << drawn.err;
  const std::string seed = drawn.err.substr(at + 7, drawn.err.find(' ', at + 7) - at - 7);
  EXPECT_EQ(with({"--seed", seed}).out, drawn.out);
  EXPECT_NE(with({}).out, drawn.out);  // one in 2^32 of failing
}

TEST_F(Run, StreamsAndStatisticsAreWhereTheyBelong) {
  const Outcome outcome = generate({"--prompt", "Hello", "--max-tokens", "12", "--ignore-eos", "--greedy"});
  EXPECT_FALSE(outcome.out.empty());
  EXPECT_EQ(outcome.out.back(), '\n');
  EXPECT_EQ(outcome.out.find("greta"), std::string::npos);
  const std::string last = lines_of(outcome.err).back();
  EXPECT_TRUE(std::regex_search(
      last, std::regex("7 prompt tokens at .* tokens/s; 11 decoded at .* tokens/s: .* GB/s, "
                       ".* of the .* GB/s that .* from a buffer of .*; length; "
                       "logits hash [0-9a-f]{16}$")))
      << last;
  EXPECT_EQ(outcome.err.find('\r'), std::string::npos) << "a bar although standard error is no terminal";
  EXPECT_NE(outcome.err.find("weights as stored"), std::string::npos);
  EXPECT_NE(outcome.err.find("KV cache f16"), std::string::npos);
  EXPECT_NE(outcome.err.find("context 19"), std::string::npos) << "prompt + max-tokens: " << outcome.err;
  const Outcome eight =
      generate({"--prompt", "Hello", "--max-tokens", "2", "--activations", "8", "--seed", "1"});
  EXPECT_NE(lines_of(eight.err).back().find("activations 8"), std::string::npos) << eight.err;
  const Outcome quiet = generate({"--prompt", "Hello", "--max-tokens", "2", "--quiet", "--seed", "1"});
  EXPECT_EQ(quiet.err, "");
  const Outcome verbose = generate({"--prompt", "Hello", "--max-tokens", "2", "--verbose", "--seed", "1"});
  for (const char* part : {"commit", "norm epsilon", "KV cache"})
    EXPECT_NE(verbose.err.find(part), std::string::npos) << part << " in " << verbose.err;
}

TEST_F(Run, ABarOnATerminalAndNoneWhereItIsQuiet) {
  write_file(folder / "long", std::string(3000, 'x'));
  const std::vector<std::string> slow = {"--prompt-file", folder / "long", "--max-tokens", "1",
                                         "--chunk",       "100",           "--device",     "reference",
                                         "--greedy"};
  RunOptions terminal;
  terminal.terminal_error = true;
  const Outcome shown = generate(slow, terminal);
  EXPECT_EQ(shown.status, 0);
  EXPECT_NE(shown.err.find("\rprefill ["), std::string::npos) << shown.err;
  EXPECT_GT(shown.err.rfind("\r\x1b[K"), shown.err.rfind("\rprefill [")) << "the bar was not wiped";
  auto quiet = slow;
  quiet.emplace_back("--quiet");
  EXPECT_EQ(generate(quiet, terminal).err, "");
  EXPECT_EQ(generate(slow).err.find('\r'), std::string::npos);
}

TEST_F(Run, JsonIsOneDocument) {
  const Json document =
      json({"--prompt", "Hi", "--max-tokens", "6", "--ignore-eos", "--seed", "3", "--logprobs", "2"});
  EXPECT_EQ(document["ids"].size(), 6u);
  EXPECT_EQ(document["prompt_ids"].size(), 4u);
  EXPECT_EQ(document["finish_reason"], "length");
  ASSERT_EQ(document["logprobs"].size(), 6u);
  EXPECT_EQ(document["logprobs"][0]["id"], document["ids"][0]);
  EXPECT_EQ(document["logprobs"][0]["top"].size(), 2u);
  EXPECT_LE(document["logprobs"][0]["logprob"].get<double>(), 0.0);
  EXPECT_EQ(document["logits_hash"].get<std::string>().size(), 16u);
  EXPECT_EQ(document["stats"]["seed"], 3);
  EXPECT_EQ(document["stats"]["decoded_tokens"], 5);
  EXPECT_TRUE(json({"--prompt", "Hi", "--max-tokens", "1", "--seed", "1"})["logprobs"].is_null());
}

TEST_F(Run, PromptsFromEverywhereAreTheSame) {
  const std::vector<std::string> rest = {"--max-tokens", "5", "--greedy", "--ignore-eos"};
  const auto with = [&](std::vector<std::string> prompt, const RunOptions& options = {}) {
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    prompt.emplace_back("--json");
    return Json::parse(generate(prompt, options).out);
  };
  const std::string text = "Grüße\n";
  write_file(folder / "prompt", text);
  const Json direct = with({"--prompt", text});
  EXPECT_EQ(with({"--prompt-file", folder / "prompt"})["ids"], direct["ids"]);
  EXPECT_EQ(with({"--prompt-file", "-"}, with_input(text))["logits_hash"], direct["logits_hash"]);
  const std::string ids = fmt::format("{}", fmt::join(direct["prompt_ids"].get<std::vector<int>>(), ","));
  EXPECT_EQ(with({"--token-ids", ids})["logits_hash"], direct["logits_hash"]);
  EXPECT_NE(with({"--prompt", "Grüße"})["logits_hash"], direct["logits_hash"]);
  EXPECT_EQ(with({"--prompt-file", "/dev/stdin"}, with_input(text))["ids"], direct["ids"]);
}

/// The bits of a token depend on nothing that comes after it: not on how many tokens are asked for, either.
TEST_F(Run, LongRotaryFactorsAreTheContextsChoice) {
  model = make_model("phi3.gguf", {"--arch", "phi3", "--rope-scaling", "longrope:4:64"});
  const auto first = [&](const std::string& tokens, std::vector<std::string> more = {}) {
    more.insert(more.end(), {"--token-ids", "100,101,102", "--greedy", "--ignore-eos", "--logprobs", "0",
                             "--max-tokens", tokens});
    return json(more)["logprobs"][0]["logprob"].get<double>();
  };
  EXPECT_EQ(first("61"), first("62"));  // 64 and 65 positions
  EXPECT_EQ(first("1"), first("62"));
  EXPECT_EQ(first("1", {"--context", "65"}), first("1"));
  EXPECT_NE(first("1", {"--context", "64"}), first("1"));
}

TEST_F(Run, AStreamThatWouldBlockIsWaitedFor) {
  RunOptions options;
  options.prepare = [] { ::fcntl(1, F_SETFL, ::fcntl(1, F_GETFL) | O_NONBLOCK); };
  bool begun = false;
  options.watch = [&](pid_t, const std::string& out, const std::string&) {
    if (!begun && !out.empty())
      std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the pipe fills
    begun = begun || !out.empty();
  };
  const Outcome outcome = greta_run({"--help-markdown"}, options);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  const Outcome many =
      greta_run({"tokenize", model, "--prompt", std::string(100000, 'x'), "--json"}, options);
  EXPECT_EQ(many.status, 0) << many.err;
  EXPECT_GT(many.out.size(), size_t{1} << 17);
}

TEST_F(Run, AClosedStandardInputIsNoFile) {
  RunOptions options;
  options.prepare = [] { ::close(0); };
  const Outcome outcome = generate({"--prompt-file", "-", "--max-tokens", "1"}, options);
  EXPECT_EQ(outcome.status, 2);
  EXPECT_NE(outcome.err.find("cannot read standard input"), std::string::npos) << outcome.err;
}

TEST_F(Run, EightBitsOfNothingAreRefused) {
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--prompt", "Hi", "--max-tokens", "1", "--activations", "8"});
    return generate(more);
  };
  EXPECT_EQ(with({}).status, 0);
  model = make_model("f16.gguf", {"--type", "f16"});
  const Outcome refused = with({});
  EXPECT_EQ(refused.status, 2);
  EXPECT_NE(refused.err.find("--activations: expected 16, as the file has no integer weights, got 8"),
            std::string::npos)
      << refused.err;
  EXPECT_EQ(with({"--weights", "int8"}).status, 0);
}

TEST_F(Run, StopStringsAcrossTokenBorders) {
  const std::vector<std::string> base = {"--prompt", "Hello", "--max-tokens", "60", "--ignore-eos",
                                         "--seed",   "2"};
  const auto with = [&](std::vector<std::string> extra) {
    extra.insert(extra.begin(), base.begin(), base.end());
    return json(extra);
  };
  const Json whole = with({});
  const std::string text = whole["text"];
  // Ids of a byte vocabulary are about a byte each, so any stretch of a few plain characters spans tokens.
  size_t at = std::string::npos;
  for (size_t i = 8; i + 3 < text.size() && at == std::string::npos; ++i) {
    const std::string candidate = text.substr(i, 3);
    if (std::all_of(candidate.begin(), candidate.end(), [](char c) { return c > ' ' && c < 0x7f; }) &&
        text.find(candidate) == i)
      at = i;
  }
  ASSERT_NE(at, std::string::npos) << text;
  const std::string stop = text.substr(at, 3);
  const Json stopped = with({"--stop", "never-there", "--stop", stop});
  EXPECT_EQ(stopped["finish_reason"], "stop_string");
  EXPECT_EQ(stopped["text"], text.substr(0, at));
  EXPECT_LT(stopped["ids"].size(), whole["ids"].size());
  std::vector<std::string> streamed = base;
  streamed.insert(streamed.end(), {"--stop", stop});
  const std::string out = generate(streamed).out;
  EXPECT_EQ(out.find(stop), std::string::npos) << "part of a stop string was shown";
}

TEST_F(Run, ContextEndsTheText) {
  const Json document =
      json({"--prompt", "Hello", "--max-tokens", "50", "--context", "10", "--ignore-eos", "--seed", "1"});
  EXPECT_EQ(document["finish_reason"], "context");
}

TEST_F(Run, CtrlCKeepsTheTextAndPrintsStatistics) {
  bool sent = false;
  RunOptions options;
  options.watch = [&](pid_t process, const std::string& out, const std::string&) {
    if (!sent && out.size() > 20) {
      sent = true;
      ::kill(process, SIGINT);
    }
  };
  const Outcome outcome =
      generate({"--prompt", "Hello", "--max-tokens", "900k", "--ignore-eos", "--seed", "1"}, options);
  ASSERT_TRUE(sent);
  EXPECT_EQ(outcome.status, 130);
  EXPECT_GT(outcome.out.size(), 20u);
  EXPECT_NE(lines_of(outcome.err).back().find("cancelled; logits hash "), std::string::npos) << outcome.err;
}

/// A shell's background job does not hear its Ctrl-C.
TEST_F(Run, AnIgnoredCtrlCStaysIgnored) {
  RunOptions options;
  options.prepare = [] { ::signal(SIGINT, SIG_IGN); };
  bool sent = false;
  options.watch = [&](pid_t process, const std::string& out, const std::string&) {
    if (!sent && !out.empty()) ::kill(process, SIGINT);
    sent = sent || !out.empty();
  };
  const Outcome outcome =
      generate({"--prompt", "Hello", "--max-tokens", "500", "--ignore-eos", "--seed", "1"}, options);
  ASSERT_TRUE(sent);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
}

TEST_F(Run, CtrlCBehindTheLastTokenKeepsAll) {
  // The limit's buffer is filled and read behind the last token: the signal comes then.
  bool sent = false;
  RunOptions options;
  options.watch = [&](pid_t process, const std::string& out, const std::string&) {
    if (!sent && out.ends_with('\n')) {
      sent = true;
      ::kill(process, SIGINT);
    }
  };
  const Outcome outcome = generate(
      {"--prompt", "Hello", "--max-tokens", "1", "--ignore-eos", "--seed", "1", "--stop", "never there"},
      options);
  ASSERT_TRUE(sent);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(hash_in(outcome.err).size(), 16u) << outcome.err;
}

TEST_F(Run, ASecondCtrlCEndsAtOnce) {
  // One call over 20,000 tokens on the slow device: nothing looks at the flag before it is over.
  write_file(folder / "long", std::string(20000, 'x'));
  int sent = 0;
  std::chrono::steady_clock::time_point first;
  RunOptions options;
  options.seconds = 30;
  options.watch = [&](pid_t process, const std::string&, const std::string& err) {
    const auto now = std::chrono::steady_clock::now();
    if (sent == 0 && err.find(", loaded ") != std::string::npos) {
      if (first == std::chrono::steady_clock::time_point()) first = now;
      if (now - first < std::chrono::milliseconds(300)) return;  // it is in the call by now
      sent = 1;
      first = now;
      ::kill(process, SIGINT);
    } else if (sent == 1 && now - first > std::chrono::milliseconds(300)) {
      sent = 2;
      ::kill(process, SIGINT);
    }
  };
  const Outcome outcome = generate({"--prompt-file", folder / "long", "--max-tokens", "1", "--chunk", "20000",
                                    "--device", "reference", "--greedy"},
                                   options);
  EXPECT_EQ(sent, 2) << "the first signal ended it, or it was done before: " << outcome.err;
  EXPECT_EQ(outcome.status, 130);
  EXPECT_EQ(hash_in(outcome.err), "");
}

TEST_F(Run, AClosedPipeEndsQuietly) {
  RunOptions options;
  options.close_pipe_after = 10;
  const Outcome outcome =
      generate({"--prompt", "Hello", "--max-tokens", "900k", "--ignore-eos", "--seed", "1"}, options);
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.err.find("rror"), std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("cannot"), std::string::npos) << outcome.err;
  options.close_pipe_after = 0;
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"--help"},
                                                    {"tokenize", model, "--prompt", "abc"},
                                                    {"inspect", model, "--json"}}) {
    const Outcome short_one = greta_run(arguments, options);
    EXPECT_EQ(short_one.status, 0);
    EXPECT_EQ(short_one.err, "");
  }
}

TEST_F(Run, AnUnwritableOutputIsAnError) {
  RunOptions full;
  full.stdout_path = "/dev/full";
  RunOptions closed;
  closed.close_stdout = true;
  for (const RunOptions* options : {&full, &closed})
    for (const std::vector<std::string>& arguments :
         {std::vector<std::string>{"run", model, "--prompt", "Hello", "--max-tokens", "900k", "--seed", "1",
                                   "--ignore-eos"},
          {"run", model, "--prompt", "Hello", "--max-tokens", "3", "--seed", "1", "--json"},
          {"tokenize", model, "--prompt", "abc"},
          {"check", model},
          {"--version"}}) {
      const Outcome outcome = greta_run(arguments, *options);
      EXPECT_EQ(outcome.status, 2) << arguments[0];
      EXPECT_NE(outcome.err.find("cannot write to standard output"), std::string::npos) << outcome.err;
    }
}

TEST_F(Run, AnUnwritableFileIsAnErrorAndNothingIsLeft) {
  const std::string target = folder / "dir";
  std::filesystem::create_directory(target);
  for (const std::string& path :
       {folder / "missing/x", target, std::string("/dev/full"), std::string("/proc/x")}) {
    const Outcome made = greta_run({"synth", "-o", path, "--dim", "64", "--vocab", "300"});
    EXPECT_EQ(made.status, 2) << path;
    EXPECT_NE(made.err.find(path), std::string::npos) << made.err;
    const Outcome traced = greta_run({"trace", model, "--prompt", "a", "-o", path});
    EXPECT_EQ(traced.status, 2) << path;
    EXPECT_NE(traced.err.find(path), std::string::npos) << traced.err;
  }
  EXPECT_EQ(files(), (std::vector<std::string>{"dir", "m.gguf"}));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
}

TEST_F(Run, CtrlCInSynthLeavesNothing) {
  bool sent = false;
  RunOptions options;
  options.watch = [&](pid_t process, const std::string&, const std::string&) {
    if (sent || files().size() < 2) return;
    sent = true;
    ::kill(process, SIGINT);
  };
  // The watch is called every 100 ms at least; this model takes seconds.
  const Outcome outcome = greta_run(
      {"synth", "-o", folder / "big.gguf", "--dim", "2048", "--layers", "40", "--type", "q8_0"}, options);
  ASSERT_TRUE(sent) << outcome.err;
  EXPECT_EQ(outcome.status, 130);
  EXPECT_EQ(files(), std::vector<std::string>{"m.gguf"});
}

}  // namespace
}  // namespace greta::test
