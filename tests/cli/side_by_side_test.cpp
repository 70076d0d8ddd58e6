// tools/side_by_side.py: the ratios that it prints are those of the programs' own figures, and what cannot be
// compared is refused. The peer is a script that answers as llama-bench does.
#include <sys/stat.h>

#include <cstdio>

#include "cli/run_binary.h"

namespace greta::test {
namespace {

class SideBySide : public CliTest {
 protected:
  /// An executable that prints `text`.
  std::string program(const std::string& name, const std::string& text) {
    const std::string path = folder / name;
    write_file(path, "#!/bin/sh\ncat <<'END'\n" + text + "\nEND\n");
    ::chmod(path.c_str(), 0755);
    return path;
  }

  Outcome compare(const std::string& arguments) {
    const std::string err = folder / "err";
    const std::string command =
        std::string(GRETA_SOURCE_DIR) + "/tools/side_by_side.py " + model + " " + arguments + " 2>" + err;
    Outcome outcome;
    FILE* pipe = ::popen(command.c_str(), "r");
    char buffer[4096];
    for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) outcome.out.append(buffer, n);
    outcome.status = WEXITSTATUS(::pclose(pipe));
    outcome.err = read_file(err);
    return outcome;
  }

  const std::string model = make_model("m.gguf");
  const std::string bench =
      R"([{"n_prompt":8,"n_gen":0,"avg_ts":50.0},{"n_prompt":0,"n_gen":2,"avg_ts":10.0}])";
};

TEST_F(SideBySide, RatiosAreOfTheProgramsOwnFigures) {
  const std::string ours =
      program("ours", R"({"rows":[{"test":"pp8","tokens_per_s":100.0},{"test":"tg2","tokens_per_s":5.0}]})");
  const Outcome run =
      compare("--pp 8 --tg 2 --rounds 3 --greta " + ours + " --peer fast=" + program("bench", bench));
  EXPECT_EQ(run.status, 0) << run.err;
  const auto lines = lines_of(run.out);
  ASSERT_EQ(lines.size(), 5u) << run.out;
  EXPECT_EQ(lines[2], "pp8      fast                         50.00       2.000   2.000 .. 2.000");
  EXPECT_EQ(lines[4], "tg2      fast                         10.00       0.500   0.500 .. 0.500");
}

TEST_F(SideBySide, RunsThisGreta) {
  const Outcome run = compare("--pp 8 --tg 2 --rounds 1 --threads 1 --greta " GRETA_BINARY " --peer stub=" +
                              program("bench", bench));
  EXPECT_EQ(run.status, 0) << run.err;
  EXPECT_EQ(lines_of(run.out).size(), 5u) << run.out;
}

TEST_F(SideBySide, WhatCannotBeComparedIsRefused) {
  const std::string greta = "--pp 8 --tg 2 --rounds 1 --threads 1 --greta " GRETA_BINARY " ";
  const Outcome none = compare(greta + "--peer gone=/none/llama-bench");
  EXPECT_EQ(none.status, 2);
  EXPECT_NE(none.err.find("cannot run /none/llama-bench"), std::string::npos) << none.err;
  const Outcome other = compare(greta + "--peer odd=" + program("odd", "not JSON"));
  EXPECT_EQ(other.status, 2);
  EXPECT_NE(other.err.find("printed no JSON"), std::string::npos) << other.err;
  const Outcome less =
      compare(greta + "--peer less=" + program("less", R"([{"n_prompt":8,"n_gen":0,"avg_ts":1}])"));
  EXPECT_EQ(less.status, 2);
  EXPECT_NE(less.err.find("less has no row tg2"), std::string::npos) << less.err;
  EXPECT_EQ(compare(greta + "--peer nothing").status, 2);
}

}  // namespace
}  // namespace greta::test
