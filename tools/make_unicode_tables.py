#!/usr/bin/env python3
"""Writes src/tokenizer/unicode_tables.cpp: the character classes that the pre-tokenizers ask for.

The classes come from the library that is the oracle of the tests, `tokenizers` (pip), by asking its engines about every
code point, so that the tables and the oracle cannot drift apart unnoticed:
  letter, number, mark, punctuation, symbol, space   \\p{L} \\p{N} \\p{M} \\p{P} \\p{S} \\s of its regular-expression engine
  digit_rule    what its `Digits` step takes for a number (Rust's char::is_numeric)
  punct_rule    what its `Punctuation` step takes for punctuation
The three engines know different versions of Unicode; --report prints where they part and what Python's own
unicodedata says. Usage: make_unicode_tables.py [--report] OUTPUT.cpp
"""
import argparse
import unicodedata

import tokenizers
from tokenizers import Regex, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CLASSES = ["letter", "number", "mark", "punctuation", "symbol", "space", "digit_rule", "punct_rule"]


def by_regex(pattern):
    """Code points that the regular expression matches: those that a removing split takes away."""
    step = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for i in range(0, len(CODE_POINTS), 4096):
        part = CODE_POINTS[i:i + 4096]
        left = set()
        for piece, _ in step.pre_tokenize_str("".join(map(chr, part))):
            left.update(piece)
        found |= {c for c in part if chr(c) not in left}
    return found


def by_step(step):
    """Code points that an isolating step cuts out of a word."""
    return {c for c in CODE_POINTS if len(step.pre_tokenize_str("a" + chr(c) + "a")) == 3}


def classes():
    found = {name: by_regex(pattern) for name, pattern in
             [("letter", r"\p{L}"), ("number", r"\p{N}"), ("mark", r"\p{M}"), ("punctuation", r"\p{P}"),
              ("symbol", r"\p{S}"), ("space", r"\s")]}
    found["digit_rule"] = by_step(pre_tokenizers.Digits(True))
    found["punct_rule"] = by_step(pre_tokenizers.Punctuation("isolated"))
    return found


def report(found):
    def show(name, a, b):
        only_a, only_b = sorted(a - b), sorted(b - a)
        print(f"{name}: {len(only_a)} only in the first {[hex(c) for c in only_a[:8]]}, "
              f"{len(only_b)} only in the second {[hex(c) for c in only_b[:8]]}")

    for name, initial in [("letter", "L"), ("number", "N"), ("mark", "M"), ("punctuation", "P"), ("symbol", "S")]:
        known = {c for c in CODE_POINTS if unicodedata.category(chr(c))[0] == initial}
        show(f"{name}, engine against unicodedata {unicodedata.unidata_version}", found[name], known)
    show("Digits step against \\p{N}", found["digit_rule"], found["number"])
    ascii_punct = {ord(c) for c in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"}
    show("Punctuation step against \\p{P} and ASCII", found["punct_rule"], found["punctuation"] | ascii_punct)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    found = classes()
    if args.report:
        report(found)
    flags = [0] * 0x110000
    for bit, name in enumerate(CLASSES):
        for c in found[name]:
            flags[c] |= 1 << bit
    runs = [(c, flags[c]) for c in range(0x110000) if c == 0 or flags[c] != flags[c - 1]]
    words = [f"0x{(c << 8) | f:x}" for c, f in runs]
    lines, line = [], "   "
    for word in words:
        if len(line) + len(word) + 2 > 110:
            lines.append(line)
            line = "   "
        line += f" {word},"
    lines.append(line)
    with open(args.output, "w") as out:
        out.write(f"""// Made by tools/make_unicode_tables.py from the engines of tokenizers {tokenizers.__version__}; do not edit.
// \\p{{..}} and \\s: Unicode 16.0 (its regular-expression engine); the Digits rule: Unicode 17.0; the Punctuation rule:
// Unicode 8.0 and all ASCII punctuation. Each entry is (first code point << 8) | classes; it holds up to the next entry.
#include "tokenizer/unicode.h"

// clang-format off
namespace greta::unicode {{

const uint32_t kRuns[] = {{
{chr(10).join(lines)}
}};
const size_t kRunCount = sizeof(kRuns) / sizeof(kRuns[0]);

}}  // namespace greta::unicode
""")
    print(f"{args.output}: {len(runs)} runs; bits {CLASSES}")


if __name__ == "__main__":
    main()
