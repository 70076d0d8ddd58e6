#include "cli/options.h"

#include <array>

namespace greta::cli {
namespace {

constexpr CommandSet kRun = set_of(Command::run);
constexpr CommandSet kCheck = set_of(Command::check);
constexpr CommandSet kInspect = set_of(Command::inspect);
constexpr CommandSet kTokenize = set_of(Command::tokenize);
constexpr CommandSet kBench = set_of(Command::bench);
constexpr CommandSet kSynth = set_of(Command::synth);
constexpr CommandSet kTrace = set_of(Command::trace);
constexpr CommandSet kBisect = set_of(Command::bisect);
constexpr CommandSet kVerify = set_of(Command::verify);
constexpr CommandSet kDevices = set_of(Command::devices);
constexpr CommandSet kCompletion = set_of(Command::completion);
constexpr CommandSet kTop = set_of(Command::top);

/// Commands that put a model on a device (check plans it).
constexpr CommandSet kModel = kRun | kCheck | kBench | kTrace | kBisect | kVerify;
constexpr CommandSet kPrompt = kRun | kTokenize | kTrace;
constexpr CommandSet kReports =
    kRun | kCheck | kInspect | kTokenize | kBench | kSynth | kTrace | kBisect | kVerify | kDevices;

constexpr std::array kCommands = {
    CommandInfo{
        Command::run, "run", "MODEL", "generate text",
        "The text goes to standard output as it is made; the log and the statistics go to standard error. "
        "Exactly one of --prompt, --prompt-file and --token-ids gives the prompt. Ctrl-C keeps the text so "
        "far "
        "and prints the statistics; a second Ctrl-C ends at once.\n"
        "The steps of sampling, in this order: repetition penalty, temperature, top-k, top-p, min-p, draw. "
        "The last line of the statistics says tokens, tokens a second of prefill and decode, the share of "
        "the "
        "machine's read bandwidth that decoding reached, and the logits hash."},
    CommandInfo{
        Command::check, "check", "MODEL", "print the plan, or every mismatch",
        "Prints the file's real path, its SHA-256 and what a run would need; or every reason why it would "
        "not "
        "run, each with what was expected and what is there. Nothing is loaded. Exit status: 0 it fits, 1 it "
        "does not, 2 the file cannot be read as GGUF."},
    CommandInfo{Command::inspect, "inspect", "MODEL", "print metadata, tensors and tokenizer",
                "Without options: a summary. Works on files that hold nothing but a vocabulary."},
    CommandInfo{
        Command::tokenize, "tokenize", "MODEL", "print token ids and pieces, or the text of ids",
        "One line a token: its id, then its piece as the vocabulary spells it, in quotes. With --decode the "
        "ids of --token-ids (or the ids in the file of --prompt-file) become their text, byte for byte and "
        "without a newline; a leading begin token and a trailing end token that tokenising adds by itself "
        "are "
        "left out."},
    CommandInfo{
        Command::bench, "bench", "MODEL...", "measure speed and the share of the machine's limit",
        "pp rows feed a prompt, tg rows decode one token at a time; each row has one warm-up, then its "
        "repeats: "
        "the median, the smallest and the largest are shown. Decoding is held against the read bandwidth, "
        "prefill against the multiply-add rate of the instructions that the mode uses; both are of the whole "
        "machine, whatever --threads, and measured in the same run."},
    CommandInfo{Command::synth, "synth", "", "write a random model of any shape",
                "Same options and same seed, same bytes. The file appears when it is whole."},
    CommandInfo{
        Command::trace, "trace", "MODEL", "record stages of the forward pass",
        "Feeds the prompt and writes the chosen rows of the chosen stages to a safetensors file: token_ids, "
        "sequence_offsets, sequence, positions, and a tensor for each stage. Prints the logits hash over all "
        "rows of the prompt. What is not chosen with --layers, --stages or --positions is recorded."},
    CommandInfo{Command::bisect, "bisect", "MODEL", "find the first wrong token, layer and operator",
                "Runs two subjects on the same tokens, repeats every call of each and judges every operator "
                "in FP64 on the inputs "
                "that it had, against its derived bound. Prints the first wrong value with its kind: INPUT, "
                "OPERATOR, WIRE, RACE, or "
                "ROUNDING where the tokens part although every operator is inside its bound.\n"
                "A subject is reference, cpu or trace=FILE, with keys after commas: file, isa, weights, "
                "activations, kv-type, "
                "phase=prefill|decode, chunk, batch, threads, fault=ID@layer,token,seed. Without --a and "
                "--b: the reference against "
                "--device.\n"
                "--prompts names built-ins (p0_short, p6_len_16 of 827 tokens, p6_len_32 of 1,653) and "
                "files: .ids and .json hold "
                "token ids, others text.\n"
                "Exit status: 0 no divergence, 1 a divergence, 2 it could not be done. docs/summary.md "
                "describes summary.json."},
    CommandInfo{
        Command::verify, "verify", "MODEL", "the audit of a model on a device, as a table of verdicts",
        "Runs the model in many ways and holds the runs against each other. Each row of the table is a "
        "verdict: "
        "pass, fail, not_run (it could not run here) or error (it ran, but not as it was meant); only pass "
        "is a pass. Each says how many values, rows of stages, tokens, layers, stages and runs were "
        "compared.\n"
        "phase: a prompt prefilled against the same tokens one by one, every stage of every token and layer. "
        "chunk: prefill in chunks of 7, 64 and 512 against --chunk. batch: five unlike texts together "
        "against "
        "each alone. threads: one thread against all. repeats: ten runs. isa: the instruction sets that this "
        "machine has (cpu). weights: the weights as stored, as f32 and as int8 against FP64 on the same "
        "weights, "
        "by KL divergence and greedy token, within the budget of the default mode; what int8 costs against "
        "the "
        "file's own weights is reported beside it. taps: logits of a traced run against an untraced one. "
        "context: the end of a long text prefilled against the same tokens one by one.\n"
        "Exit status: 0 every row is a pass, 1 one is not, 2 it could not be done."},
    CommandInfo{Command::devices, "devices", "", "list the devices", ""},
    CommandInfo{
        Command::completion, "completion", "SHELL", "print the completion script of bash or zsh",
        "For bash: source <(greta completion bash). For zsh: a file named _greta in a folder of fpath."},
    CommandInfo{Command::top, "", "", "", ""},
};

constexpr double kAny = static_cast<double>(std::numeric_limits<int64_t>::max());

const std::vector<Option>& table() {
  static const std::vector<Option> all = {
      // ---- prompt
      {"prompt", 0, Kind::text, "TEXT", "", kPrompt, "prompt", "the prompt itself"},
      {"prompt-file", 0, Kind::path, "FILE", "", kPrompt, "prompt",
       "the prompt from a file, byte for byte; - is standard input"},
      {"token-ids", 0, Kind::numbers, "IDS", "", kPrompt, "prompt",
       "the prompt as token ids: nothing is tokenised, nothing added"},
      {"no-special", 0, Kind::flag, "", "", kTokenize, "prompt",
       "add no begin or end token, and read special tokens in the text as plain characters"},
      {"decode", 0, Kind::flag, "", "", kTokenize, "prompt", "the way back: from ids to text"},
      // ---- generation
      {"max-tokens", 0, Kind::number, "N", "128", kRun, "generation", "most tokens to generate"},
      {"greedy", 0, Kind::flag, "", "", kRun, "generation", "always the most probable token"},
      {"temperature", 0, Kind::real, "X", "0.8", kRun, "generation", "divides the logits; 0 is --greedy", 0,
       1000},
      {"top-k", 0, Kind::number, "N", "40", kRun, "generation", "keep the N most probable tokens; 0: all", 0,
       2147483647},
      {"top-p", 0, Kind::real, "X", "0.95", kRun, "generation",
       "keep the fewest tokens whose probabilities reach X; 1: all", 0, 1},
      {"min-p", 0, Kind::real, "X", "0.05", kRun, "generation",
       "keep tokens at least X times as probable as the first; 0: all", 0, 1},
      {"repeat-penalty", 0, Kind::real, "X", "1.0", kRun, "generation",
       "divides positive and multiplies negative logits of tokens seen before", 0, 1000},
      {"seed", 0, Kind::number, "N", "", kRun, "generation",
       "of the random draws; not given: drawn from the system and printed"},
      {"stop", 0, Kind::text, "TEXT", "", kRun, "generation",
       "end before this text, as the shell passes it ($'\\n' is a newline); it may span tokens; repeatable",
       0, kAny, true},
      {"ignore-eos", 0, Kind::flag, "", "", kRun, "generation", "end tokens do not end the text"},
      {"logprobs", 0, Kind::number, "N", "", kRun, "generation",
       "natural-log probabilities of each token and of the N most probable ones", 0, 2147483647},
      // ---- check and inspect
      {"tensors", 0, Kind::flag, "", "", kInspect, "what to print",
       "every tensor: name, shape, type, bytes, offset"},
      {"metadata", 0, Kind::flag, "", "", kInspect, "what to print", "every key with its type and value"},
      // ---- bench
      {"pp", 0, Kind::numbers, "LIST", "512", kBench, "rows", "prompt lengths to prefill; 0: no such rows"},
      {"tg", 0, Kind::numbers, "LIST", "128", kBench, "rows", "numbers of tokens to decode; 0: no such rows"},
      {"depth", 0, Kind::numbers, "LIST", "0", kBench, "rows",
       "positions that are in the context already; they are computed anew, untimed, for each repeat"},
      {"batch", 0, Kind::numbers, "LIST", "1", kBench, "rows", "sequences that decode together (tg rows)"},
      {"repeat", 0, Kind::number, "N", "5", kBench, "rows", "timed repeats of each row, after one warm-up", 1,
       1000},
      {"csv", 0, Kind::flag, "", "", kBench, "output", "comma-separated values on standard output"},
      // ---- synth
      {"arch", 0, Kind::word, "NAME", "llama", kSynth, "shape",
       "architecture: llama, qwen2, qwen3, qwen3moe, gemma2, gemma3, phi3 or olmo2"},
      {"dim", 0, Kind::number, "N", "256", kSynth, "shape", "width of the residual stream", 1},
      {"layers", 0, Kind::number, "N", "2", kSynth, "shape", "layers", 1},
      {"ffn-dim", 0, Kind::number, "N", "", kSynth, "shape",
       "width of the feed-forward part, or of each expert's; default: 8/3 of dim, rounded up to a multiple "
       "of "
       "256",
       1},
      {"heads", 0, Kind::number, "N", "4", kSynth, "shape", "query heads", 1},
      {"kv-heads", 0, Kind::number, "N", "", kSynth, "shape",
       "key and value heads; default: as many as heads", 1},
      {"head-dim", 0, Kind::number, "N", "", kSynth, "shape", "width of a head; default: dim / heads", 1},
      {"vocab", 0, Kind::number, "N", "", kSynth, "shape",
       "tokens, at least 260; default: 1024, or that of --tokenizer-from", 1},
      {"context", 0, Kind::number, "N", "", kSynth, "shape",
       "the model's context length; default: 2048, or FACTOR times CONTEXT of --rope-scaling where that is "
       "more",
       1},
      {"type", 0, Kind::word, "TYPE", "q8_0", kSynth, "shape", "type of every matrix: q4_k, q8_0, f16 ..."},
      {"seed", 0, Kind::number, "N", "1", kSynth, "shape", "of the weights"},
      {"tied", 0, Kind::flag, "", "", kSynth, "shape",
       "the embedding is the output head too, as gemma's always is"},
      {"bias", 0, Kind::flag, "", "", kSynth, "shape",
       "biases on q, k, v and the attention's output (of qwen2: on the output too)"},
      {"rope-base", 0, Kind::real, "X", "", kSynth, "shape",
       "base of the rotary frequencies; default: the architecture's, for llama 10000", 1, 1e12},
      {"rope-scaling", 0, Kind::word, "KIND", "", kSynth, "shape",
       "none, linear:FACTOR:CONTEXT, yarn:FACTOR:CONTEXT, llama3:FACTOR:CONTEXT or, for phi3, "
       "longrope:FACTOR:CONTEXT (the original context)"},
      {"experts", 0, Kind::number, "N", "", kSynth, "shape",
       "experts in each layer, of llama and qwen3moe; default: 0, of qwen3moe 8"},
      {"experts-used", 0, Kind::number, "N", "", kSynth, "shape",
       "experts that a token chooses; default: 2 where there are experts", 1},
      {"window", 0, Kind::number, "N", "", kSynth, "shape",
       "sliding attention window of gemma2, gemma3 and phi3, 0 for none; default: 4096, 512 and 0"},
      {"tokenizer-from", 0, Kind::path, "FILE", "", kSynth, "shape", "copy the tokenizer of this GGUF file"},
      // ---- trace
      {"layers", 0, Kind::ranges, "LIST", "", kTrace, "what to record", "layers: 0,1,4-8"},
      {"stages", 0, Kind::word, "LIST", "", kTrace, "what to record", "stages: attn_out,logits"},
      {"positions", 0, Kind::ranges, "LIST", "", kTrace, "what to record", "positions of the prompt: 0,5-9"},
      // ---- bisect
      {"a", 0, Kind::word, "SUBJECT", "", kBisect, "what to compare", "one side; default: reference"},
      {"b", 0, Kind::word, "SUBJECT", "", kBisect, "what to compare", "the other; default: --device"},
      {"prompts", 0, Kind::word, "LIST", "p0_short", kBisect, "what to compare",
       "built-in prompts and files; default with a recorded trace: its own"},
      {"layers", 0, Kind::ranges, "LIST", "", kBisect, "what to compare",
       "layers whose residual stream is kept for the picture: 0,1,4-8; every call is replayed all the same"},
      {"max-tokens", 0, Kind::number, "N", "5", kBisect, "what to compare",
       "tokens that each side generates greedily", 0, 65536},
      {"repeat-run", 0, Kind::flag, "", "", kBisect, "what to compare",
       "the same route on both sides is meant"},
      {"keep-going", 0, Kind::flag, "", "", kBisect, "what to compare",
       "past a difference of files or weights, to the first stage that it spoils"},
      {"allow",
       0,
       Kind::choice,
       "KIND",
       "",
       kBisect,
       "what to compare",
       "a kind that ends with status 0",
       0,
       kAny,
       false,
       {"rounding"}},
      {"self-test", 0, Kind::flag, "", "", kBisect, "self-test",
       "plant faults at drawn places and tell how many are found and placed"},
      {"plantings", 0, Kind::number, "N", "100", kBisect, "self-test", "faults to plant", 1, 100000},
      {"clean", 0, Kind::number, "N", "", kBisect, "self-test",
       "runs without a fault; default: a quarter of the plantings", 0, 100000},
      {"seed", 0, Kind::number, "N", "1", kBisect, "self-test",
       "of the places where faults are planted, and of the outputs that are judged where a big model's are "
       "sampled"},
      {"trace-budget", 0, Kind::number, "BYTES", "512MiB", kBisect, "what to compare",
       "most bytes of rows that are kept at a time", 1048576},
      // ---- verify
      {"rows", 0, Kind::word, "LIST", "", kVerify, "what to verify",
       "rows: phase,chunk and so on; default: all that the device has"},
      // ---- output files
      {"output", 'o', Kind::path, "FILE", "", kSynth | kTrace, "output", "the file to write (required)"},
      {"output", 'o', Kind::path, "DIR", "", kBisect, "output",
       "a new folder for the report; default: artifacts/<date>/<time>-<model>"},
      // ---- model and device
      {"device", 0, Kind::word, "DEVICE", "", kModel, "model and device",
       "cpu, cuda:0, hip:0 or reference; default: the first GPU that this build can use, else cpu"},
      {"isa",
       0,
       Kind::choice,
       "ISA",
       "auto",
       kModel,
       "model and device",
       "instruction set of the cpu device",
       0,
       kAny,
       false,
       {"auto", "avx512", "avx2", "portable"}},
      {"threads", 0, Kind::number, "N", "", kRun | kCheck | kSynth | kTrace | kBisect | kVerify,
       "model and device", "threads; default: as many as this process may use", 1, 4096},
      {"threads", 0, Kind::numbers, "LIST", "", kBench, "model and device",
       "thread counts to measure; default: as many as this process may use", 1, 4096},
      {"context", 0, Kind::number, "N", "", kRun | kCheck | kTrace | kBisect, "model and device",
       "positions that the context holds (run and trace take memory for no more than they need); a model "
       "with "
       "long and short rotary factors takes those of this context; default: the model's",
       1, 2147483647},
      {"context", 0, Kind::number, "N", "", kVerify, "what to verify",
       "positions of the row context; default: the model's, at most 8192. Chooses rotary factors as in run",
       2, 2147483647},
      {"chunk", 0, Kind::number, "N", "512", kModel, "model and device",
       "most tokens in one call of a prefill; it changes no bit of the result", 1, 1048576},
      {"weights",
       0,
       Kind::choice,
       "MODE",
       "stored",
       kModel,
       "model and device",
       "weights as stored, or converted at load",
       0,
       kAny,
       false,
       {"stored", "f32", "int8"}},
      {"activations",
       0,
       Kind::choice,
       "BITS",
       "16",
       kModel,
       "model and device",
       "bits of activations against integer weights; 8 is faster and less exact",
       0,
       kAny,
       false,
       {"16", "8"}},
      {"kv-type",
       0,
       Kind::choice,
       "TYPE",
       "f16",
       kModel,
       "model and device",
       "type of the cached keys and values (the reference device keeps float64)",
       0,
       kAny,
       false,
       {"f16", "bf16", "f32"}},
      {"tokenizer", 0, Kind::path, "FILE", "", kModel | kTokenize, "model and device",
       "a SentencePiece tokenizer.model that overrides the file's own"},
      {"expect", 0, Kind::word, "PINS", "", kModel, "model and device",
       "refuse any other model: dim=4096,layers=32 and so on; fields are arch, dim, layers, heads, "
       "kv_heads, head_dim, ffn_dim, vocab, context, sha256, tokenizer"},
      // ---- output
      {"json", 0, Kind::flag, "", "", kReports, "output", "one JSON document on standard output"},
      {"quiet", 0, Kind::flag, "", "", kReports, "output", "no log: errors alone go to standard error"},
      {"verbose", 0, Kind::flag, "", "", kReports, "output",
       "more log: this build, and the plan of a model that is loaded"},
      {"version", 0, Kind::flag, "", "", kTop, "program",
       "commit, compiler, instruction sets and devices of this build"},
      {"help-markdown", 0, Kind::flag, "", "", kTop, "program",
       "the reference of all commands (docs/cli.md)"},
      {"help", 'h', Kind::flag, "", "", kReports | kCompletion | kTop, "output", "this help"},
  };
  return all;
}

}  // namespace

std::span<const CommandInfo> commands() { return kCommands; }

const CommandInfo& info_of(Command command) { return kCommands[static_cast<size_t>(command)]; }

std::span<const Option> options() { return table(); }

std::vector<const Option*> options_of(Command command) {
  std::vector<const Option*> found;
  for (const Option& option : table())
    if ((option.commands & set_of(command)) != 0) found.push_back(&option);
  return found;
}

const Option* find_option(Command command, std::string_view name) {
  for (const Option& option : table())
    if (option.name == name && (option.commands & set_of(command)) != 0) return &option;
  return nullptr;
}

}  // namespace greta::cli
